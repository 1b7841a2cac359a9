package cdi

import (
	"context"

	"tags.cncf.io/container-device-interface/specs-go"
)

// Vendor of every device that is described here; NVIDIA's device plugin uses the same.
const Vendor = "k8s.device-plugin.nvidia.com"

// The classes. ClassGPU holds whole GPUs and MIG instances; each of the others is what an add-on brings.
const (
	ClassGPU     = "gpu"
	ClassGDS     = "gds"          // GPUDirect Storage; one device, "all"
	ClassMOFED   = "mofed"        // InfiniBand; one device, "all"
	ClassGDRCopy = "gdrcopy"      // one device, "all"
	ClassIMEX    = "imex-channel" // a device per channel, named by its number
)

// unitKey annotates a device with the UUID of the GPU or MIG instance that it is.
const unitKey = "gpu-agent.dev/unit"

// Request is what the child is asked for, as JSON on its standard input. Paths are those of this container
// unless they say otherwise.
type Request struct {
	Library    string `json:"library,omitempty"` // path or soname of libnvidia-ml; "" is the default soname
	DriverRoot string `json:"driverRoot"`        // where the host's driver root is mounted
	DevRoot    string `json:"devRoot"`           // holds dev/

	HostDriverRoot string `json:"hostDriverRoot"`
	HostDevRoot    string `json:"hostDevRoot"`
	HostHook       string `json:"hostHook"` // nvidia-cdi-hook or nvidia-ctk

	DisabledHooks []string `json:"disabledHooks,omitempty"`

	Units        []string `json:"units"`             // UUIDs of whole GPUs and MIG instances
	Classes      []string `json:"classes,omitempty"` // besides ClassGPU and ClassIMEX
	IMEXChannels []int    `json:"imexChannels,omitempty"`
}

// Result is the child's answer, as JSON on its standard output.
type Result struct {
	// Specs has one spec a class. Each device of ClassGPU names its unit: see UnitAnnotation.
	Specs []*specs.Spec `json:"specs"`
	// Failed says of each unit and class that is not in Specs why not.
	Failed map[string]string `json:"failed,omitempty"`
}

// UnitAnnotation marks a device as a unit.
func UnitAnnotation(unit string) map[string]string { return map[string]string{unitKey: unit} }

// Generator makes specs. Generate returns by the deadline of ctx, whatever the driver does. It is called by
// one goroutine.
type Generator interface {
	Generate(ctx context.Context, q Request) (Result, error)
}
