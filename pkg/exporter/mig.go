package exporter

import (
	"strconv"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// instance is one MIG instance at one scrape.
type instance struct {
	*gpu.Instance
	of      *device
	holders []resource.Owner // distinct containers
}

// holding is the only container that holds the instance, if there is exactly one.
func (in *instance) holding() []resource.Owner { return only(in.holders) }

// migLabels begin with those of the GPU, so that its series can be joined.
var migLabels = []string{"gpu", "uuid", "gpu_instance_id", "compute_instance_id", "mig_profile"} //nolint:gochecknoglobals // a constant table

func migValues(in *instance) []string {
	return append(nativeValues(in.of), strconv.Itoa(in.GI), strconv.Itoa(in.CI), in.Profile)
}

// migFamilies are of each MIG instance, in the native schema. NVML reads by GPU instance: where several compute
// instances share one, each shows the same.
func migFamilies() []family[*instance] {
	return []family[*instance]{
		{name: "gpu_mig_info", kind: gauge, unit: "1", board: true, labels: []string{"mig_uuid"}, help: "Always 1: the name that the kubelet knows the instance by.",
			read: func(in *instance, to emit) { to(1, string(in.UUID)) }},
		{name: "gpu_mig_multiprocessors", kind: gauge, unit: "1", board: true, help: "Streaming multiprocessors of the instance.",
			read: func(in *instance, to emit) {
				if in.Multiprocessors > 0 {
					to(float64(in.Multiprocessors))
				}
			}},
		{name: "gpu_mig_allocated", kind: gauge, unit: "0 or 1", help: "1 if the kubelet gave the instance, or a share of it, to a container.",
			read: func(in *instance, to emit) {
				if in.of.known {
					to(oneIf(len(in.holders) > 0))
				}
			}},
		{name: "gpu_mig_allocations", kind: gauge, unit: "1", help: "Containers that hold the instance or a share of it.",
			read: func(in *instance, to emit) {
				if in.of.known {
					to(float64(len(in.holders)))
				}
			}},
		{name: "gpu_mig_allocation_info", kind: gauge, unit: "1", board: true, labels: podLabels, help: "Always 1: a container that holds the instance or a share of it.",
			read: func(in *instance, to emit) { allocations(in.holders, to) }},

		{name: "gpu_mig_memory_total_bytes", kind: gauge, unit: "bytes", dcgm: "DCGM_FI_DEV_FB_TOTAL", help: "Memory of the GPU instance.",
			read: migStat(func(s *gpu.Stats) *uint64 { return s.MemoryTotal })},
		{name: "gpu_mig_memory_used_bytes", kind: gauge, unit: "bytes", dcgm: "DCGM_FI_DEV_FB_USED", help: "Memory of the GPU instance in use, without the reserved part.",
			read: migStat(func(s *gpu.Stats) *uint64 { return s.MemoryUsed })},
		{name: "gpu_mig_memory_free_bytes", kind: gauge, unit: "bytes", dcgm: "DCGM_FI_DEV_FB_FREE", help: "Memory of the GPU instance that is free.",
			read: migStat(func(s *gpu.Stats) *uint64 { return s.MemoryFree })},
		{name: "gpu_mig_memory_reserved_bytes", kind: gauge, unit: "bytes", dcgm: "DCGM_FI_DEV_FB_RESERVED", help: "Memory of the GPU instance kept by driver and firmware.",
			read: migStat(func(s *gpu.Stats) *uint64 { return s.MemoryReserved })},
		{name: "gpu_mig_bar1_memory_total_bytes", kind: gauge, unit: "bytes", help: "Size of the GPU instance's BAR1.",
			read: migStat(func(s *gpu.Stats) *uint64 { return s.BAR1Total })},
		{name: "gpu_mig_bar1_memory_used_bytes", kind: gauge, unit: "bytes", help: "Part of the GPU instance's BAR1 in use.",
			read: migStat(func(s *gpu.Stats) *uint64 { return s.BAR1Used })},

		{name: "gpu_mig_graphics_engine_active_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_PROF_GR_ENGINE_ACTIVE", help: "Share of time that the GPU instance's compute engine was active. Hopper and newer.",
			read: migStat(func(s *gpu.Stats) *float64 { return s.GraphicsEngineActive })},
		{name: "gpu_mig_sm_active_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_PROF_SM_ACTIVE", help: "Share of cycles in which one of the GPU instance's multiprocessors had a warp, averaged over all. Hopper and newer.",
			read: migStat(func(s *gpu.Stats) *float64 { return s.SMActive })},
		{name: "gpu_mig_sm_occupancy_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_PROF_SM_OCCUPANCY", help: "Resident warps of the GPU instance as a share of the most possible. Hopper and newer.",
			read: migStat(func(s *gpu.Stats) *float64 { return s.SMOccupancy })},
		{name: "gpu_mig_tensor_active_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", help: "Share of cycles in which a tensor pipe of the GPU instance was active. Hopper and newer.",
			read: migStat(func(s *gpu.Stats) *float64 { return s.TensorActive })},
		{name: "gpu_mig_dram_active_ratio", kind: gauge, unit: "0 to 1", dcgm: "DCGM_FI_PROF_DRAM_ACTIVE", help: "Share of cycles in which the GPU instance's memory moved data. Hopper and newer.",
			read: migStat(func(s *gpu.Stats) *float64 { return s.DRAMActive })},
	}
}

// migStat is one reading of an instance; no sample where it is absent.
func migStat[N float64 | uint64](field func(*gpu.Stats) *N) read[*instance] {
	return func(in *instance, to emit) {
		if in.Stats == nil {
			return
		}
		if v := field(in.Stats); v != nil {
			to(float64(*v))
		}
	}
}

// allocations names who holds something, in podLabels.
func allocations(holders []resource.Owner, to emit) {
	for _, o := range holders {
		to(1, o.Namespace, o.Pod, o.Container)
	}
}
