package exporter

import (
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// dcgmLabels are dcgm-exporter's. It renamed Hostname to hostname in 4.8.3; both are here, so that
// queries written before and after work.
var dcgmLabels = []string{ //nolint:gochecknoglobals // a constant table
	"gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "hostname", "DCGM_FI_DRIVER_VERSION",
}

func dcgmValues(host string) func(*device) []string {
	return func(d *device) []string {
		index := strconv.Itoa(d.Index)
		return []string{index, string(d.UUID), d.PCIBusID, "nvidia" + index, d.Name, host, host, d.driver.Version}
	}
}

// dcgmSchema shows a GPU that is split as dcgm-exporter does: a row for each GPU instance and none for the GPU.
func dcgmSchema(host string) func(chan<- prometheus.Metric, *device) {
	values := dcgmValues(host)
	whole := newView(dcgmLabels, values, dcgmFamilies())
	split := newView(slices.Concat(dcgmLabels, []string{"GPU_I_PROFILE", "GPU_I_ID"}), func(p *part) []string {
		return append(values(p.device), p.profile, strconv.Itoa(p.gi))
	}, partFamilies())
	return func(ch chan<- prometheus.Metric, d *device) {
		parts := d.parts()
		for _, p := range parts {
			split.collect(ch, p)
		}
		if len(parts) == 0 {
			whole.collect(ch, d)
		}
	}
}

// part is a GPU instance as dcgm-exporter shows it: the GPU's values, with its own memory and activity in
// their place. What is the whole board's, such as power, is repeated on every row: a sum counts it too often,
// in dcgm-exporter too.
type part struct {
	*device
	gi      int
	profile string
}

// parts are the GPU instances of a GPU that is split. The compute instances of one are one row: their labels
// would be the same.
func (d *device) parts() []*part {
	var parts []*part
	for _, in := range d.instances {
		i := slices.IndexFunc(parts, func(p *part) bool { return p.gi == in.GI })
		if i < 0 {
			board, view := *d.Device, *d
			board.Stats = partStats(board.Stats, in.Stats)
			view.Device, view.holders = &board, nil
			i = len(parts)
			parts = append(parts, &part{device: &view, gi: in.GI, profile: giProfile(in.Profile)})
		}
		parts[i].holders = distinct(slices.Concat(parts[i].holders, in.holders))
	}
	return parts
}

// giProfile is the profile of the GPU instance that a MIG device is in: "1c.3g.40gb" is in a "3g.40gb".
func giProfile(profile string) string {
	if ci, gi, ok := strings.Cut(profile, "."); ok && strings.HasSuffix(ci, "c") {
		return gi
	}
	return profile
}

// partStats are the board's readings with a GPU instance's own in their place, or nothing there: GPM does not
// count PCIe by instance.
func partStats(board, own *gpu.Stats) *gpu.Stats {
	if board == nil {
		return nil
	}
	if own == nil {
		own = &gpu.Stats{}
	}
	s := *board
	s.MemoryTotal, s.MemoryUsed, s.MemoryFree, s.MemoryReserved = own.MemoryTotal, own.MemoryUsed, own.MemoryFree, own.MemoryReserved
	s.GraphicsEngineActive, s.SMActive, s.SMOccupancy = own.GraphicsEngineActive, own.SMActive, own.SMOccupancy
	s.TensorActive, s.DRAMActive = own.TensorActive, own.DRAMActive
	s.PCIeTransmitPerSec, s.PCIeReceivePerSec = nil, nil
	return &s
}

// partFamilies are those of a whole GPU.
func partFamilies() []family[*part] {
	var parts []family[*part]
	for _, f := range dcgmFamilies() {
		parts = append(parts, family[*part]{
			name: f.name, kind: f.kind, unit: f.unit, help: f.help, labels: f.labels, board: f.board,
			read: func(p *part, to emit) { f.read(p.device, to) },
		})
	}
	return parts
}

// dcgmFamilies are frozen: names, types, units and help as in dcgm-exporter 4.5.3-4.8.2, even where the
// type is wrong (NVLINK_BANDWIDTH_TOTAL is a rate). Its default set, and of the optional one what
// alerts commonly use: FB_TOTAL, ECC totals, violations, SM activity.
func dcgmFamilies() []family[*device] {
	return []family[*device]{
		{name: "DCGM_FI_DEV_SM_CLOCK", kind: gauge, unit: "MHz", help: "SM clock frequency (in MHz).",
			read: stat(megahertz, func(s *gpu.Stats) *float64 { return s.SMClock })},
		{name: "DCGM_FI_DEV_MEM_CLOCK", kind: gauge, unit: "MHz", help: "Memory clock frequency (in MHz).",
			read: stat(megahertz, func(s *gpu.Stats) *float64 { return s.MemoryClock })},
		{name: "DCGM_FI_DEV_MEMORY_TEMP", kind: gauge, unit: "°C", help: "Memory temperature (in C).",
			read: stat(whole, func(s *gpu.Stats) *float64 { return s.MemoryTemperature })},
		{name: "DCGM_FI_DEV_GPU_TEMP", kind: gauge, unit: "°C", help: "GPU temperature (in C).",
			read: stat(whole, func(s *gpu.Stats) *float64 { return s.Temperature })},
		{name: "DCGM_FI_DEV_POWER_USAGE", kind: gauge, unit: "W", help: "Power draw (in W).",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.Power })},
		{name: "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", kind: counter, unit: "mJ", help: "Total energy consumption since boot (in mJ).",
			read: stat(millijoules, func(s *gpu.Stats) *float64 { return s.Energy })},
		{name: "DCGM_FI_DEV_PCIE_REPLAY_COUNTER", kind: counter, unit: "1", help: "Total number of PCIe retries.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.PCIeReplays })},
		{name: "DCGM_FI_DEV_GPU_UTIL", kind: gauge, unit: "%", help: "GPU utilization (in %).",
			read: stat(percent, func(s *gpu.Stats) *float64 { return s.Utilization })},
		{name: "DCGM_FI_DEV_MEM_COPY_UTIL", kind: gauge, unit: "%", help: "Memory utilization (in %).",
			read: stat(percent, func(s *gpu.Stats) *float64 { return s.MemoryControllerUtilization })},
		{name: "DCGM_FI_DEV_ENC_UTIL", kind: gauge, unit: "%", help: "Encoder utilization (in %).",
			read: stat(percent, func(s *gpu.Stats) *float64 { return s.EncoderUtilization })},
		{name: "DCGM_FI_DEV_DEC_UTIL", kind: gauge, unit: "%", help: "Decoder utilization (in %).",
			read: stat(percent, func(s *gpu.Stats) *float64 { return s.DecoderUtilization })},
		{name: "DCGM_FI_DEV_XID_ERRORS", kind: gauge, unit: "XID", help: "Value of the last XID error encountered.",
			read: func(d *device, to emit) { to(float64(d.xid)) }},
		{name: "DCGM_FI_DEV_POWER_VIOLATION", kind: counter, unit: "ns", help: "Throttling duration due to power constraints (in ns).",
			read: stat(nanoseconds, func(s *gpu.Stats) *float64 { return s.ThrottlePower })},
		{name: "DCGM_FI_DEV_THERMAL_VIOLATION", kind: counter, unit: "ns", help: "Throttling duration due to thermal constraints (in ns).",
			read: stat(nanoseconds, func(s *gpu.Stats) *float64 { return s.ThrottleThermal })},
		{name: "DCGM_FI_DEV_FB_TOTAL", kind: gauge, unit: "MiB", help: "Total framebuffer memory (in MiB).",
			read: stat(mebibytes, func(s *gpu.Stats) *uint64 { return s.MemoryTotal })},
		{name: "DCGM_FI_DEV_FB_FREE", kind: gauge, unit: "MiB", help: "Framebuffer memory free (in MiB).",
			read: stat(mebibytes, func(s *gpu.Stats) *uint64 { return s.MemoryFree })},
		{name: "DCGM_FI_DEV_FB_USED", kind: gauge, unit: "MiB", help: "Framebuffer memory used (in MiB).",
			read: stat(mebibytes, func(s *gpu.Stats) *uint64 { return s.MemoryUsed })},
		{name: "DCGM_FI_DEV_FB_RESERVED", kind: gauge, unit: "MiB", help: "Framebuffer memory reserved (in MiB).",
			read: stat(mebibytes, func(s *gpu.Stats) *uint64 { return s.MemoryReserved })},
		{name: "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", kind: counter, unit: "1", help: "Total number of single-bit volatile ECC errors.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.ECCCorrectedVolatile })},
		{name: "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", kind: counter, unit: "1", help: "Total number of double-bit volatile ECC errors.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.ECCUncorrectedVolatile })},
		{name: "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", kind: counter, unit: "1", help: "Total number of single-bit persistent ECC errors.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.ECCCorrectedAggregate })},
		{name: "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", kind: counter, unit: "1", help: "Total number of double-bit persistent ECC errors.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.ECCUncorrectedAggregate })},
		{name: "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", kind: counter, unit: "MB/s", help: "Total number of NVLink bandwidth counters for all lanes.",
			read: stat(kibibytesPerMillisecond, func(s *gpu.Stats) *float64 { return s.NVLinkBytesPerSecond })},
		{name: "DCGM_FI_DEV_VGPU_LICENSE_STATUS", kind: gauge, unit: "0 or 1", help: "vGPU License status",
			read: truth(func(s *gpu.Stats) *bool { return s.VGPULicensed })},
		{name: "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", kind: counter, unit: "rows", help: "Number of remapped rows for uncorrectable errors",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.RemappedRowsUncorrectable })},
		{name: "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", kind: counter, unit: "rows", help: "Number of remapped rows for correctable errors",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.RemappedRowsCorrectable })},
		{name: "DCGM_FI_DEV_ROW_REMAP_FAILURE", kind: gauge, unit: "0 or 1", help: "Whether remapping of rows has failed",
			read: truth(func(s *gpu.Stats) *bool { return s.RowRemapFailed })},
		{name: "DCGM_FI_PROF_GR_ENGINE_ACTIVE", kind: gauge, unit: "0 to 1", help: "Ratio of time the graphics engine is active.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.GraphicsEngineActive })},
		{name: "DCGM_FI_PROF_SM_ACTIVE", kind: gauge, unit: "0 to 1", help: "The ratio of cycles an SM has at least 1 warp assigned.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.SMActive })},
		{name: "DCGM_FI_PROF_SM_OCCUPANCY", kind: gauge, unit: "0 to 1", help: "The ratio of number of warps resident on an SM.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.SMOccupancy })},
		{name: "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", kind: gauge, unit: "0 to 1", help: "Ratio of cycles the tensor (HMMA) pipe is active.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.TensorActive })},
		{name: "DCGM_FI_PROF_DRAM_ACTIVE", kind: gauge, unit: "0 to 1", help: "Ratio of cycles the device memory interface is active sending or receiving data.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.DRAMActive })},
		{name: "DCGM_FI_PROF_PCIE_TX_BYTES", kind: gauge, unit: "bytes/s", help: "The rate of data transmitted over the PCIe bus - including both protocol headers and data payloads - in bytes per second.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.PCIeTransmitPerSec })},
		{name: "DCGM_FI_PROF_PCIE_RX_BYTES", kind: gauge, unit: "bytes/s", help: "The rate of data received over the PCIe bus - including both protocol headers and data payloads - in bytes per second.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.PCIeReceivePerSec })},
	}
}
