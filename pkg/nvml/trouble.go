package nvml

import (
	"fmt"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// proof is what ends a trouble, besides good probes.
type proof string

const (
	provenByProbes   proof = "probes"   // nothing more: what was wrong is seen not to be
	provenByDriver   proof = "driver"   // the driver asks for no recovery action; or a reset
	provenReset      proof = "reset"    // evidence that the GPU was reset
	provenRescan     proof = "rescan"   // the same; or it was lost and answers again
	provenReboot     proof = "reboot"   // another boot id
	provenByOperator proof = "operator" // nothing but a person
)

// trouble is one thing that keeps a GPU out of use until there is evidence that it is over. It is kept across
// restarts, with what is needed to tell the evidence.
type trouble struct {
	Reason gpu.Reason `json:"reason"`
	XID    uint64     `json:"xid,omitempty"`
	Text   string     `json:"text"`
	Since  time.Time  `json:"since"`
	Needs  gpu.Remedy `json:"needs,omitempty"`
	Until  proof      `json:"until"`
	// Contained says that XID 63 or 94 near in time ends it.
	Contained bool `json:"contained,omitempty"`

	// At is what was known when the trouble began, and has since got worse; a change from it is the evidence.
	At marks `json:"at"`
	// Evidence is what was seen so far; empty before.
	Evidence string `json:"evidence,omitempty"`

	standing bool      // the last sample still shows it
	good     int       // probes in a row since the evidence
	probed   time.Time // the last good one
}

// same says that two troubles are one and the same.
func (t *trouble) same(o *trouble) bool { return t.Reason == o.Reason && t.XID == o.XID }

// marks are the facts about a GPU that only a reset or a reboot changes. What is not known is zero.
//
// None of them changes because this process starts, or initialises the library: neither is evidence.
type marks struct {
	Boot   string `json:"boot,omitempty"`   // /proc/sys/kernel/random/boot_id
	Driver string `json:"driver,omitempty"` // its version
	// Binding is the inode of the symlink from the PCI device to its kernel driver. The kernel makes that link
	// when it binds the device and gives its inode to no other: another one means unbound and bound again, or
	// removed and rescanned, or the module loaded anew.
	Binding uint64 `json:"binding,omitempty"`

	// From the driver. A fall is the evidence.
	Action  uint64 `json:"action,omitempty"`  // field 230; of two, the newest that resets
	ECC     uint64 `json:"ecc,omitempty"`     // volatile uncorrected errors
	Pending bool   `json:"pending,omitempty"` // a row waits to be remapped
}

// facts are what one good sample says.
type facts struct {
	marks
	stats *gpu.Stats
	// held says that the GPU stayed initialised since the sample before: this process had it open all the
	// time, or persistence mode was on. Without, the driver shuts the GPU down when its last user goes, and
	// its volatile counters begin at 0 with the next, which resets nothing.
	held bool
}

// factsOf takes from a sample what may be evidence.
func factsOf(s *gpu.Stats, m marks, held bool) facts {
	if s.RecoveryAction != nil {
		m.Action = *s.RecoveryAction
	}
	if s.ECCUncorrectedVolatile != nil {
		m.ECC = *s.ECCUncorrectedVolatile
	}
	if s.RowRemapPending != nil {
		m.Pending = *s.RowRemapPending
	}
	return facts{marks: m, stats: s, held: held}
}

// witness looks for evidence in a sample. What it returns is for people; empty when there is none.
func (t *trouble) witness(f facts) string {
	if t.Until == provenByOperator {
		return ""
	}
	if f.Boot != "" && t.At.Boot != "" && f.Boot != t.At.Boot {
		return "the node was rebooted"
	}
	if t.Until == provenReboot {
		return ""
	}
	switch at := t.At; {
	case f.Driver != "" && at.Driver != "" && f.Driver != at.Driver:
		return fmt.Sprintf("the driver was upgraded from %s to %s", at.Driver, f.Driver)
	case f.Binding != 0 && at.Binding != 0 && f.Binding != at.Binding:
		return "the kernel driver was bound to the GPU anew"
	case resets(at.Action) && f.stats.RecoveryAction != nil && f.Action == 0:
		return fmt.Sprintf("the driver's recovery action fell from %d to none", at.Action)
	case f.held && f.stats.ECCUncorrectedVolatile != nil && f.ECC < at.ECC:
		return "the GPU's volatile error counters were cleared"
	case f.held && at.Pending && f.stats.RowRemapPending != nil && !f.Pending:
		return "a pending row remapping was carried out"
	case t.Until == provenByDriver && f.stats.RecoveryAction != nil && f.Action == 0:
		return "the driver asks for no recovery action"
	case t.Until == provenByProbes && seenWell(t.Reason, f.stats):
		return "it answers as it should"
	}
	return ""
}

// seenWell says that a sample shows the opposite of a trouble, not merely no trace of it: a reading may be
// missing.
func seenWell(r gpu.Reason, s *gpu.Stats) bool {
	return r != gpu.FabricFault || s.FabricState != nil
}

// note raises the marks by what a sample says. After a gap in which the GPU may have been shut down, volatile
// counters start from what they are now.
func (t *trouble) note(f facts) {
	at := &t.At
	if at.Boot == "" {
		at.Boot = f.Boot
	}
	if at.Driver == "" {
		at.Driver = f.Driver
	}
	if at.Binding == 0 {
		at.Binding = f.Binding
	}
	if resets(f.Action) {
		at.Action = f.Action
	}
	if !f.held {
		at.ECC, at.Pending = 0, false
	}
	at.ECC, at.Pending = max(at.ECC, f.ECC), at.Pending || f.Pending
}

// rules are how health is judged and regained.
type rules struct {
	xids     xidRules
	ignore   map[gpu.Reason]bool // conditions that are notices only
	probes   int
	every    time.Duration // between two probes that count
	relapses int           // in a day; more are flapping
}

// probe counts a good sample, and reports whether the trouble is over.
func (r rules) probe(t *trouble, f facts, good bool, now time.Time) (over bool) {
	if t.standing {
		t.Evidence = ""
	} else if t.Evidence == "" {
		t.Evidence = t.witness(f)
	}
	t.note(f)
	if !good || t.Evidence == "" {
		t.good = 0
		return false
	}
	// A tenth of slack: samples are not taken to the millisecond.
	if t.good == 0 || now.Sub(t.probed) >= r.every*9/10 {
		t.good, t.probed = t.good+1, now
	}
	return t.good >= r.probes
}
