package nvml

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

func TestNewRefusesWhatItCannotDo(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{Simulate: &Simulation{GPU: "V100", Count: 8}}, `nvml simulate gpu "V100": must be one of A100, H100, H200, B200, L40S, T4`},
		{Config{Simulate: &Simulation{GPU: "H100", Count: 17}}, "nvml simulate count 17: must be 1 to 16"},
		{Config{Simulate: &Simulation{GPU: "H100"}}, "nvml simulate count 0: must be 1 to 16"},
		{Config{Simulate: &Simulation{GPU: "L40S", Count: 1, MIG: []SimulatedMIG{{}}}}, "nvml simulate mig entry 0: a real L40S cannot be split: remove mig, or simulate another GPU"},
		{Config{Interval: -1}, "nvml interval -1ns: must be positive"},
		{Config{Deadline: -1}, "nvml deadline -1ns: must be positive"},
		{Config{Library: "/x.so", Simulate: &Simulation{GPU: "H100", Count: 1}}, "nvml library and nvml simulate are both set: a simulation loads no library; remove one of them"},
	} {
		_, err := New(tc.cfg)
		require.EqualError(t, err, tc.want)
	}
	m, err := New(Config{})
	require.NoError(t, err)
	require.NotNil(t, m.Get())
	require.False(t, m.Get().Driver.Loaded)
}

// simulate runs a simulation in a bubble of fake time.
func simulate(t *testing.T, sim Simulation, test func(*testing.T, *Monitor)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m, err := New(Config{Simulate: &sim})
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		defer func() {
			stop()
			require.NoError(t, <-done)
		}()
		synctest.Wait()
		test(t, m)
	})
}

func TestSimulatedGPUsAreWhatNVIDIASells(t *testing.T) {
	const cluster = "00000000-0000-0000-0000-000000000001"
	for _, tc := range []struct {
		gpu, name    string
		mib          uint64
		major, minor int
		mig, gpm     bool
		fabric       string
	}{
		{"A100", "NVIDIA A100-SXM4-40GB", 40960, 8, 0, true, false, ""},
		{"H100", "NVIDIA H100 80GB HBM3", 81920, 9, 0, true, true, cluster},
		{"H200", "NVIDIA H200", 143771, 9, 0, true, true, cluster},
		{"B200", "NVIDIA B200", 183359, 10, 0, true, true, cluster},
		{"L40S", "NVIDIA L40S", 46068, 8, 9, false, false, ""},
		{"T4", "NVIDIA T4", 16384, 7, 5, false, false, ""},
	} {
		t.Run(tc.gpu, func(t *testing.T) {
			simulate(t, Simulation{GPU: tc.gpu, Count: 16}, func(t *testing.T, m *Monitor) {
				s := m.Get()
				require.True(t, s.Simulated)
				require.Equal(t, gpu.Driver{Loaded: true, Version: "550.163.01", NVMLVersion: "12.550.163.01", CUDAVersion: 12040}, s.Driver)
				require.Len(t, s.Devices, 16)
				uuids, buses := map[gpu.UUID]bool{}, map[string]bool{}
				for i, d := range s.Devices {
					uuids[d.UUID], buses[d.PCIBusID] = true, true
					require.Equal(t, tc.name, d.Name)
					require.Equal(t, tc.mib<<20, d.Memory)
					require.Equal(t, []int{tc.major, tc.minor}, []int{d.ComputeMajor, d.ComputeMinor})
					require.Equal(t, tc.mig, d.MIGCapable)
					require.False(t, d.MIGEnabled)
					require.Equal(t, i/8, d.NUMANode)
					require.Zero(t, d.PCIClass)
					require.Equal(t, tc.gpm, d.Stats.SMActive != nil)
					if tc.fabric == "" {
						require.Nil(t, d.Fabric)
					} else {
						require.Equal(t, &gpu.Fabric{ClusterUUID: tc.fabric}, d.Fabric)
					}
				}
				require.Len(t, uuids, 16)
				require.Len(t, buses, 16)
			})
		})
	}
}

func TestSimulatedLoadMovesAndCountersOnlyGrow(t *testing.T) {
	simulate(t, Simulation{GPU: "H100", Count: 8}, func(t *testing.T, m *Monitor) {
		before := m.Get().Devices
		moved := false
		for range 360 { // an hour
			pass(DefaultInterval)
			now := m.Get().Devices
			for i := range now {
				a, b := before[i].Stats, now[i].Stats
				dt := now[i].LastSample.Sub(before[i].LastSample).Seconds()
				require.Greater(t, *b.Energy, *a.Energy)
				require.InDelta(t, (*a.Power+*b.Power)/2*dt, *b.Energy-*a.Energy, 0.1**b.Power*dt, "energy is the integral of power")
				require.Greater(t, *b.NVLinkTransmit, *a.NVLinkTransmit)
				require.GreaterOrEqual(t, *b.ThrottlePower, *a.ThrottlePower)
				require.Equal(t, *b.MemoryTotal, *b.MemoryUsed+*b.MemoryFree+*b.MemoryReserved)
				for _, ratio := range []*float64{b.Utilization, b.MemoryControllerUtilization, b.SMActive, b.SMOccupancy, b.TensorActive, b.DRAMActive} {
					require.True(t, *ratio >= 0 && *ratio <= 1, "%v", *ratio)
				}
				require.LessOrEqual(t, *b.Power, 700.0)
				require.LessOrEqual(t, *b.SMClock, *b.SMClockMax)
				require.InDelta(t, *a.Utilization, *b.Utilization, 0.3, "it moves smoothly")
				moved = moved || *a.Utilization != *b.Utilization
			}
			before = now
		}
		require.True(t, moved)
		require.NotEqual(t, *before[0].Stats.Utilization, *before[4].Stats.Utilization)
	})
}

func TestSimulationIsThereAtOnce(t *testing.T) {
	m, err := New(Config{Simulate: &Simulation{GPU: "H100", Count: 8}})
	require.NoError(t, err)
	begin := time.Now()
	run(t, m)
	await(t, m, "eight GPUs", func(s *gpu.Snapshot) bool { return len(s.Devices) == 8 })
	require.Less(t, time.Since(begin), 150*time.Millisecond)
}

// run runs m until the test ends.
func run(t *testing.T, m *Monitor) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
}

// await waits for a snapshot that is as it should be.
func await(t *testing.T, m *Monitor, what string, ok func(*gpu.Snapshot) bool) *gpu.Snapshot {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		s, changed := m.Watch()
		if ok(s) {
			return s
		}
		select {
		case <-changed:
		case <-late:
			require.Failf(t, "no snapshot in time", "with %s; the last: %+v", what, s)
		}
	}
}

func TestPCIFactsComeFromSysfs(t *testing.T) {
	root := t.TempDir()
	const way = "devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:1b:00.0"
	dir := filepath.Join(root, "bus/pci/devices/0000:1b:00.0")
	require.NoError(t, os.MkdirAll(filepath.Join(root, way), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Dir(dir), 0o755))
	require.NoError(t, os.Symlink("../../../"+way, dir))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "numa_node"), []byte("1\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "class"), []byte("0x030200\n"), 0o644))
	d := gpu.Device{PCIBusID: "00000000:1B:00.0"}
	lookUpPCI(root, &d)
	require.Equal(t, 1, d.NUMANode)
	require.Equal(t, uint32(0x030200), d.PCIClass)
	require.Equal(t, []string{"pci0000:15", "0000:15:01.0", "0000:16:00.0", "0000:1b:00.0"}, d.PCIPath)
	d = gpu.Device{PCIBusID: "00010000:1B:00.0"}
	lookUpPCI(root, &d)
	require.Equal(t, -1, d.NUMANode, "another domain is another device")
	require.Zero(t, d.PCIClass)
	require.Empty(t, d.PCIPath)
}
