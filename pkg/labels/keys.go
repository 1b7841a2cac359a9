package labels

import (
	"fmt"
	"strings"
)

// key is one row of docs/LABELS.md.
type key struct {
	name    string // <…> stands for one word
	example string
	meaning string
}

// keys is every label that For can give. A test holds the two together.
func keys() []key {
	return []key{
		{"nvidia.com/cuda.driver-version.full", "550.163.01", "Driver version, as NVML gives it"},
		{"nvidia.com/cuda.driver-version.major", "550", "Its first part"},
		{"nvidia.com/cuda.driver-version.minor", "163", "Its second part"},
		{"nvidia.com/cuda.driver-version.revision", "01", "Its third part; empty if it has two"},
		{"nvidia.com/cuda.driver.major", "550", "Deprecated by GFD: as `driver-version.major`"},
		{"nvidia.com/cuda.driver.minor", "163", "Deprecated by GFD: as `driver-version.minor`"},
		{"nvidia.com/cuda.driver.rev", "01", "Deprecated by GFD: as `driver-version.revision`"},
		{"nvidia.com/cuda.runtime-version.full", "12.4", "Newest CUDA version that the driver supports"},
		{"nvidia.com/cuda.runtime-version.major", "12", "Its first part"},
		{"nvidia.com/cuda.runtime-version.minor", "4", "Its second part"},
		{"nvidia.com/cuda.runtime.major", "12", "Deprecated by GFD: as `runtime-version.major`"},
		{"nvidia.com/cuda.runtime.minor", "4", "Deprecated by GFD: as `runtime-version.minor`"},
		{"nvidia.com/gpu.clique", "00000000-0000-0000-0000-000000000001.0", "NVLink fabric cluster and clique; only if all GPUs that are on a fabric are on one"},
		{"nvidia.com/gpu.compute.major", "9", "CUDA compute capability of the main model"},
		{"nvidia.com/gpu.compute.minor", "0", "The same, second part"},
		{"nvidia.com/gpu.count", "8", "GPUs of the main model, unhealthy ones included; with MIG strategy `single` instances, 0 if their layout is none that it can offer"},
		{"nvidia.com/gpu.engines.copy", "1", "With MIG strategy `single`: copy engines of an instance"},
		{"nvidia.com/gpu.engines.decoder", "1", "The same: video decoders"},
		{"nvidia.com/gpu.engines.encoder", "0", "The same: video encoders"},
		{"nvidia.com/gpu.engines.jpeg", "1", "The same: JPEG decoders"},
		{"nvidia.com/gpu.engines.ofa", "0", "The same: optical flow accelerators"},
		{"nvidia.com/gpu.family", "hopper", "Architecture, from the compute capability; `undefined` for one that GFD does not know"},
		{"nvidia.com/gpu.machine", "DGXH100", "DMI product name; `unknown` where it cannot be read"},
		{"nvidia.com/gpu.memory", "81920", "Memory of one GPU of the main model, in MiB; with MIG strategy `single` of an instance; absent when unknown"},
		{"nvidia.com/gpu.mode", "compute", "`graphics` or `compute` by PCI class; `unknown` when unreadable or mixed"},
		{"nvidia.com/gpu.multiprocessors", "16", "With MIG strategy `single`: multiprocessors of an instance"},
		{"nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3", "The main model; with `-SHARED` when its shares go by the whole GPU's resource name. With MIG strategy `single` `<model>-MIG-<profile>`, or `<model>-MIG-INVALID`"},
		{"nvidia.com/gpu.replicas", "1", "Units offered for each GPU or instance: 1 whole, more when shared (the most that one of them is offered as), 0 when all are split by MIG"},
		{"nvidia.com/gpu.sharing-strategy", "none", "`none`, `time-slicing` or `mps`; empty when the MIG layout is invalid"},
		{"nvidia.com/gpu.slices.ci", "1", "With MIG strategy `single`: compute slices of an instance"},
		{"nvidia.com/gpu.slices.gi", "1", "The same: GPU instance slices"},
		{"nvidia.com/mig-<profile>.count", "7", "With MIG strategy `mixed`: instances of the profile, in whose name `+` is `.`"},
		{"nvidia.com/mig-<profile>.engines.copy", "1", "The same: copy engines of one"},
		{"nvidia.com/mig-<profile>.engines.decoder", "1", "The same: video decoders"},
		{"nvidia.com/mig-<profile>.engines.encoder", "0", "The same: video encoders"},
		{"nvidia.com/mig-<profile>.engines.jpeg", "1", "The same: JPEG decoders"},
		{"nvidia.com/mig-<profile>.engines.ofa", "0", "The same: optical flow accelerators"},
		{"nvidia.com/mig-<profile>.memory", "9984", "The same: memory of one, in MiB"},
		{"nvidia.com/mig-<profile>.multiprocessors", "16", "The same: multiprocessors"},
		{"nvidia.com/mig-<profile>.product", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "The same: the GPU's model and the profile; with `-SHARED` as `gpu.product`"},
		{"nvidia.com/mig-<profile>.replicas", "1", "The same: units offered for each instance"},
		{"nvidia.com/mig-<profile>.sharing-strategy", "none", "The same: `none` or `time-slicing`"},
		{"nvidia.com/mig-<profile>.slices.ci", "1", "The same: compute slices"},
		{"nvidia.com/mig-<profile>.slices.gi", "1", "The same: GPU instance slices"},
		{"nvidia.com/mig.capable", "true", "Whether any GPU can be split by MIG"},
		{"nvidia.com/mig.strategy", "mixed", "`single` or `mixed`; absent when MIG is not offered"},
		{"nvidia.com/mps.capable", "false", "`true` when GPUs are shared by MPS, whatever the name says"},
		{"nvidia.com/vgpu.present", "false", "Always `false`: vGPU guests are not told apart yet"},
		{"gpu-agent.dev/gpu.healthy", "8", "GPUs of any model that may be given to pods now"},
		{"gpu-agent.dev/product.<model>.count", "8", "GPUs of each model, for nodes with more than one; the model as in `gpu.product`, lower case"},
		{"gpu-agent.dev/simulated", "true", "Only on nodes whose GPUs are made up"},
		{"models.gpu-agent.dev/<model>", "3b1c9f0a2d4e", "A model that is complete and verified on this node: the first 12 characters of its revision"},
	}
}

const intro = `# Node labels

<!-- Generated from pkg/labels/keys.go: go test ./pkg/labels -run Document -update -->

The agent applies these labels to its own Node by server-side apply, as field manager ` + "`gpu-agent`" + `.

| Label | Example | Meaning |
|---|---|---|
`

const notes = `
The keys under ` + "`nvidia.com/`" + ` and their values are those of NVIDIA's GPU feature discovery (GFD). What differs:

- ` + "`nvidia.com/gfd.timestamp`" + ` is not set: it would change at every restart and says nothing of the node.
- On a node with two models the main model is the one with the most GPUs, then with more memory, then the
  first by name. It does not change from one start to the next.
- GPUs that the configuration leaves out are in no label.
- A text of more than 63 characters is cut and ends in ` + "`-`" + ` and eight digits of its sha256. GFD sets it
  whole, and the API server refuses it.

## When labels change

Labels follow the hardware and the cache within seconds. They are applied again every five minutes, which
puts back what was deleted by hand.

- **The agent stops or is upgraded:** the labels stay.
- **The driver is not loaded when the agent starts:** the node keeps the labels that it has. Where no driver
  ever loads, nothing is applied, models included; remove old labels of such a node by hand.
- **The driver goes away later:** the labels stay and ` + "`gpu-agent.dev/gpu.healthy`" + ` becomes 0.
- **A GPU fails:** ` + "`gpu-agent.dev/gpu.healthy`" + ` goes down. ` + "`nvidia.com/gpu.count`" + ` stays, as with GFD.
- **A model is removed:** its label goes first, its files after.

## Next to GFD and NFD

A key that node feature discovery lists as its own, or that another field manager holds with another value, is
left alone; the others are applied. The agent logs each such key once and never takes one over by force. To
let the agent own all keys, uninstall GFD: NFD then removes its labels, and the agent applies its own within
five minutes.
`

// document is docs/LABELS.md.
func document() string {
	var b strings.Builder
	b.WriteString(intro)
	for _, k := range keys() {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", k.name, k.example, k.meaning)
	}
	b.WriteString(notes)
	return b.String()
}
