package nvml

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

const (
	retryMin = time.Second      // after the first failure to open the driver
	retryMax = 30 * time.Second // a driver that appears is seen within this time

	// settle is how long changes that are not urgent wait for each other: eight GPUs that answer one after
	// the other are one snapshot, and so is a storm of XIDs.
	settle = 100 * time.Millisecond

	// parting is how long a stop waits for calls that are under way; one that is stuck is left behind.
	parting = 2 * listenFor
)

// errRescan ends a session that must be opened anew although the driver is there.
var errRescan = errors.New("the number of GPUs changed")

// Run keeps the snapshot fresh until ctx is done, and then returns nil. A driver that is missing or lost is
// no error. Run returns ErrLibraryReplaced when only a restart of the process can help. Call it once.
func (m *Monitor) Run(ctx context.Context) error {
	inv := &inventory{}
	retry := retryMin
	said := ""
	for {
		opened := time.Now()
		s, count, err := m.open(ctx, inv)
		if err == nil {
			m.log.Info("driver opened", "version", inv.driver.Version, "gpus", count)
			err = m.follow(ctx, s, count, inv)
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrLibraryReplaced) {
			return err
		}
		if errors.Is(err, errRescan) {
			m.log.Info("opening the driver again", "why", err)
			said, retry = "", retryMin
			continue
		}
		if time.Since(opened) > retryMax {
			retry = retryMin // it had worked: this is a new trouble
		}
		inv.closed(err.Error(), time.Now())
		m.publish(inv)
		if said != err.Error() {
			said = err.Error()
			m.log.Warn("no GPU driver; trying again until there is one", "why", said)
		}
		if !sleep(ctx, retry) {
			return nil
		}
		retry = min(2*retry, retryMax)
	}
}

func (m *Monitor) publish(inv *inventory) { m.latest.Set(inv.snapshot(m.simulated, time.Now())) }

// open opens the driver and counts the GPUs. When that takes longer than the deadline it says so in the
// snapshot and goes on waiting: a second attempt would only get stuck behind the first.
func (m *Monitor) open(ctx context.Context, inv *inventory) (session, int, error) {
	type result struct {
		session session
		driver  gpu.Driver
		count   int
		err     error
	}
	done := make(chan result, 1)
	go func() {
		s, err := m.driver.Open()
		if err != nil {
			done <- result{err: err}
			return
		}
		r := result{session: s, driver: s.Driver()}
		var c code
		if r.count, c = s.Count(); c != success {
			s.Close()
			r = result{err: fmt.Errorf("count GPUs: %s", c.explain())}
		}
		done <- r
	}()
	late := time.NewTimer(m.deadline)
	defer late.Stop()
	for {
		select {
		case r := <-done:
			if r.err != nil {
				return nil, 0, r.err
			}
			r.driver.Loaded = true
			inv.opened(r.driver)
			return r.session, r.count, nil
		case <-late.C:
			why := fmt.Sprintf("initialising the driver has taken more than %s; still waiting for it", m.deadline)
			m.log.Warn(why)
			inv.closed(why, time.Now())
			m.publish(inv)
		case <-ctx.Done():
			select {
			case r := <-done:
				if r.session != nil {
					r.session.Close()
				}
			case <-time.After(parting):
				m.log.Warn("a driver call is stuck; leaving it behind")
			}
			return nil, 0, ctx.Err()
		}
	}
}

// sleep waits for d, or until ctx is done, and then reports false.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
