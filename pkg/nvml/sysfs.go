package nvml

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// lookUpPCI fills in what the kernel knows of a PCI device and NVML does not say: its NUMA node, its class and
// the way to it. What cannot be read is -1, 0 and empty: a container may see no /sys/bus/pci.
func lookUpPCI(sysfs string, d *gpu.Device) {
	dir := filepath.Join(sysfs, "bus/pci/devices", sysfsBusID(d.PCIBusID))
	d.NUMANode = -1
	if n, err := strconv.Atoi(readLine(filepath.Join(dir, "numa_node"))); err == nil && n >= 0 {
		d.NUMANode = n
	}
	d.PCIClass = 0
	if c, err := strconv.ParseUint(readLine(filepath.Join(dir, "class")), 0, 32); err == nil {
		d.PCIClass = uint32(c)
	}
	d.PCIPath = pciPath(dir)
}

// bindingOf names the present binding of a PCI device to its kernel driver: see marks. 0 when there is none.
func bindingOf(sysfs, busID string) uint64 {
	info, err := os.Lstat(filepath.Join(sysfs, "bus/pci/devices", sysfsBusID(busID), "driver"))
	if err != nil {
		return 0
	}
	return inode(info)
}

// pciPath is the real path of a device's folder from the root complex on: the kernel nests a function in the
// folder of the bridge above it.
func pciPath(dir string) []string {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil
	}
	parts := strings.Split(dir, string(filepath.Separator))
	root := slices.IndexFunc(parts, func(p string) bool { return strings.HasPrefix(p, "pci") && strings.Contains(p, ":") })
	if root < 0 {
		return nil
	}
	return parts[root:]
}

// sysfsBusID turns NVML's "00000000:0B:00.0" into the kernel's "0000:0b:00.0" (pci_setup_device: %04x).
func sysfsBusID(id string) string {
	id = strings.ToLower(id)
	if domain, rest, ok := strings.Cut(id, ":"); ok && len(domain) == 8 && strings.HasPrefix(domain, "0000") {
		return domain[4:] + ":" + rest
	}
	return id
}

func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
