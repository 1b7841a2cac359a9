package nvml

import (
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// goneAfter is how long a GPU is shown as lost whose PCI device the kernel no longer has: one that is reset by way
// of its slot, or bound anew by hand, is back before.
const goneAfter = time.Hour

// record is what is kept of the GPU; of one that is out of use also what it is, so that it can be shown after a
// restart although it does not answer.
func (g *tracked) record() gpuRecord {
	r := g.state.record(g.device.UUID)
	if len(r.Troubles) > 0 || r.Cordon != nil {
		d := g.device
		d.Instances = unread(d.Instances)
		r.Device = &d
	}
	return r
}

// recallUnseen shows the GPUs again that were out of use before this start and that the driver has not named. A GPU
// that fell off the bus may not be counted any more; without this its units would vanish, and the reason with them.
func (f *follower) recallUnseen(bound map[*tracked]bool) {
	for _, r := range f.inv.remembered {
		if d := r.Device; d != nil && !f.replaced(*d, bound) && !(f.unplugged(*d) && lostFor(r.Troubles) >= goneAfter) {
			f.inv.byUUID(*d)
		}
	}
}

// forgetGone drops the GPUs that are not on this node any more. What is kept of them stays: one that comes back,
// in another slot perhaps, is not healed. It reports whether there were any.
func (f *follower) forgetGone(bound map[*tracked]bool) bool {
	n := len(f.inv.gpus)
	f.inv.gpus = slices.DeleteFunc(f.inv.gpus, func(g *tracked) bool {
		if bound[g] {
			return false
		}
		why := ""
		switch {
		case f.replaced(g.device, bound):
			why = "another GPU sits in its slot"
		case f.unplugged(g.device) && lostFor(g.state.troubles) >= goneAfter:
			why = "it is in no slot"
		default:
			return false
		}
		f.inv.remember(g.record())
		f.log.Warn("a GPU is not shown any more", "uuid", g.device.UUID, "bus", g.device.PCIBusID, "why", why)
		return true
	})
	return len(f.inv.gpus) < n
}

// bound are the GPUs that have a slot of the session.
func (f *follower) bound() map[*tracked]bool {
	bound := map[*tracked]bool{}
	for _, s := range f.slots {
		if s.gpu != nil {
			bound[s.gpu] = true
		}
	}
	return bound
}

// replaced says that another GPU answers at the PCI address of one that does not.
func (f *follower) replaced(d gpu.Device, bound map[*tracked]bool) bool {
	for g := range bound {
		if g.device.UUID != d.UUID && d.PCIBusID != "" && g.device.PCIBusID == d.PCIBusID {
			return true
		}
	}
	return false
}

// unplugged says that the kernel has no such PCI device. Where it shows none at all, that is not known.
func (f *follower) unplugged(d gpu.Device) bool {
	if f.host.sysfs == "" || d.PCIBusID == "" {
		return false
	}
	all := filepath.Join(f.host.sysfs, "bus/pci/devices")
	if _, err := os.Stat(all); err != nil {
		return false
	}
	_, err := os.Lstat(filepath.Join(all, sysfsBusID(d.PCIBusID)))
	return os.IsNotExist(err)
}

// lostFor is for how long a GPU has given no readings; 0 where it has.
func lostFor(troubles []trouble) time.Duration {
	for _, t := range troubles {
		if unreachable(t.Reason) {
			return time.Since(t.Since)
		}
	}
	return 0
}
