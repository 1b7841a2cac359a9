package nvml

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// lookUpPCI fills in what the kernel knows of a PCI device and NVML does not say: its NUMA node and class.
// What cannot be read is -1 and 0: a container may see no /sys/bus/pci.
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
