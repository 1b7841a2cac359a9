package nvml

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// MaxRelease bounds how long NVML may stay released: an operator may forget.
const MaxRelease = time.Hour

// maxReason bounds an operator's reason, which is shown in one line everywhere.
const maxReason = 256

// errReleased ends a session because an operator asked for it.
var errReleased = errors.New("released by an operator")

// release is an operator's wish that nothing here holds the driver.
type release struct {
	until time.Time
	freed []chan<- error // told when the driver is let go of, or why it cannot be
}

// done tells everybody who waits.
func (r *release) done(err error) {
	for _, c := range r.freed {
		c <- err
	}
	r.freed = nil
}

// do has the loop run f, and waits for what f returns. Only the loop may touch an inventory.
func (m *Monitor) do(ctx context.Context, f func(*inventory) error) error {
	done := make(chan error, 1)
	select {
	case m.calls <- func(inv *inventory) { done <- f(inv) }:
	case <-ctx.Done():
		return fmt.Errorf("the monitor of the GPUs does not answer: %w", ctx.Err())
	}
	return <-done
}

// change has the loop change a GPU's health, and waits until the change is on the disk.
func (m *Monitor) change(ctx context.Context, id gpu.UUID, f func(*tracked)) error {
	var number int
	err := m.do(ctx, func(inv *inventory) error {
		if err := inv.change(id, f); err != nil {
			return err
		}
		m.publish(inv)
		number = m.keeper.last.number
		return nil
	})
	if err != nil {
		return err
	}
	if err := m.keeper.await(ctx, number); err != nil {
		return fmt.Errorf("done, but a restart of the agent would forget it: %w", err)
	}
	return nil
}

// Cordon takes a GPU out of use until Uncordon, for a reason that everybody is shown. It returns when that is
// on the disk; with an error that says so when it is in force all the same.
func (m *Monitor) Cordon(ctx context.Context, id gpu.UUID, reason string) error {
	switch reason = strings.TrimSpace(reason); {
	case reason == "":
		return errors.New("a cordon needs a reason: others will ask")
	case len(reason) > maxReason || strings.ContainsFunc(reason, unicode.IsControl):
		return fmt.Errorf("the reason of a cordon: want one line of at most %d bytes", maxReason)
	}
	return m.change(ctx, id, func(g *tracked) {
		now := time.Now()
		if c := g.state.cordon; c != nil {
			now = c.Since
		}
		g.state.cordon = &cordon{Reason: reason, Since: now}
		m.log.Warn("GPU cordoned", "gpu", g.device.Index, "uuid", id, "reason", reason)
	})
}

// Uncordon ends a cordon and takes the operator's word that the GPU may be used: everything that does not stop
// it from answering is over or, while it lasts, a notice. It returns what it ended, and what still keeps the
// GPU out of use.
func (m *Monitor) Uncordon(ctx context.Context, id gpu.UUID) (ended []string, left gpu.Health, err error) {
	err = m.change(ctx, id, func(g *tracked) {
		ended = g.state.uncordon(time.Now())
		left = g.verdict()
		m.log.Info("GPU uncordoned", "gpu", g.device.Index, "uuid", id, "ended", strings.Join(ended, "; "))
	})
	return ended, left, err
}

// Release lets go of the driver for at most d, so that a GPU can be reset: the library is shut down, and no
// device file is open. All GPUs are unhealthy until Resume or the end of that time. It returns once the driver
// is let go of; with an error, and nothing changed, where a stuck driver call makes that impossible.
func (m *Monitor) Release(ctx context.Context, d time.Duration) error {
	if d <= 0 || d > MaxRelease {
		return fmt.Errorf("release for %s: want more than 0s and at most %s", d, MaxRelease)
	}
	freed := make(chan error, 1)
	err := m.do(ctx, func(inv *inventory) error {
		if inv.released == nil {
			inv.released = &release{}
		}
		inv.say()
		inv.released.until = time.Now().Add(d)
		if inv.closedByUs {
			freed <- nil // only longer
		} else {
			inv.released.freed = append(inv.released.freed, freed)
		}
		m.publish(inv)
		return nil
	})
	if err != nil {
		return err
	}
	select {
	case err := <-freed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the driver is not let go of yet: %w", ctx.Err())
	}
}

// Resume ends a Release early; without one it does nothing.
func (m *Monitor) Resume(ctx context.Context) error {
	return m.do(ctx, func(inv *inventory) error {
		inv.say()
		inv.resume()
		m.publish(inv)
		return nil
	})
}

// say notes when release or resume was said. A clock that went back makes no later word an earlier one.
func (inv *inventory) say() {
	now := time.Now()
	if !now.After(inv.releaseSaid) {
		now = inv.releaseSaid.Add(1)
	}
	inv.releaseSaid = now
}

func (inv *inventory) resume() {
	if inv.released != nil {
		inv.released.done(errors.New("resumed before the driver was let go of"))
	}
	inv.released = nil
}

// rest waits, with the driver let go of, until the release is over. It reports false when ctx is done.
func (m *Monitor) rest(ctx context.Context, inv *inventory) bool {
	r := inv.released
	inv.closedByUs = true
	defer func() { inv.closedByUs = false }()
	m.log.Warn("the driver is let go of: no GPU is offered", "until", r.until)
	for inv.released != nil {
		left := time.Until(inv.released.until)
		if left <= 0 {
			m.log.Warn("the release is over")
			r.done(nil) // where letting go took as long as that
			inv.released = nil
			break
		}
		inv.rest(time.Now())
		m.publish(inv)
		r.done(nil) // only now: who asked looks at the snapshot next
		end := time.NewTimer(left)
		select {
		case <-ctx.Done():
			end.Stop()
			return false
		case call := <-m.calls:
			call(inv)
		case <-end.C:
		}
		end.Stop()
	}
	return true
}
