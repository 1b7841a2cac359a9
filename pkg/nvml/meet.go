package nvml

import (
	"path/filepath"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// Two agents overlap during a rolling update, and an operator's word may be given to either. Events of the driver are
// seen by both, so that of a file that the other wrote only words are taken over: those that were given since this
// one read the file, and that no later word here has overruled.

// meet looks at a record that somebody else may have written before it is written over, and waits until the loop
// has taken it over. It reports whether the file lacks something that was said here.
func (k *keeper) meet(quit <-chan struct{}) (behind bool) {
	if k.met == nil || k.stands() {
		return false
	}
	_, r, err := readRecord(filepath.Join(k.dir, recordName))
	return err != nil || k.met(r, quit)
}

// meet has the loop take over what another agent wrote.
func (m *Monitor) meet(r record, quit <-chan struct{}) (behind bool) {
	done := make(chan bool, 1)
	call := func(inv *inventory) {
		since := m.keeper.loaded
		if inv.releaseToo(r, since) {
			m.log.Warn("released or resumed by way of another agent", "until", r.ReleasedUntil)
			m.publish(inv)
		}
		if ids := inv.cordonToo(r, since); len(ids) > 0 {
			m.log.Warn("GPUs cordoned or uncordoned by way of another agent", "uuids", ids)
			m.publish(inv)
		}
		done <- inv.saidMore(r, since)
	}
	select {
	case m.calls <- call:
		return <-done
	case <-quit:
		return false
	}
}

// releaseToo lets go of the driver, or takes it again, as another agent was told to after a time.
func (inv *inventory) releaseToo(r record, since time.Time) (changed bool) {
	if !r.ReleaseSaid.After(since) || !r.ReleaseSaid.After(inv.releaseSaid) {
		return false
	}
	inv.releaseSaid = r.ReleaseSaid
	switch {
	case !r.ReleasedUntil.After(time.Now()):
		inv.resume()
	case inv.released == nil:
		inv.released = &release{until: r.ReleasedUntil}
	default:
		inv.released.until = r.ReleasedUntil
	}
	return true
}

// cordonToo cordons and uncordons the GPUs as another agent was told to after a time, and returns which.
func (inv *inventory) cordonToo(r record, since time.Time) (ids []gpu.UUID) {
	for _, theirs := range r.GPUs {
		// One that is known to nobody here is none of this node's, or nothing is kept of it.
		_ = inv.change(theirs.UUID, func(g *tracked) {
			h, changed := &g.state, false
			if at := theirs.Uncordoned; at.After(since) && at.After(h.uncordoned) {
				h.uncordon(at)
				changed = true
			}
			if c := theirs.Cordon; c != nil && c.Since.After(since) && h.cordon == nil && !h.uncordoned.After(c.Since) {
				h.cordon = c
				changed = true
			}
			if changed {
				ids = append(ids, theirs.UUID)
			}
		})
	}
	return ids
}

// saidMore reports whether an operator said something here, after a time, that a record lacks.
func (inv *inventory) saidMore(r record, since time.Time) bool {
	theirs := map[gpu.UUID]gpuRecord{}
	for _, one := range r.GPUs {
		theirs[one.UUID] = one
	}
	more := func(ours gpuRecord) bool {
		t := theirs[ours.UUID]
		if ours.Uncordoned.After(since) && ours.Uncordoned.After(t.Uncordoned) {
			return true
		}
		c := ours.Cordon
		return c != nil && c.Since.After(since) && t.Cordon == nil && !t.Uncordoned.After(c.Since)
	}
	for _, g := range inv.gpus {
		if more(g.state.record(g.device.UUID)) {
			return true
		}
	}
	for _, one := range inv.remembered {
		if more(one) {
			return true
		}
	}
	return inv.releaseSaid.After(since) && inv.releaseSaid.After(r.ReleaseSaid)
}
