package nvml

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
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
	inv, inherited := m.inherit()
	defer func() { m.left = inv }()
	kept, err := m.keeper.load()
	if err != nil {
		m.log.Error(err.Error())
		inv.stateError = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	if !inherited { // what this process knows is newer than the disk
		inv.recall(kept, time.Now())
	}
	if m.keeper.dir != "" && !m.keeper.readOnly {
		m.keeper.met = m.meet
		quit, written := make(chan struct{}), make(chan struct{})
		go func() { m.keeper.run(quit); close(written) }()
		defer m.keep(quit, written, inv)
	}
	return m.follow(ctx, inv)
}

// keep gives the last record some time to reach the disk.
func (m *Monitor) keep(quit chan<- struct{}, written <-chan struct{}, inv *inventory) {
	m.keeper.keep(inv.encode())
	close(quit)
	select {
	case <-written:
	case <-time.After(parting):
		m.log.Error("the disk is stuck: the health of the GPUs may not be kept", "dir", m.keeper.dir)
	}
}

// follow runs one session with the driver after the other.
func (m *Monitor) follow(ctx context.Context, inv *inventory) error {
	retry := retryMin
	said := ""
	for {
		if inv.released != nil && !m.rest(ctx, inv) {
			return nil
		}
		opened := time.Now()
		inv.present = nil
		s, count, err := m.open(ctx, inv)
		if err == nil {
			m.log.Info("driver opened", "version", inv.driver.Version, "gpus", count)
			err = m.session(ctx, s, count, inv)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrLibraryReplaced):
			return err
		case errors.Is(err, errReleased):
			said, retry = "", retryMin
			continue
		case errors.Is(err, errRescan):
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
		if !m.pause(ctx, inv, retry) {
			return nil
		}
		retry = min(2*retry, retryMax)
	}
}

// publish shows the inventory to everybody, and has what must not be forgotten written to the disk.
func (m *Monitor) publish(inv *inventory) {
	m.keeper.keep(inv.encode())
	s := inv.snapshot(m.simulated, time.Now())
	if err := m.keeper.err(); err != nil {
		s.StateError = "the health of the GPUs cannot be kept: a restart would forget it: " + err.Error()
	}
	m.latest.Set(s)
}

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
			if inv.released != nil {
				r.session.Close()
				return nil, 0, errReleased
			}
			inv.opened(r.driver)
			return r.session, r.count, nil
		case call := <-m.calls:
			call(inv)
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

// pause waits for d, or for a release, or until ctx is done, and then reports false.
func (m *Monitor) pause(ctx context.Context, inv *inventory, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for inv.released == nil {
		select {
		case <-ctx.Done():
			return false
		case call := <-m.calls:
			call(inv)
		case <-t.C:
			return true
		}
	}
	return true
}

// bootID names the present boot of the node; empty where the kernel does not say.
func (m *Monitor) bootID() string {
	if m.host.procfs == "" {
		return ""
	}
	return readLine(filepath.Join(m.host.procfs, "sys/kernel/random/boot_id"))
}
