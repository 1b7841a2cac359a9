//go:build cgo

package nvml

import (
	"math"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// gpm holds two samples of the performance monitors of a GPU or of a MIG GPU instance (Hopper and newer): metrics are what happened
// between them, so the first reading gives none.
type gpm struct {
	now, before gonvml.GpmSample
	sampled     bool                     // before holds a sample
	get         gonvml.GpmMetricsGetType // 19 KB, so it is kept
}

// free returns the samples: nothing in NVML does it for us.
func (g *gpm) free() {
	g.now.Free()
	g.before.Free()
}

// mebibyte is the unit of GPM's rates.
const mebibyte = 1 << 20

// gpmMetrics is a table, never written to: where each GPM metric goes.
var gpmMetrics = []struct {
	id  gonvml.GpmMetricId
	set func(*gpu.Stats, float64)
}{
	{gonvml.GPM_METRIC_GRAPHICS_UTIL, func(s *gpu.Stats, v float64) { s.GraphicsEngineActive = new(v / 100) }},
	{gonvml.GPM_METRIC_SM_UTIL, func(s *gpu.Stats, v float64) { s.SMActive = new(v / 100) }},
	{gonvml.GPM_METRIC_SM_OCCUPANCY, func(s *gpu.Stats, v float64) { s.SMOccupancy = new(v / 100) }},
	{gonvml.GPM_METRIC_ANY_TENSOR_UTIL, func(s *gpu.Stats, v float64) { s.TensorActive = new(v / 100) }},
	{gonvml.GPM_METRIC_DRAM_BW_UTIL, func(s *gpu.Stats, v float64) { s.DRAMActive = new(v / 100) }},
	{gonvml.GPM_METRIC_PCIE_TX_PER_SEC, func(s *gpu.Stats, v float64) { s.PCIeTransmitPerSec = new(uint64(v * mebibyte)) }},
	{gonvml.GPM_METRIC_PCIE_RX_PER_SEC, func(s *gpu.Stats, v float64) { s.PCIeReceivePerSec = new(uint64(v * mebibyte)) }},
}

func readGPM(c *cCard, s *gpu.Stats) gonvml.Return {
	if c.gpm == nil {
		g, ret := newGPM(c.driver, c.handle)
		if ret != gonvml.SUCCESS {
			return ret
		}
		c.gpm = g
	}
	return c.gpm.read(c.driver, c.handle.GpmSampleGet, s)
}

// read takes a sample and writes what happened since the one before into s.
func (g *gpm) read(d *cDriver, sample func(gonvml.GpmSample) gonvml.Return, s *gpu.Stats) gonvml.Return {
	if ret := sample(g.now); ret != gonvml.SUCCESS {
		return ret
	}
	defer func() { g.now, g.before, g.sampled = g.before, g.now, true }()
	if !g.sampled {
		return gonvml.SUCCESS
	}
	g.get.NumMetrics, g.get.Sample1, g.get.Sample2 = uint32(len(gpmMetrics)), g.before, g.now
	for i, m := range gpmMetrics {
		g.get.Metrics[i] = gonvml.GpmMetric{MetricId: uint32(m.id)}
	}
	if ret := d.api.GpmMetricsGet(&g.get); ret != gonvml.SUCCESS {
		return ret
	}
	for i, m := range gpmMetrics {
		v := g.get.Metrics[i]
		if v.NvmlReturn == uint32(success) && !math.IsNaN(v.Value) && v.Value >= 0 {
			m.set(s, v.Value)
		}
	}
	return gonvml.SUCCESS
}

// newGPM makes room for two samples of a GPU or a MIG device, if it has GPM.
func newGPM(d *cDriver, handle gonvml.Device) (*gpm, gonvml.Return) {
	for _, name := range []string{"nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleFree", "nvmlGpmMetricsGet"} {
		if !d.has(name) {
			return nil, gonvml.ERROR_FUNCTION_NOT_FOUND
		}
	}
	support, ret := handle.GpmQueryDeviceSupport()
	if ret != gonvml.SUCCESS {
		return nil, ret
	}
	if support.IsSupportedDevice == 0 {
		return nil, gonvml.ERROR_NOT_SUPPORTED
	}
	g := &gpm{}
	if g.now, ret = d.api.GpmSampleAlloc(); ret != gonvml.SUCCESS {
		return nil, ret
	}
	if g.before, ret = d.api.GpmSampleAlloc(); ret != gonvml.SUCCESS {
		g.now.Free()
		return nil, ret
	}
	return g, gonvml.SUCCESS
}
