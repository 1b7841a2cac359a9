// Package gpu is the vocabulary of the hardware: plain values that the NVML owner publishes and the
// faces read. Nothing here touches a driver, and nothing here is changed after it was published.
package gpu

import "time"

// UUID is a GPU's identity as NVML prints it, such as "GPU-8c1f…".
type UUID string

// A Snapshot is what is known of the node's GPUs at one moment. It is immutable and complete.
//
// Two rates of truth live in it. Inventory and health persist through a failed sample: the kubelet
// must not see eight GPUs vanish because one call timed out. Readings do not: Device.Stats is nil
// when the last sample of that GPU failed, for a stale number must never look live.
type Snapshot struct {
	Time      time.Time `json:"time"`
	Driver    Driver    `json:"driver"`
	Simulated bool      `json:"simulated"` // no driver was asked: every value is made up
	Devices   []Device  `json:"devices"`   // in the order of NVML's indexes

	// Unidentified are the GPUs that the driver counts and that have never said who they are: without a UUID
	// they are in no list. In the order of their indexes.
	Unidentified []Unidentified `json:"unidentified,omitempty"`

	// StateError says why health cannot be kept across a restart, or what of it was lost; for people.
	StateError string `json:"stateError,omitempty"`
}

// Unidentified is a GPU of which no more is known than its place in the driver's count.
type Unidentified struct {
	Index int    `json:"index"` // NVML's index
	Why   string `json:"why"`   // the driver's answer, for people
}

// NotAsked is Driver.Error until the first attempt to open the driver has ended.
const NotAsked = "the driver has not been asked yet"

// Driver is the NVIDIA driver of the node.
type Driver struct {
	Loaded      bool   `json:"loaded"`                // NVML is initialised
	Version     string `json:"version,omitempty"`     // "550.163.01"
	NVMLVersion string `json:"nvmlVersion,omitempty"` // "12.550.163.01"
	CUDAVersion int    `json:"cudaVersion,omitempty"` // 1000*major + 10*minor, as nvmlSystemGetCudaDriverVersion gives it
	Error       string `json:"error,omitempty"`       // why it is not loaded, for people
}

// Device is one physical GPU.
type Device struct {
	Index        int    `json:"index"` // NVML's index, also the "gpu" label of its metrics
	Minor        int    `json:"minor"` // of /dev/nvidia<minor>; -1 when unknown
	UUID         UUID   `json:"uuid"`
	Name         string `json:"name"` // "NVIDIA H100 80GB HBM3"
	Serial       string `json:"serial,omitempty"`
	VBIOS        string `json:"vbios,omitempty"`
	PCIBusID     string `json:"pciBusID"`   // "00000000:0B:00.0", domain of eight digits, upper case
	PCIClass     uint32 `json:"pciClass"`   // 0x030000 VGA, 0x030200 3D controller; 0 when unknown
	NUMANode     int    `json:"numaNode"`   // -1 when the platform names none
	Memory       uint64 `json:"memory"`     // bytes; 0 when unknown
	ComputeMajor int    `json:"ccMajor"`    // CUDA compute capability
	ComputeMinor int    `json:"ccMinor"`    //
	MIGCapable   bool   `json:"migCapable"` //
	MIGEnabled   bool   `json:"migEnabled"` // split into instances: it cannot be offered whole
	MIGPending   bool   `json:"migPending"` // the mode was changed, and the change waits for a reset of the GPU

	// Instances are the GPU's MIG instances in the order of their indexes; none unless MIGEnabled.
	Instances []Instance `json:"instances,omitempty"`

	// PCIPath is the root complex ("pci0000:16") and the PCI functions from there down to the GPU's own, as
	// sysfs names them: the longer the part that two GPUs share, the closer they are. Empty when unknown.
	PCIPath []string `json:"pciPath,omitempty"`
	// NVLinks are the active NVLinks by where they lead, sorted by remote.
	NVLinks []NVLink `json:"nvlinks,omitempty"`

	// Fabric is nil where the GPU is on no NVLink fabric.
	Fabric *Fabric `json:"fabric,omitempty"`

	Health Health `json:"health"`
	// Notices are what somebody should know or plan for while the GPU may be used; sorted by code.
	Notices []Notice `json:"notices,omitempty"`
	// Stats is nil when the last sample failed or has not happened.
	Stats *Stats `json:"stats,omitempty"`

	// XIDs and ReadErrors count since the agent started and never decrease; sorted by code and operation.
	XIDs       []XIDCount  `json:"xids,omitempty"`
	ReadErrors []ReadError `json:"readErrors,omitempty"`
	// LastSample is the time of the last complete sample; zero before the first.
	LastSample time.Time `json:"lastSample,omitzero"`
}

// Instance is one MIG device: a compute instance in a GPU instance. It has no health of its own: what ails
// its GPU ails it.
type Instance struct {
	UUID    UUID   `json:"uuid"`    // "MIG-…"
	Index   int    `json:"index"`   // of nvmlDeviceGetMigDeviceHandleByIndex; gaps are possible
	GI      int    `json:"gi"`      // GPU instance id
	CI      int    `json:"ci"`      // compute instance id
	Profile string `json:"profile"` // "1g.10gb", "1g.10gb+me": the part after "MIG " in the device's name; empty when it has none
	Memory  uint64 `json:"memory"`  // bytes

	// The minors of /dev/nvidia-caps/nvidia-cap<minor>, from /proc/driver/nvidia-caps/mig-minors; -1 unknown.
	GIMinor int `json:"giMinor"`
	CIMinor int `json:"ciMinor"`

	// From nvmlDeviceGetAttributes_v2; 0 when it does not say.
	Multiprocessors int     `json:"multiprocessors"`
	GISlices        int     `json:"giSlices"`
	CISlices        int     `json:"ciSlices"`
	Engines         Engines `json:"engines"`

	// Stats are the few readings that NVML gives for a GPU instance: its compute instances share them.
	// Nil when the last sample of the GPU failed.
	Stats *Stats `json:"stats,omitempty"`
}

// Engines are the numbers of a MIG device's engines, shared ones included.
type Engines struct {
	Copy    int `json:"copy"`
	Decoder int `json:"decoder"`
	Encoder int `json:"encoder"`
	JPEG    int `json:"jpeg"`
	OFA     int `json:"ofa"`
}

// NVLink is a bundle of links from one GPU to one place.
type NVLink struct {
	Remote string `json:"remote"` // PCI bus id of the peer GPU, in Device.PCIBusID's form; "" is the node's NVSwitches
	Count  int    `json:"count"`
}

// Fabric is the NVLink fabric membership that nvmlDeviceGetGpuFabricInfoV reports once registered.
type Fabric struct {
	ClusterUUID string `json:"clusterUUID"`
	CliqueID    uint32 `json:"cliqueID"`
}

// XIDCount is how often the driver reported one XID on one GPU, and when last.
type XIDCount struct {
	Code  uint64    `json:"code"`
	Count uint64    `json:"count"`
	Last  time.Time `json:"last"`
}

// ReadError is how often one NVML operation failed on one GPU, by NVML's return name.
type ReadError struct {
	Op     string `json:"op"`     // "memory", "utilization"
	Return string `json:"return"` // "ERROR_GPU_IS_LOST"
	Count  uint64 `json:"count"`
}

// Device returns the GPU with the given UUID, or nil.
func (s *Snapshot) Device(id UUID) *Device {
	if s == nil {
		return nil
	}
	for i := range s.Devices {
		if s.Devices[i].UUID == id {
			return &s.Devices[i]
		}
	}
	return nil
}

// HealthyCount is the number of GPUs that may be given to pods.
func (s *Snapshot) HealthyCount() int {
	n := 0
	for i := range s.Devices {
		if s.Devices[i].Health.OK() {
			n++
		}
	}
	return n
}
