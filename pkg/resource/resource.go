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

// ID is the name of one unit towards the kubelet: the UUID of a GPU or of a MIG instance, or
// "<uuid>::<n>" for the n-th share of either. The forms are NVIDIA's, so that dashboards and tools that
// read them keep working.
type ID string

const shareSeparator = "::"

// ParseID reads a device ID as the kubelet reports it. It knows GPUs, MIG instances and their shares;
// the IDs of other vendors' plugins ("nvidia0") and those of MIG instances under drivers older than 470
// ("MIG-GPU-<uuid>/1/0") are errors.
func ParseID(s string) (ID, error) {
	device, share, shared := strings.Cut(s, shareSeparator)
	rest, ok := strings.CutPrefix(device, "GPU-")
	if !ok {
		rest, ok = strings.CutPrefix(device, "MIG-")
	}
	if !ok || rest == "" || strings.ContainsAny(rest, "/ ,:") {
		return "", fmt.Errorf("device id %q: want GPU-<uuid> or MIG-<uuid>, with ::<n> for a share of it", s)
	}
	if shared {
		if _, err := strconv.ParseUint(share, 10, 31); err != nil {
			return "", fmt.Errorf("device id %q: want a share number after %q, not %q", s, shareSeparator, share)
		}
	}
	return ID(s), nil
}

// Device is the GPU or the MIG instance that the unit is, or is a share of. Which GPU an instance is of
// only a snapshot knows.
func (id ID) Device() gpu.UUID {
	device, _, _ := strings.Cut(string(id), shareSeparator)
	return gpu.UUID(device)
}

// Shared reports whether the unit is one of several shares of a GPU or a MIG instance.
func (id ID) Shared() bool { return strings.Contains(string(id), shareSeparator) }

func share(of gpu.UUID, n int) ID { return ID(string(of) + shareSeparator + strconv.Itoa(n)) }

// A Unit is one thing that the kubelet can give to one container.
type Unit struct {
	ID       ID       `json:"id"`
	Device   gpu.UUID `json:"device"`             // the physical GPU, whose health is the unit's
	Instance gpu.UUID `json:"instance,omitempty"` // the MIG instance; "" for a GPU and its shares
	Healthy  bool     `json:"healthy"`
	Reason   string   `json:"reason,omitempty"` // why not, for people; empty when healthy
	NUMANode int      `json:"numaNode"`         // -1 when the platform names none
}

// An Offer is all units of one resource, in the order of their GPUs' indexes.
type Offer struct {
	Resource string `json:"resource"` // "nvidia.com/gpu"
	Units    []Unit `json:"units"`
	Sharing  string `json:"sharing,omitempty"` // TimeSliced or ByMPS where some of the units are shares; else ""
	Renamed  bool   `json:"renamed,omitempty"` // the shares go by another name than their GPUs would whole
}

// Owner is the container that holds a unit.
type Owner struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Container string `json:"container"`
}

// Edits are what a container gets with its units.
type Edits struct {
	Env         map[string]string
	Annotations map[string]string // of the container towards the runtime
	Mounts      []Mount
	CDIDevices  []string // qualified names, "nvidia.com/gpu=GPU-…"
	DeviceNodes []DeviceNode
}

// A Mount is a file or folder of the host in a container.
type Mount struct {
	HostPath      string
	ContainerPath string
	ReadOnly      bool
}

// A DeviceNode is a character device of the host in a container.
type DeviceNode struct {
	HostPath      string
	ContainerPath string
	Permissions   string // of the device cgroup: "rw"
}
