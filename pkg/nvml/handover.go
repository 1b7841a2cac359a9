package nvml

import (
	"fmt"
	"time"
)

// Follow has m go on where before, a Monitor of the same process, stops: with the health of the GPUs, cordons, a
// release and what was counted, whether or not they are kept on a disk. Made-up GPUs are taken over where m has the
// same ones. Who watches before sees what m publishes, and the GPUs do not go meanwhile. Call it before Run, which must
// not begin before that of before has ended. It fails where m is to load another library than the one that the process
// has loaded: the dynamic linker keeps the first.
func (m *Monitor) Follow(before *Monitor) error {
	m.held = before.held
	if d, ok := before.driver.(loader); ok && d.loaded() {
		m.held = d.library()
	}
	if d, ok := m.driver.(loader); ok && m.held != "" && d.library() != m.held {
		return fmt.Errorf("library %s: this process has loaded %s, and keeps it: restart the agent", d.library(), m.held)
	}
	m.before, m.latest = before, before.latest
	return nil
}

// loader is a driver that loads a library, once and for all.
type loader interface {
	library() string
	loaded() bool
}

// made says which GPUs are made up, however they are split; zero where none are.
type made struct {
	gpu   string
	count int
}

// inherit is the inventory that Run begins with, and whether it is that of another Monitor.
func (m *Monitor) inherit() (inv *inventory, inherited bool) {
	inv = &inventory{}
	switch before := m.before; {
	case before == nil:
	case before.simulated != m.simulated || before.made != m.made:
		m.publishNothing() // they are other GPUs
	case before.left != nil:
		inv, inherited = before.left, true
		before.left = nil
		m.latest.Set(inv.snapshot(m.simulated, time.Now()))
	}
	m.before = nil
	inv.rules, inv.boot, inv.stateError = m.rules, m.bootID(), ""
	return inv, inherited
}
