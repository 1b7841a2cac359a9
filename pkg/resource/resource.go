// Package resource is the one decision between what there is and what is shown: which units of the
// node's GPUs are offered, under which resource name, what a container gets with them, and which of
// them are preferred together. Pure: values in, values out.
package resource

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// ID is the name of one unit towards the kubelet: a GPU's UUID, or "<uuid>::<n>" for the n-th share
// of a shared GPU. The forms are NVIDIA's, so that dashboards and tools that read them keep working.
type ID string

const replicaSeparator = "::"

// ParseID reads a device ID as the kubelet reports it. It knows whole GPUs and their shares; the IDs
// of MIG instances and of other vendors' plugins ("nvidia0") are errors.
func ParseID(s string) (ID, error) {
	device, replica, shared := strings.Cut(s, replicaSeparator)
	if rest, ok := strings.CutPrefix(device, "GPU-"); !ok || rest == "" || strings.ContainsAny(rest, "/ ,:") {
		return "", fmt.Errorf("device id %q: want GPU-<uuid> or GPU-<uuid>::<n>", s)
	}
	if shared {
		if _, err := strconv.ParseUint(replica, 10, 31); err != nil {
			return "", fmt.Errorf("device id %q: want a share number after %q, not %q", s, replicaSeparator, replica)
		}
	}
	return ID(s), nil
}

// Device is the physical GPU that the unit is of, or is a share of.
func (id ID) Device() gpu.UUID {
	device, _, _ := strings.Cut(string(id), replicaSeparator)
	return gpu.UUID(device)
}

// A Unit is one thing that the kubelet can give to one container.
type Unit struct {
	ID       ID
	Device   gpu.UUID
	Healthy  bool
	Reason   string // why not, for people; empty when healthy
	NUMANode int    // -1 when the platform names none
}

// An Offer is all units of one resource, in the order of their GPUs' indexes.
type Offer struct {
	Resource string // "nvidia.com/gpu"
	Units    []Unit
}

// Owner is the container that holds a unit.
type Owner struct {
	Namespace, Pod, Container string
}

// Edits are what a container gets with its units.
type Edits struct {
	Env         map[string]string
	CDIDevices  []string // qualified names, "nvidia.com/gpu=GPU-…"
	DeviceNodes []DeviceNode
}

// A DeviceNode is a character device of the host in a container.
type DeviceNode struct {
	HostPath      string
	ContainerPath string
	Permissions   string // of the device cgroup: "rw"
}
