package exporter

import (
	"cmp"
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// nativeLabels are few: what else is known of a GPU is on gpu_info, to be joined by uuid.
var nativeLabels = []string{"gpu", "uuid"} //nolint:gochecknoglobals // a constant table

func nativeValues(d *device) []string {
	return []string{strconv.Itoa(d.Index), string(d.UUID)}
}

// nativeSchema shows a GPU, and each of its MIG instances in families of their own: a sum over GPUs counts
// nothing twice.
func nativeSchema() func(chan<- prometheus.Metric, *device) {
	gpus := newView(nativeLabels, nativeValues, nativeFamilies())
	instances := newView(migLabels, migValues, migFamilies())
	return func(ch chan<- prometheus.Metric, d *device) {
		gpus.collect(ch, d)
		for _, in := range d.instances {
			instances.collect(ch, in)
		}
	}
}

func nativeFamilies() []family[*device] {
	return append(boardFamilies(), readingFamilies()...)
}

// boardFamilies persist through a failed sample.
func boardFamilies() []family[*device] {
	return []family[*device]{
		{name: "gpu_info", kind: gauge, unit: "1", board: true, help: "Always 1: what does not change about the GPU.",
			labels: []string{"model", "pci_bus_id", "serial", "vbios", "driver_version", "nvml_version", "compute_capability", "numa_node"},
			read: func(d *device, to emit) {
				to(1, d.Name, d.PCIBusID, d.Serial, d.VBIOS, d.driver.Version, d.driver.NVMLVersion,
					fmt.Sprintf("%d.%d", d.ComputeMajor, d.ComputeMinor), strconv.Itoa(d.NUMANode))
			}},
		{name: "gpu_up", kind: gauge, unit: "0 or 1", board: true, help: "1 if the last sample of the GPU succeeded.",
			read: func(d *device, to emit) { to(oneIf(d.Stats != nil)) }},
		{name: "gpu_last_collect_timestamp_seconds", kind: gauge, unit: "seconds", board: true, help: "Unix time of the last complete sample of the GPU.",
			read: func(d *device, to emit) {
				if !d.LastSample.IsZero() {
					to(unixSeconds(d.LastSample))
				}
			}},
		{name: "gpu_collect_errors_total", kind: counter, unit: "1", board: true, help: "Failed NVML reads since the agent started, by operation and by what NVML returned.",
			labels: []string{"op", "nvml_return"},
			read: func(d *device, to emit) {
				for _, e := range d.ReadErrors {
					to(float64(e.Count), e.Op, e.Return)
				}
			}},
		{name: "gpu_health", kind: gauge, unit: "0 or 1", board: true, dcgm: "DCGM_EXP_GPU_HEALTH_STATUS", help: "1 if the GPU may be given to pods, as the kubelet is told.",
			read: func(d *device, to emit) { to(oneIf(d.Health.OK())) }},
		{name: "gpu_health_reason", kind: gauge, unit: "1", board: true, help: "1 while the GPU is unhealthy: why, and what it needs. Absent while it is healthy.",
			labels: []string{"reason", "needs"},
			read: func(d *device, to emit) {
				if !d.Health.OK() {
					to(1, string(d.Health.Reason), string(d.Health.Needs))
				}
			}},
		{name: "gpu_unhealthy_since_timestamp_seconds", kind: gauge, unit: "seconds", board: true, help: "Unix time since which the GPU is unhealthy for the present reason. Absent while it is healthy.",
			read: func(d *device, to emit) {
				if !d.Health.OK() && !d.Health.Since.IsZero() {
					to(unixSeconds(d.Health.Since))
				}
			}},
		{name: "gpu_notice", kind: gauge, unit: "1", board: true, help: "1 for each thing to know or plan for of a GPU that may be used all the same.",
			labels: []string{"code", "needs"}, read: notices},
		{name: "gpu_xid_errors_total", kind: counter, unit: "1", board: true, dcgm: "DCGM_EXP_XID_ERRORS_COUNT", help: "XID errors since the agent started, by code.",
			labels: []string{"xid"},
			read: func(d *device, to emit) {
				for _, x := range d.XIDs {
					to(float64(x.Count), decimal(x.Code))
				}
			}},
		{name: "gpu_xid_last_timestamp_seconds", kind: gauge, unit: "seconds", board: true, help: "Unix time of the last XID error, by code.",
			labels: []string{"xid"},
			read: func(d *device, to emit) {
				for _, x := range d.XIDs {
					to(unixSeconds(x.Last), decimal(x.Code))
				}
			}},
		{name: "gpu_allocated", kind: gauge, unit: "0 or 1", help: "1 if the kubelet gave the GPU, a share or a MIG instance of it, to a container.",
			read: func(d *device, to emit) {
				if d.known {
					to(oneIf(len(d.users) > 0))
				}
			}},
		{name: "gpu_allocations", kind: gauge, unit: "1", help: "Containers that hold the GPU, a share or a MIG instance of it.",
			read: func(d *device, to emit) {
				if d.known {
					to(float64(len(d.users)))
				}
			}},
		{name: "gpu_allocation_info", kind: gauge, unit: "1", board: true, labels: podLabels, help: "Always 1: a container that holds the GPU, a share or a MIG instance of it. To be joined by uuid where several do.",
			read: func(d *device, to emit) { allocations(d.users, to) }},
		{name: "gpu_mig_mode", kind: gauge, unit: "0 or 1", board: true, help: "1 if the GPU is split into MIG instances. Absent where it cannot be.",
			read: func(d *device, to emit) {
				if d.MIGCapable {
					to(oneIf(d.MIGEnabled))
				}
			}},
		{name: "gpu_mig_mode_pending", kind: gauge, unit: "0 or 1", board: true, help: "1 if the MIG mode was changed and the change waits for a reset of the GPU. Absent where there is no MIG.",
			read: func(d *device, to emit) {
				if d.MIGCapable {
					to(oneIf(d.MIGPending))
				}
			}},
		{name: "gpu_nvlinks", kind: gauge, unit: "1", board: true, labels: []string{"remote"}, help: "Active NVLinks by where they lead: to the node's NVSwitches (nvswitch) or to the GPU with this PCI address.",
			read: func(d *device, to emit) {
				for _, l := range d.NVLinks {
					to(float64(l.Count), cmp.Or(l.Remote, "nvswitch"))
				}
			}},
	}
}

// readingFamilies are absent while the GPU cannot be read, each for itself where it is not supported.
func readingFamilies() []family[*device] {
	return []family[*device]{
		{name: "gpu_utilization_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_DEV_GPU_UTIL", help: "Share of time that any kernel ran. Absent while MIG is on.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.Utilization })},
		{name: "gpu_memory_controller_utilization_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_DEV_MEM_COPY_UTIL", help: "Share of time that device memory was read or written. Absent while MIG is on.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.MemoryControllerUtilization })},
		{name: "gpu_encoder_utilization_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_DEV_ENC_UTIL", help: "Video encoder use. Absent while MIG is on.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.EncoderUtilization })},
		{name: "gpu_decoder_utilization_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_DEV_DEC_UTIL", help: "Video decoder use. Absent while MIG is on.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.DecoderUtilization })},

		{name: "gpu_memory_total_bytes", kind: gauge, unit: "bytes", dcgm: "DCGM_FI_DEV_FB_TOTAL", help: "Device memory.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.MemoryTotal })},
		{name: "gpu_memory_used_bytes", kind: gauge, unit: "bytes", dcgm: "DCGM_FI_DEV_FB_USED", help: "Device memory in use, without the reserved part.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.MemoryUsed })},
		{name: "gpu_memory_free_bytes", kind: gauge, unit: "bytes", dcgm: "DCGM_FI_DEV_FB_FREE", help: "Device memory that is free.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.MemoryFree })},
		{name: "gpu_memory_reserved_bytes", kind: gauge, unit: "bytes", dcgm: "DCGM_FI_DEV_FB_RESERVED", help: "Device memory kept by driver and firmware.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.MemoryReserved })},
		{name: "gpu_memory_used_ratio", kind: gauge, unit: "0 to 1", help: "Used share of the device memory that is not reserved.", read: memoryUsedRatio},
		{name: "gpu_bar1_memory_total_bytes", kind: gauge, unit: "bytes", help: "Size of BAR1, the window through which the host maps device memory.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.BAR1Total })},
		{name: "gpu_bar1_memory_used_bytes", kind: gauge, unit: "bytes", help: "Part of BAR1 in use.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.BAR1Used })},

		{name: "gpu_temperature_celsius", kind: gauge, unit: "°C", dcgm: "DCGM_FI_DEV_GPU_TEMP", help: "Die temperature.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.Temperature })},
		{name: "gpu_memory_temperature_celsius", kind: gauge, unit: "°C", dcgm: "DCGM_FI_DEV_MEMORY_TEMP", help: "Memory temperature. Boards with HBM only.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.MemoryTemperature })},
		{name: "gpu_temperature_slowdown_threshold_celsius", kind: gauge, unit: "°C", help: "Die temperature at which clocks are held down.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.SlowdownTemperature })},
		{name: "gpu_temperature_shutdown_threshold_celsius", kind: gauge, unit: "°C", help: "Die temperature at which the GPU shuts down.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.ShutdownTemperature })},
		{name: "gpu_temperature_slowdown_margin_celsius", kind: gauge, unit: "°C", help: "Degrees left before clocks are held down.", read: slowdownMargin},
		{name: "gpu_fan_speed_ratio", kind: gauge, unit: "0 to 1", help: "Fan speed. Absent on passive boards.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.FanSpeed })},

		{name: "gpu_power_watts", kind: gauge, unit: "W", dcgm: "DCGM_FI_DEV_POWER_USAGE", help: "Power draw of the board, averaged over a second on Ampere and newer.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.Power })},
		{name: "gpu_power_limit_watts", kind: gauge, unit: "W", help: "Power limit that was asked for.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.PowerLimit })},
		{name: "gpu_power_limit_enforced_watts", kind: gauge, unit: "W", help: "Power limit in force.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.PowerLimitEnforced })},
		{name: "gpu_energy_joules_total", kind: counter, unit: "J", dcgm: "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", help: "Energy since the driver was loaded.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.Energy })},

		{name: "gpu_sm_clock_hertz", kind: gauge, unit: "Hz", dcgm: "DCGM_FI_DEV_SM_CLOCK", help: "Clock of the streaming multiprocessors.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.SMClock })},
		{name: "gpu_memory_clock_hertz", kind: gauge, unit: "Hz", dcgm: "DCGM_FI_DEV_MEM_CLOCK", help: "Clock of the memory.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.MemoryClock })},
		{name: "gpu_sm_clock_max_hertz", kind: gauge, unit: "Hz", help: "Highest clock of the streaming multiprocessors.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.SMClockMax })},
		{name: "gpu_memory_clock_max_hertz", kind: gauge, unit: "Hz", help: "Highest clock of the memory.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.MemoryClockMax })},
		{name: "gpu_performance_state", kind: gauge, unit: "0 to 15", help: "Performance state: 0 is the fastest.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.PerformanceState })},
		{name: "gpu_clocks_event_reason", kind: gauge, unit: "0 or 1", labels: []string{"reason"}, help: "1 for each reason that sets the clocks now.", read: clockReasons},
		{name: "gpu_throttle_seconds_total", kind: counter, unit: "seconds", labels: []string{"reason"}, dcgm: "DCGM_FI_DEV_POWER_VIOLATION, DCGM_FI_DEV_THERMAL_VIOLATION", help: "Time that clocks were held down since the driver was loaded.",
			read: several(
				stat(same, func(s *gpu.Stats) *float64 { return s.ThrottlePower }, "power"),
				stat(same, func(s *gpu.Stats) *float64 { return s.ThrottleThermal }, "thermal"))},

		{name: "gpu_pcie_replays_total", kind: counter, unit: "1", dcgm: "DCGM_FI_DEV_PCIE_REPLAY_COUNTER", help: "PCIe packets that were sent again.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.PCIeReplays })},
		{name: "gpu_pcie_link_generation", kind: gauge, unit: "1", help: "PCIe generation of the link now.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.PCIeLinkGeneration })},
		{name: "gpu_pcie_link_width", kind: gauge, unit: "lanes", help: "PCIe lanes of the link now.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.PCIeLinkWidth })},
		{name: "gpu_pcie_transmit_bytes_per_second", kind: gauge, unit: "bytes/s", dcgm: "DCGM_FI_PROF_PCIE_TX_BYTES", help: "PCIe bytes sent by the GPU, protocol overhead included.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.PCIeTransmitPerSec })},
		{name: "gpu_pcie_receive_bytes_per_second", kind: gauge, unit: "bytes/s", dcgm: "DCGM_FI_PROF_PCIE_RX_BYTES", help: "PCIe bytes received by the GPU, protocol overhead included.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.PCIeReceivePerSec })},
		{name: "gpu_nvlink_transmit_bytes_total", kind: counter, unit: "bytes", dcgm: "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", help: "NVLink data sent over all links since the driver was loaded.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.NVLinkTransmit })},
		{name: "gpu_nvlink_receive_bytes_total", kind: counter, unit: "bytes", dcgm: "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", help: "NVLink data received over all links since the driver was loaded.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.NVLinkReceive })},

		{name: "gpu_ecc_errors_total", kind: counter, unit: "1", labels: []string{"type", "scope"}, dcgm: "DCGM_FI_DEV_ECC_*_TOTAL", help: "ECC memory errors since the driver was loaded (volatile) and over the board's life (aggregate).",
			read: several(
				stat(same, func(s *gpu.Stats) *uint64 { return s.ECCCorrectedVolatile }, "corrected", "volatile"),
				stat(same, func(s *gpu.Stats) *uint64 { return s.ECCUncorrectedVolatile }, "uncorrected", "volatile"),
				stat(same, func(s *gpu.Stats) *uint64 { return s.ECCCorrectedAggregate }, "corrected", "aggregate"),
				stat(same, func(s *gpu.Stats) *uint64 { return s.ECCUncorrectedAggregate }, "uncorrected", "aggregate"))},
		{name: "gpu_remapped_rows", kind: gauge, unit: "rows", labels: []string{"cause"}, dcgm: "DCGM_FI_DEV_*CORRECTABLE_REMAPPED_ROWS", help: "Memory rows replaced by spare ones. Ampere and newer.",
			read: several(
				stat(same, func(s *gpu.Stats) *uint64 { return s.RemappedRowsCorrectable }, "correctable"),
				stat(same, func(s *gpu.Stats) *uint64 { return s.RemappedRowsUncorrectable }, "uncorrectable"))},
		{name: "gpu_row_remap_pending", kind: gauge, unit: "0 or 1", help: "1 if the GPU must be reset to finish replacing a memory row.",
			read: truth(func(s *gpu.Stats) *bool { return s.RowRemapPending })},
		{name: "gpu_row_remap_failed", kind: gauge, unit: "0 or 1", dcgm: "DCGM_FI_DEV_ROW_REMAP_FAILURE", help: "1 if a memory row could not be replaced: the GPU must be.",
			read: truth(func(s *gpu.Stats) *bool { return s.RowRemapFailed })},
		{name: "gpu_recovery_action", kind: gauge, unit: "0 to 7", help: "What the driver asks for: 0 nothing, 1 GPU reset, 2 node reboot, 3 drain P2P, 4 drain and reset, 5 recover IMEX, 6 bus reset, 7 system reboot.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.RecoveryAction })},
		{name: "gpu_sram_threshold_exceeded", kind: gauge, unit: "0 or 1", help: "1 if there were more uncorrectable SRAM errors than NVIDIA's field diagnostics allow: the board must be replaced.",
			read: truth(func(s *gpu.Stats) *bool { return s.SRAMThresholdExceeded })},
		{name: "gpu_fabric_state", kind: gauge, unit: "0 to 3", help: "Registration with the NVLink fabric: 0 not supported, 1 not started, 2 in progress, 3 completed.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.FabricState })},
		{name: "gpu_fabric_status", kind: gauge, unit: "nvmlReturn_t", help: "How the registration with the NVLink fabric ended: 0 is success.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.FabricStatus })},
		{name: "gpu_fabric_health_mask", kind: gauge, unit: "bit mask", help: "Health of the NVLink fabric as NVML's NVML_GPU_FABRIC_HEALTH_MASK_ gives it.",
			read: stat(same, func(s *gpu.Stats) *uint64 { return s.FabricHealth })},
		{name: "gpu_persistence_mode", kind: gauge, unit: "0 or 1", help: "1 if the driver keeps the GPU initialised without users.",
			read: truth(func(s *gpu.Stats) *bool { return s.PersistenceMode })},
		{name: "gpu_vgpu_licensed", kind: gauge, unit: "0 or 1", dcgm: "DCGM_FI_DEV_VGPU_LICENSE_STATUS", help: "1 if the vGPU is licensed. In guests only.",
			read: truth(func(s *gpu.Stats) *bool { return s.VGPULicensed })},

		{name: "gpu_graphics_engine_active_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_PROF_GR_ENGINE_ACTIVE", help: "Share of time that the graphics or compute engine was active. Hopper and newer.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.GraphicsEngineActive })},
		{name: "gpu_sm_active_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_PROF_SM_ACTIVE", help: "Share of cycles in which a multiprocessor had a warp, averaged over all. Hopper and newer.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.SMActive })},
		{name: "gpu_sm_occupancy_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_PROF_SM_OCCUPANCY", help: "Resident warps as a share of the most possible. Hopper and newer.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.SMOccupancy })},
		{name: "gpu_tensor_active_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", help: "Share of cycles in which a tensor pipe was active. Hopper and newer.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.TensorActive })},
		{name: "gpu_dram_active_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_PROF_DRAM_ACTIVE", help: "Share of cycles in which device memory moved data. Hopper and newer.",
			read: stat(same, func(s *gpu.Stats) *float64 { return s.DRAMActive })},
	}
}

// notices shows each code once: two notices of one code may differ in their text alone.
func notices(d *device, to emit) {
	seen := map[[2]string]bool{}
	for _, n := range d.Notices {
		if key := [2]string{string(n.Code), string(n.Needs)}; !seen[key] {
			seen[key] = true
			to(1, key[0], key[1])
		}
	}
}

func memoryUsedRatio(d *device, to emit) {
	s := d.Stats
	if s == nil || s.MemoryUsed == nil || s.MemoryTotal == nil || s.MemoryReserved == nil || *s.MemoryTotal <= *s.MemoryReserved {
		return
	}
	to(float64(*s.MemoryUsed) / float64(*s.MemoryTotal-*s.MemoryReserved))
}

func slowdownMargin(d *device, to emit) {
	if s := d.Stats; s != nil && s.Temperature != nil && s.SlowdownTemperature != nil {
		to(*s.SlowdownTemperature - *s.Temperature)
	}
}

// clockReasons spells out nvmlClocksEventReasons, all of them, so that an alert can compare with 0.
func clockReasons(d *device, to emit) {
	if d.Stats == nil || d.Stats.ClockReasons == nil {
		return
	}
	for bit, reason := range []string{
		"idle", "application_clocks", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal", "hw_thermal",
		"hw_power_brake", "display_clocks", "board_limit", "reliability",
	} {
		to(oneIf(*d.Stats.ClockReasons>>bit&1 == 1), reason)
	}
}
