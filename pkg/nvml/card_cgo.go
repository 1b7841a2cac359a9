//go:build cgo

package nvml

import (
	"encoding/binary"
	"encoding/hex"
	"math"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// cCard is one GPU behind NVML. Every call is made only after has found its symbol.
type cCard struct {
	driver *cDriver
	handle gonvml.Device
	gpm    *gpm // nil before the first opGPM
	mig    map[gpu.UUID]*cInstance
}

func (c *cCard) Close() {
	if c.gpm != nil {
		c.gpm.free()
	}
	c.keepInstances(nil)
}

func (c *cCard) Identify(d *gpu.Device) code {
	h, has := c.handle, c.driver.has
	uuid, ret := h.GetUUID()
	if ret != gonvml.SUCCESS {
		return code(ret)
	}
	name, ret := h.GetName()
	if ret != gonvml.SUCCESS {
		return code(ret)
	}
	pci, ret := h.GetPciInfo()
	if ret != gonvml.SUCCESS {
		return code(ret)
	}
	d.UUID, d.Name, d.PCIBusID = gpu.UUID(uuid), name, busID(pci)
	if has("nvmlDeviceGetMinorNumber") {
		if n, ret := h.GetMinorNumber(); ret == gonvml.SUCCESS {
			d.Minor = n
		}
	}
	if has("nvmlDeviceGetSerial") {
		if serial, ret := h.GetSerial(); ret == gonvml.SUCCESS {
			d.Serial = serial
		}
	}
	if has("nvmlDeviceGetVbiosVersion") {
		if v, ret := h.GetVbiosVersion(); ret == gonvml.SUCCESS {
			d.VBIOS = v
		}
	}
	if has("nvmlDeviceGetCudaComputeCapability") {
		if major, minor, ret := h.GetCudaComputeCapability(); ret == gonvml.SUCCESS {
			d.ComputeMajor, d.ComputeMinor = major, minor
		}
	}
	var s gpu.Stats
	if c.Read(opMemory, &s) == success {
		d.Memory = *s.MemoryTotal
	}
	c.identifyFabric(d)
	return success
}

// identifyFabric reads the fabric membership, which is valid once the GPU has registered with the fabric
// manager and the registration went well (nvmlGpuFabricInfo_v2_t in nvml.h).
func (c *cCard) identifyFabric(d *gpu.Device) {
	if !c.driver.has("nvmlDeviceGetGpuFabricInfoV") {
		return
	}
	f, ret := c.handle.GetGpuFabricInfoV().V2()
	if ret != gonvml.SUCCESS || f.State != gonvml.GPU_FABRIC_STATE_COMPLETED || code(f.Status) != success {
		return
	}
	h := hex.EncodeToString(f.ClusterUuid[:])
	d.Fabric = &gpu.Fabric{
		ClusterUUID: h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:],
		CliqueID:    f.CliqueId,
	}
}

func (c *cCard) Read(o op, s *gpu.Stats) code {
	r, ok := cReads[o]
	if !ok || !c.driver.has(r.symbols...) {
		return errFunctionNotFound
	}
	return code(r.read(c, s))
}

// field reads one field value as an unsigned number, whatever type it comes as.
func (c *cCard) field(id, scope uint32, as gonvml.ValueType) (uint64, gonvml.Return) {
	v := []gonvml.FieldValue{{FieldId: id, ScopeId: scope}}
	if ret := c.handle.GetFieldValues(v); ret != gonvml.SUCCESS {
		return 0, ret
	}
	if ret := gonvml.Return(v[0].NvmlReturn); ret != gonvml.SUCCESS {
		return 0, ret
	}
	if as == anyType {
		as = gonvml.ValueType(v[0].ValueType)
	}
	word := binary.NativeEndian.Uint64(v[0].Value[:])
	switch as {
	case gonvml.VALUE_TYPE_DOUBLE:
		return uint64(math.Float64frombits(word)), gonvml.SUCCESS
	case gonvml.VALUE_TYPE_UNSIGNED_INT, gonvml.VALUE_TYPE_SIGNED_INT:
		return uint64(binary.NativeEndian.Uint32(v[0].Value[:])), gonvml.SUCCESS
	case gonvml.VALUE_TYPE_UNSIGNED_SHORT:
		return uint64(binary.NativeEndian.Uint16(v[0].Value[:])), gonvml.SUCCESS
	}
	return word, gonvml.SUCCESS
}

const (
	anyType  = gonvml.ValueType(math.MaxInt32) // the type that the answer names
	allLinks = math.MaxUint32                  // scope of the NVLink counters
)

// busID is the address of a PCI device in gpu.Device's form.
func busID(pci gonvml.PciInfo) string {
	if id := cString(pci.BusId[:]); id != "" {
		return id
	}
	return cString(pci.BusIdLegacy[:]) // the first version of the call fills only this one
}

// cString is a NUL-terminated C string.
func cString(s []int8) string {
	b := make([]byte, 0, len(s))
	for _, c := range s {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}
