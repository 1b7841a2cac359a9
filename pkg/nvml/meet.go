package nvml

import (
	"path/filepath"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// Two agents overlap during a rolling update, and an operator's word may be given to the one that leaves. Events of
// the driver are seen by both, so that of a file that the other wrote only cordons are taken over: those that were
// given since this one read the file, unless they were lifted here later.

// meet looks at a record that somebody else may have written before it is written over, and waits until the loop
// has taken it over.
func (k *keeper) meet(quit <-chan struct{}) {
	if k.met == nil || k.stands() {
		return
	}
	if _, r, err := readRecord(filepath.Join(k.dir, recordName)); err == nil {
		k.met(r, quit)
	}
}

// meet has the loop take over what another agent wrote.
func (m *Monitor) meet(r record, quit <-chan struct{}) {
	done := make(chan struct{})
	call := func(inv *inventory) {
		defer close(done)
		if ids := inv.cordonToo(r, m.keeper.loaded); len(ids) > 0 {
			m.log.Warn("GPUs cordoned by way of another agent", "uuids", ids)
			m.publish(inv)
		}
	}
	select {
	case m.calls <- call:
		<-done
	case <-quit:
	}
}

// cordonToo cordons the GPUs that another agent cordoned after a time, and returns which.
func (inv *inventory) cordonToo(r record, since time.Time) (ids []gpu.UUID) {
	for _, theirs := range r.GPUs {
		c := theirs.Cordon
		if c == nil || !c.Since.After(since) {
			continue
		}
		// One that is known to nobody here is none of this node's.
		_ = inv.change(theirs.UUID, func(g *tracked) {
			if g.state.cordon == nil && !g.state.uncordoned.After(c.Since) {
				g.state.cordon = c
				ids = append(ids, theirs.UUID)
			}
		})
	}
	return ids
}
