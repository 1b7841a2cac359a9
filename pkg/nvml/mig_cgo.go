//go:build cgo

package nvml

import (
	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// migSymbols are all that it takes to list MIG devices. Tables, never written to.
var migSymbols = []string{
	"nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMigDeviceHandleByIndex",
	"nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId",
}

var attributeSymbols = sym("nvmlDeviceGetAttributes_v2", "nvmlDeviceGetAttributes")

// cInstance is one MIG device behind NVML.
type cInstance struct {
	handle gonvml.Device
	gpm    *gpm // of its GPU instance; nil before the first opGPM
}

// Partition lists what there is now: a MIG device's handle may be another one's after a change, so none is
// kept from the last time.
func (c *cCard) Partition(d *gpu.Device) code {
	// Before driver 450, or before Ampere: what is not there must not make a GPU unreadable.
	if !c.driver.has("nvmlDeviceGetMigMode") || d.ComputeMajor > 0 && d.ComputeMajor < 8 {
		return success
	}
	mode, pending, ret := c.handle.GetMigMode()
	switch {
	case code(ret).unsupported():
		d.MIGCapable, d.MIGEnabled, d.MIGPending, d.Instances = false, false, false, nil
		return success
	case ret != gonvml.SUCCESS:
		return code(ret)
	}
	var instances []gpu.Instance
	handles := map[gpu.UUID]gonvml.Device{}
	if mode == gonvml.DEVICE_MIG_ENABLE {
		if instances, ret = c.listInstances(handles); ret != gonvml.SUCCESS {
			return code(ret)
		}
	}
	c.keepInstances(handles)
	d.MIGCapable, d.MIGEnabled, d.MIGPending = true, mode == gonvml.DEVICE_MIG_ENABLE, mode != pending
	d.Instances = instances
	return success
}

// keepInstances takes over the handles of the MIG devices that there are, and forgets the others.
func (c *cCard) keepInstances(handles map[gpu.UUID]gonvml.Device) {
	kept := map[gpu.UUID]*cInstance{}
	for uuid, in := range c.mig {
		if _, there := handles[uuid]; there {
			kept[uuid] = in
		} else if in.gpm != nil {
			in.gpm.free()
		}
	}
	for uuid, h := range handles {
		if kept[uuid] == nil {
			kept[uuid] = &cInstance{}
		}
		kept[uuid].handle = h
	}
	c.mig = kept
}

func (c *cCard) listInstances(handles map[gpu.UUID]gonvml.Device) ([]gpu.Instance, gonvml.Return) {
	for _, name := range migSymbols {
		if !c.driver.has(name) {
			return nil, gonvml.ERROR_FUNCTION_NOT_FOUND
		}
	}
	n, ret := c.handle.GetMaxMigDeviceCount()
	if ret != gonvml.SUCCESS {
		return nil, ret
	}
	var instances []gpu.Instance
	for i := range n {
		h, ret := c.handle.GetMigDeviceHandleByIndex(i)
		if ret == gonvml.ERROR_NOT_FOUND { // a gap
			continue
		}
		if ret != gonvml.SUCCESS {
			return nil, ret
		}
		in, ret := c.instance(i, h)
		if ret != gonvml.SUCCESS {
			return nil, ret
		}
		handles[in.UUID] = h
		instances = append(instances, in)
	}
	return instances, gonvml.SUCCESS
}

// instance identifies a MIG device. It needs all but the attributes.
func (c *cCard) instance(index int, h gonvml.Device) (gpu.Instance, gonvml.Return) {
	in := gpu.Instance{Index: index, GIMinor: -1, CIMinor: -1}
	uuid, ret := h.GetUUID()
	if ret != gonvml.SUCCESS {
		return in, ret
	}
	if in.GI, ret = h.GetGpuInstanceId(); ret != gonvml.SUCCESS {
		return in, ret
	}
	if in.CI, ret = h.GetComputeInstanceId(); ret != gonvml.SUCCESS {
		return in, ret
	}
	name, ret := h.GetName()
	if ret != gonvml.SUCCESS {
		return in, ret
	}
	in.UUID, in.Profile = gpu.UUID(uuid), migProfile(name)
	if !c.driver.has(attributeSymbols...) {
		return in, gonvml.SUCCESS
	}
	if a, ret := h.GetAttributes(); ret == gonvml.SUCCESS {
		in.Memory = a.MemorySizeMB << 20
		in.Multiprocessors = int(a.MultiprocessorCount)
		in.GISlices, in.CISlices = int(a.GpuInstanceSliceCount), int(a.ComputeInstanceSliceCount)
		in.Engines = gpu.Engines{
			Copy: int(a.SharedCopyEngineCount), Decoder: int(a.SharedDecoderCount), Encoder: int(a.SharedEncoderCount),
			JPEG: int(a.SharedJpegCount), OFA: int(a.SharedOfaCount),
		}
	}
	return in, gonvml.SUCCESS
}

// ReadInstance asks the MIG device's own handle, but for GPM, whose samples are taken from the GPU by the id
// of the GPU instance.
func (c *cCard) ReadInstance(in gpu.Instance, o op, s *gpu.Stats) code {
	mig, ok := c.mig[in.UUID]
	if !ok {
		return errNotFound
	}
	if o != opGPM {
		one := cCard{driver: c.driver, handle: mig.handle}
		return one.Read(o, s)
	}
	if !c.driver.has("nvmlGpmMigSampleGet") {
		return errFunctionNotFound
	}
	if mig.gpm == nil {
		g, ret := newGPM(c.driver, mig.handle)
		if ret != gonvml.SUCCESS {
			return code(ret)
		}
		mig.gpm = g
	}
	return code(mig.gpm.read(c.driver, func(sample gonvml.GpmSample) gonvml.Return {
		return c.handle.GpmMigSampleGet(in.GI, sample)
	}, s))
}
