package nvml

import "time"

// Follow has m go on where before, a Monitor of the same process, stops: with the health of the GPUs, cordons, a
// release and what was counted, whether or not they are kept on a disk. Call it before Run, which must not begin
// before that of before has ended. Made-up GPUs are taken over where m has the same ones.
func (m *Monitor) Follow(before *Monitor) {
	if m.simulated == before.simulated && m.made == before.made {
		m.before = before
	}
}

// made says which GPUs are made up, however they are split; zero where none are.
type made struct {
	gpu   string
	count int
}

// inherit is the inventory that Run begins with, and whether it is that of another Monitor.
func (m *Monitor) inherit() (inv *inventory, inherited bool) {
	inv = &inventory{}
	if m.before != nil && m.before.left != nil {
		inv, inherited = m.before.left, true
		m.before.left = nil
		m.latest.Set(inv.snapshot(m.simulated, time.Now()))
	}
	m.before = nil
	inv.rules, inv.boot, inv.stateError = m.rules, m.bootID(), ""
	return inv, inherited
}
