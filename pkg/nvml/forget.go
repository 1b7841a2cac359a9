package nvml

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// Forget drops all that is known and kept of a GPU that has left the node for good: troubles, a cordon, its place in the
// list. It is refused where the GPU may be here, for one that is here would be healed without evidence. It returns when
// that is on the disk; with an error that says so when it is done all the same.
func (m *Monitor) Forget(ctx context.Context, id gpu.UUID) error {
	var number int
	err := m.do(ctx, func(inv *inventory) error {
		if err := inv.forget(id); err != nil {
			return err
		}
		m.log.Warn("GPU forgotten", "uuid", id)
		m.publish(inv)
		number = m.keeper.last.number
		return nil
	})
	if err != nil {
		return err
	}
	if err := m.keeper.await(ctx, number); err != nil {
		return fmt.Errorf("done, but a restart of the agent would remember it: %w", err)
	}
	return nil
}

func (inv *inventory) forget(id gpu.UUID) error {
	switch {
	case inv.released != nil:
		return fmt.Errorf("GPU %s is not forgotten: the driver is released, and cannot say whether the GPU has left: gpu-agent devices resume first", id)
	case !inv.driver.Loaded:
		return fmt.Errorf("GPU %s is not forgotten: without a driver it is not known whether it has left (%s)", id, inv.driver.Error)
	case inv.present == nil:
		return fmt.Errorf("GPU %s is not forgotten: the driver is being asked which GPUs there are: try again in a moment", id)
	}
	i := slices.IndexFunc(inv.gpus, func(g *tracked) bool { return g.device.UUID == id })
	kept, remembered := inv.remembered[id]
	var d gpu.Device
	switch {
	case i >= 0:
		d = inv.gpus[i].device
	case !remembered:
		return inv.unknown(id)
	case kept.Device != nil:
		d = *kept.Device
	}
	if err := inv.present(id, d); err != nil {
		return fmt.Errorf("GPU %s is not forgotten: %w", id, err)
	}
	if i >= 0 {
		inv.gpus = slices.Delete(inv.gpus, i, i+1)
	}
	delete(inv.remembered, id)
	return nil
}

// present says why a GPU may be on the node; nil if it is not.
func (f *follower) present(id gpu.UUID, d gpu.Device) error {
	for i := range f.slots {
		if s := &f.slots[i]; s.named && s.gpu.device.UUID == id {
			return fmt.Errorf("it is GPU %d of this node", i)
		}
	}
	for i := range f.slots {
		if s := &f.slots[i]; !s.named {
			return fmt.Errorf("GPU %d does not say who it is (%s), and may be this one", i, s.why())
		}
	}
	if f.host.sysfs == "" || d.PCIBusID == "" || f.replaced(d, f.bound()) {
		return nil
	}
	_, err := os.Lstat(filepath.Join(f.host.sysfs, "bus/pci/devices", sysfsBusID(d.PCIBusID)))
	if os.IsNotExist(err) {
		return nil
	}
	return fmt.Errorf("the kernel still has its PCI device, %s", d.PCIBusID)
}
