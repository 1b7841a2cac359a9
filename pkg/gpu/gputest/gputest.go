// Package gputest builds snapshots for tests.
package gputest

import (
	"fmt"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// Time is the time of every snapshot that Node builds.
var Time = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// UUID is the identity of the i-th GPU that Node builds.
func UUID(i int) gpu.UUID {
	return gpu.UUID(fmt.Sprintf("GPU-00000000-0000-0000-0000-%012d", i))
}

// Node is a healthy node with n H100 GPUs, the first half on NUMA node 0, the rest on 1, with
// readings that differ from GPU to GPU.
func Node(n int) *gpu.Snapshot {
	s := &gpu.Snapshot{
		Time:   Time,
		Driver: gpu.Driver{Loaded: true, Version: "550.163.01", NVMLVersion: "12.550.163.01", CUDAVersion: 12040},
	}
	for i := range n {
		s.Devices = append(s.Devices, device(i, n))
	}
	return s
}

// Sick is the same node with GPU i unhealthy for the given reason.
func Sick(s *gpu.Snapshot, i int, why gpu.Reason) *gpu.Snapshot {
	sick := *s
	sick.Devices = append([]gpu.Device(nil), s.Devices...)
	d := &sick.Devices[i]
	d.Stats = nil
	d.Instances = append([]gpu.Instance(nil), d.Instances...)
	for n := range d.Instances {
		d.Instances[n].Stats = nil
	}
	d.Health = gpu.Health{Reason: why, Text: "GPU is " + string(why), Since: Time, Needs: gpu.ResetGPU}
	return &sick
}

// Instance is the identity of the n-th MIG instance that Split makes of GPU i.
func Instance(i, n int) gpu.UUID {
	return gpu.UUID(fmt.Sprintf("MIG-00000000-0000-0000-%04d-%012d", i, n))
}

// Split is the same node with MIG on at GPU i: a 3g.40gb and two 1g.10gb, with readings of their own.
func Split(s *gpu.Snapshot, i int) *gpu.Snapshot {
	split := *s
	split.Devices = append([]gpu.Device(nil), s.Devices...)
	d := &split.Devices[i]
	d.MIGCapable, d.MIGEnabled = true, true
	d.Instances = []gpu.Instance{instance(i, 0, 2, 3), instance(i, 1, 7, 1), instance(i, 2, 8, 1)}
	if d.Stats != nil {
		stats := *d.Stats // NVML reads none of these while MIG is on
		stats.Utilization, stats.MemoryControllerUtilization, stats.EncoderUtilization, stats.DecoderUtilization = nil, nil, nil, nil
		d.Stats = &stats
	}
	return &split
}

func instance(i, n, gi, slices int) gpu.Instance {
	const gib = 1 << 30
	in := gpu.Instance{
		UUID: Instance(i, n), Index: n, GI: gi, Profile: "1g.10gb", Memory: 10 * gib, GIMinor: 3 + gi*9, CIMinor: 4 + gi*9,
		Multiprocessors: 16, GISlices: slices, CISlices: slices, Engines: gpu.Engines{Copy: slices, Decoder: slices, JPEG: slices},
	}
	if slices == 3 {
		in.Profile, in.Memory, in.Multiprocessors = "3g.40gb", 40*gib, 60
	}
	used, reserved := uint64(n+1)*gib, uint64(gib/8)
	free, active := in.Memory-used-reserved, float64(n+1)/10
	in.Stats = &gpu.Stats{
		MemoryTotal: &in.Memory, MemoryUsed: &used, MemoryFree: &free, MemoryReserved: &reserved,
		GraphicsEngineActive: &active, SMActive: &active,
	}
	return in
}

func device(i, n int) gpu.Device {
	const gib = 1 << 30
	f := func(v float64) *float64 { return &v }
	u := func(v uint64) *uint64 { return &v }
	used := uint64(i+1) * gib
	return gpu.Device{
		Index: i, Minor: i, UUID: UUID(i), Name: "NVIDIA H100 80GB HBM3",
		Serial: fmt.Sprintf("165000000%04d", i), VBIOS: "96.00.61.00.01",
		PCIBusID: fmt.Sprintf("00000000:%02X:00.0", 0x0b+i), NUMANode: 2 * i / max(n, 1),
		Memory: 80 * gib, ComputeMajor: 9, ComputeMinor: 0, MIGCapable: true,
		Fabric:     &gpu.Fabric{ClusterUUID: "00000000-0000-0000-0000-000000000001", CliqueID: 0},
		LastSample: Time,
		Stats: &gpu.Stats{
			MemoryTotal: u(80 * gib), MemoryUsed: u(used), MemoryFree: u(79*gib - used), MemoryReserved: u(gib),
			Utilization: f(float64(i) / 10), MemoryControllerUtilization: f(float64(i) / 20),
			EncoderUtilization: f(0), DecoderUtilization: f(0),
			Temperature: f(30 + float64(i)), MemoryTemperature: f(40 + float64(i)),
			Power: f(100 + float64(i)), Energy: f(1000.5 + float64(i)),
			SMClock: f(1.98e9), MemoryClock: f(2.619e9), PCIeReplays: u(uint64(i)),
		},
	}
}
