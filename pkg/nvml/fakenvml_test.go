//go:build cgo

package nvml

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// buildFake builds test/fakenvml, or skips the test where that cannot be done.
func buildFake(t *testing.T, flags ...string) string {
	t.Helper()
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "gcc"
	}
	if _, err := exec.LookPath(cc); err != nil {
		t.Skipf("no C compiler to build the fake driver with: %v", err)
	}
	out := filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	msg, err := exec.Command("../../test/fakenvml/build.sh", append([]string{out}, flags...)...).CombinedOutput()
	require.NoError(t, err, "%s", msg)
	return out
}

// stateFile returns a function that replaces the fake driver's state file at once.
func stateFile(t *testing.T) (write func(format string, args ...any)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state")
	t.Setenv("FAKENVML_STATE", path)
	return func(format string, args ...any) {
		t.Helper()
		require.NoError(t, os.WriteFile(path+".new", fmt.Appendf(nil, format, args...), 0o644))
		require.NoError(t, os.Rename(path+".new", path))
	}
}

// child runs one test again in a process of its own, as a process can be bound to one library only.
func child(t *testing.T, library string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "NVML_TEST_LIBRARY="+library)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "PASS")
}

func open(t *testing.T, library string) *Monitor {
	t.Helper()
	m, err := New(Config{Library: library, Interval: 50 * time.Millisecond, Deadline: 300 * time.Millisecond, Health: Health{ProbeInterval: time.Millisecond}})
	require.NoError(t, err)
	m.host = host{sysfs: t.TempDir(), procfs: t.TempDir()}
	run(t, m)
	return m
}

func TestThroughTheRealLoader(t *testing.T) {
	library := os.Getenv("NVML_TEST_LIBRARY")
	if library == "" {
		child(t, buildFake(t))
		return
	}
	write := stateFile(t)
	late := filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	m := open(t, late)

	// No library yet, then one whose driver is not loaded, then a driver.
	s := await(t, m, "no library", func(s *gpu.Snapshot) bool { return s.Driver.Error != "the driver has not been asked yet" })
	require.Contains(t, s.Driver.Error, "cannot open shared object file")
	write("init 9\n")
	require.NoError(t, os.Link(library, late))
	await(t, m, "no kernel driver", func(s *gpu.Snapshot) bool {
		return s.Driver.Error == "initialise "+late+": ERROR_DRIVER_NOT_LOADED: the NVIDIA kernel driver is not loaded"
	})
	write("")
	s = await(t, m, "readings of eight GPUs", func(s *gpu.Snapshot) bool { return len(s.Devices) == 8 && read(s) })
	require.Equal(t, gpu.Driver{Loaded: true, Version: "550.163.01", NVMLVersion: "12.550.163.01", CUDAVersion: 12040}, s.Driver)

	d := s.Devices[2]
	stats := *d.Stats
	d.Stats, d.LastSample = nil, time.Time{}
	sim := simCard{simSession{simDriver{model: simModels[1], count: 8}, time.Now()}, 2}
	want := gpu.Device{Index: 2}
	require.Equal(t, success, max(sim.Identify(&want), sim.Partition(&want), sim.Links(&want)))
	want.NUMANode, want.PCIPath = -1, nil
	require.Equal(t, want, d, "the fake driver's default is the simulation")

	stats.SMActive, stats.GraphicsEngineActive, stats.SMOccupancy, stats.TensorActive, stats.DRAMActive = nil, nil, nil, nil, nil
	stats.PCIeTransmitPerSec, stats.PCIeReceivePerSec, stats.NVLinkBytesPerSecond = nil, nil, nil // need two samples
	require.Equal(t, gpu.Stats{
		MemoryTotal: new(uint64(81920 << 20)), MemoryUsed: new(uint64(3072 << 20)),
		MemoryFree: new(uint64((81920 - 3072 - 546) << 20)), MemoryReserved: new(uint64(546 << 20)),
		BAR1Total: new(uint64(81920 << 20)), BAR1Used: new(uint64(2 << 20)),
		Utilization: new(0.3), MemoryControllerUtilization: new(0.15), EncoderUtilization: new(0.0), DecoderUtilization: new(0.0),
		Temperature: new(42.0), MemoryTemperature: new(47.0), SlowdownTemperature: new(87.0), ShutdownTemperature: new(92.0),
		Power: new(302.0), PowerLimit: new(700.0), PowerLimitEnforced: new(700.0), Energy: new(1000002.0),
		SMClock: new(1980e6), MemoryClock: new(2619e6), SMClockMax: new(1980e6), MemoryClockMax: new(2619e6),
		PerformanceState: new(uint64(0)), ClockReasons: new(uint64(0)), PCIeReplays: new(uint64(0)),
		PCIeLinkGeneration: new(uint64(5)), PCIeLinkWidth: new(uint64(16)),
		NVLinkTransmit: new(uint64(0)), NVLinkReceive: new(uint64(0)),
		ECCCorrectedVolatile: new(uint64(0)), ECCUncorrectedVolatile: new(uint64(0)),
		ECCCorrectedAggregate: new(uint64(0)), ECCUncorrectedAggregate: new(uint64(0)),
		RemappedRowsCorrectable: new(uint64(0)), RemappedRowsUncorrectable: new(uint64(0)),
		RowRemapPending: new(false), RowRemapFailed: new(false), SRAMThresholdExceeded: new(false),
		FabricState: new(uint64(3)), FabricStatus: new(uint64(0)), FabricHealth: new(uint64(0)), PersistenceMode: new(true),
		ThrottlePower: new(0.0), ThrottleThermal: new(0.0),
	}, stats)
	s = await(t, m, "GPM metrics", func(s *gpu.Snapshot) bool { return read(s) && s.Devices[2].Stats.SMActive != nil })
	require.InDelta(t, 0.30, *s.Devices[2].Stats.SMActive, 1e-9)
	require.InDelta(t, 0.075, *s.Devices[2].Stats.TensorActive, 1e-9)
	require.Equal(t, uint64(100<<20), *s.Devices[2].Stats.PCIeTransmitPerSec)

	// Values that change; one that stops being there; field types.
	write("gpu 0 temp=71 power=650.5 util=unsupported fan=30 nvlink_tx=%d memory_temp=88 throttle_power=2.5\ngpu 1 mig=1 fabric=none\n", 5<<30)
	s = await(t, m, "new values", func(s *gpu.Snapshot) bool {
		return read(s) && *s.Devices[0].Stats.Temperature == 71 && s.Devices[1].MIGEnabled
	})
	require.InDelta(t, 650.5, *s.Devices[0].Stats.Power, 1e-9)
	require.Equal(t, uint64(5<<30), *s.Devices[0].Stats.NVLinkTransmit)
	require.InDelta(t, 88, *s.Devices[0].Stats.MemoryTemperature, 0)
	require.InDelta(t, 2.5, *s.Devices[0].Stats.ThrottlePower, 1e-9)
	require.Nil(t, s.Devices[0].Stats.Utilization)
	require.Nil(t, s.Devices[1].Stats.Utilization, "not with MIG")
	require.NotNil(t, s.Devices[2].Stats.Utilization)

	// An XID; one GPU lost; one that hangs: the others stay as they are.
	write("xid 0 13 seq=1\nxid 1 119 seq=2\n")
	s = await(t, m, "XIDs", func(s *gpu.Snapshot) bool { return len(s.Devices[1].XIDs) == 1 && len(s.Devices[0].XIDs) == 1 })
	require.True(t, s.Devices[0].Health.OK())
	require.Equal(t, "XID 119 (GSP_RPC_TIMEOUT)", s.Devices[1].Health.Text)
	require.Equal(t, 7, s.HealthyCount())

	write("xid 1 119 seq=2\ngpu 5 lost=1\ngpu 6 hang=1\n")
	s = await(t, m, "a lost and a hung GPU", func(s *gpu.Snapshot) bool {
		return s.Devices[5].Health.Reason == gpu.Lost && s.Devices[6].Health.Reason == gpu.Hung
	})
	require.Equal(t, 5, s.HealthyCount())
	require.Nil(t, s.Devices[5].Stats)
	require.Nil(t, s.Devices[6].Stats)
	begin := time.Now()
	await(t, m, "fresh readings of the others", func(s *gpu.Snapshot) bool {
		for _, i := range []int{0, 1, 2, 3, 4, 7} {
			if s.Devices[i].LastSample.Before(begin) {
				return false
			}
		}
		return true
	})
	write("xid 1 119 seq=2\n")
	await(t, m, "both back", func(s *gpu.Snapshot) bool { return s.HealthyCount() == 7 && read(s) })

	// The driver goes, and comes back as another version.
	write("init 9\n")
	s = await(t, m, "no driver", func(s *gpu.Snapshot) bool { return !s.Driver.Loaded })
	require.Len(t, s.Devices, 8)
	require.Zero(t, s.HealthyCount())
	write("driver 560.35.03\n")
	s = await(t, m, "the new driver", func(s *gpu.Snapshot) bool { return s.Driver.Loaded && s.HealthyCount() == 8 })
	require.Equal(t, "560.35.03", s.Driver.Version)
}

func TestAMIGEventThroughTheRealLoader(t *testing.T) {
	library := os.Getenv("NVML_TEST_LIBRARY")
	if library == "" {
		child(t, buildFake(t))
		return
	}
	write := stateFile(t)
	write("gpus 2\ngpu 0 mig=1\n")
	m, err := New(Config{Library: library, Interval: time.Hour})
	require.NoError(t, err)
	m.host = host{sysfs: t.TempDir(), procfs: t.TempDir()}
	run(t, m)
	await(t, m, "readings", func(s *gpu.Snapshot) bool { return len(s.Devices) == 2 && read(s) })
	// Sent until it is heard: the driver tells nobody of what was before it was listened to.
	for seq := 1; len(m.Get().Devices[0].Instances) == 0; seq++ {
		require.Less(t, seq, 100)
		write("gpus 2\ngpu 0 mig=1\nmig 0 1g.10gb gi=7\nmigchange 0 seq=%d\n", seq)
		_, changed := m.Watch()
		select {
		case <-changed:
		case <-time.After(100 * time.Millisecond):
		}
	}
	require.Equal(t, 2, m.Get().HealthyCount())
}

func TestHealthThroughTheRealLoader(t *testing.T) {
	library := os.Getenv("NVML_TEST_LIBRARY")
	if library == "" {
		child(t, buildFake(t))
		return
	}
	write := stateFile(t)
	node := filepath.Join(t.TempDir(), "nvidiactl")
	require.NoError(t, os.WriteFile(node, nil, 0o644))
	head := "node " + node + "\ngpu 0 recovery_action=0\n"
	write("%s", head)
	m := open(t, library)
	await(t, m, "eight GPUs", func(s *gpu.Snapshot) bool { return s.HealthyCount() == 8 && read(s) })

	write("%sgpu 0 recovery_action=2\ngpu 1 remap_failed=1\ngpu 2 sram_exceeded=1\ngpu 3 fabric_state=2\ngpu 4 fabric_health=%d\n"+
		"gpu 5 fabric_health=%d remap_pending=1\ngpu 6 ecc_uncorrected=3\n", head, 1<<4, 1)
	s := await(t, m, "what is wrong", func(s *gpu.Snapshot) bool {
		return s.HealthyCount() == 2 && len(s.Devices[5].Notices) == 2 // each GPU is read by itself
	})
	var reasons []gpu.Reason
	for _, d := range s.Devices {
		reasons = append(reasons, d.Health.Reason)
	}
	require.Equal(t, []gpu.Reason{gpu.RecoveryAction, gpu.RowRemapFailed, gpu.SRAMThreshold, gpu.FabricFault, gpu.FabricFault, gpu.Healthy, gpu.ECC, gpu.Healthy}, reasons)
	require.Equal(t, gpu.RebootNode, s.Devices[0].Health.Needs)
	require.Equal(t, []gpu.NoticeCode{gpu.FabricDegraded, gpu.RowRemapPending}, []gpu.NoticeCode{s.Devices[5].Notices[0].Code, s.Devices[5].Notices[1].Code})

	// What was wrong has gone; the board that must be replaced, and the one with too many errors, wait.
	write("%sgpu 0 recovery_action=0\n", head)
	s = await(t, m, "recoveries", func(s *gpu.Snapshot) bool { return s.HealthyCount() == 6 })
	require.Equal(t, gpu.RowRemapFailed, s.Devices[1].Health.Reason)
	require.Equal(t, gpu.SRAMThreshold, s.Devices[2].Health.Reason)

	write("%sgpu 0 recovery_action=0\nunavailable 7 seq=1\n", head)
	await(t, m, "an event", func(s *gpu.Snapshot) bool { return s.Devices[7].Health.Reason == gpu.Unavailable })
	write("%sgpu 0 recovery_action=1\nunavailable 7 seq=1\nrecovery 0 seq=2\n", head)
	await(t, m, "an event", func(s *gpu.Snapshot) bool { return s.Devices[0].Health.Reason == gpu.RecoveryAction })

	// Released, the process holds nothing of the driver.
	require.Contains(t, openFiles(t), node)
	require.NoError(t, m.Release(t.Context(), time.Minute))
	require.NotContains(t, openFiles(t), node)
	require.Equal(t, gpu.Released, m.Get().Devices[5].Health.Reason)
	require.NoError(t, m.Resume(t.Context()))
	await(t, m, "the same as before", func(s *gpu.Snapshot) bool { return s.HealthyCount() == 4 && read(s) })
	require.Contains(t, openFiles(t), node)
}

func TestALostGPUDelaysNoOthersEventsThroughTheRealLoader(t *testing.T) {
	library := os.Getenv("NVML_TEST_LIBRARY")
	if library == "" {
		child(t, buildFake(t))
		return
	}
	write := stateFile(t)
	write("")
	m := open(t, library)
	await(t, m, "readings", read)
	const sick = "gpu 1 lost=1\ngpu 2 hang=1\nxid 1 79 seq=1\n"
	write(sick)
	await(t, m, "a lost GPU and a hung one", func(s *gpu.Snapshot) bool {
		return s.Devices[1].Health.Reason == gpu.Lost && s.Devices[2].Health.Reason == gpu.Hung
	})
	require.Equal(t, uint64(79), m.Get().Devices[1].XIDs[0].Code, "its last words are heard")
	events := ""
	for n := range uint64(10) {
		events += fmt.Sprintf("xid 3 13 seq=%d\n", n+2)
		began := time.Now()
		write("%s", sick+events)
		await(t, m, "an XID", func(s *gpu.Snapshot) bool { return len(s.Devices[3].XIDs) == 1 && s.Devices[3].XIDs[0].Count == n+1 })
		require.Less(t, time.Since(began), 700*time.Millisecond, "less than the pause of the listener whose wait fails")
	}
	write("")
	await(t, m, "eight healthy ones", func(s *gpu.Snapshot) bool { return s.Devices[2].Health.OK() && read(s) })
}

// openFiles are the files that this process has open.
func openFiles(t *testing.T) []string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	var files []string
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			files = append(files, to)
		}
	}
	return files
}

func TestMIGThroughTheRealLoader(t *testing.T) {
	library := os.Getenv("NVML_TEST_LIBRARY")
	if library == "" {
		child(t, buildFake(t))
		return
	}
	write := stateFile(t)
	write("gpus 3\ngpu 1 cc=7.5 mig=1\nnvlink 1 4 0\nnvlink 1 2 2\nnvlink 1 1 cpu\nnvlink 2 18 unsupported\n")
	m := open(t, library)
	s := await(t, m, "whole GPUs", func(s *gpu.Snapshot) bool { return len(s.Devices) == 3 && read(s) })
	require.Equal(t, []gpu.NVLink{{Count: 18}}, s.Devices[0].NVLinks)
	require.Equal(t, []gpu.NVLink{{Remote: "00000000:1B:00.0", Count: 4}, {Remote: "00000000:52:00.0", Count: 2}}, s.Devices[1].NVLinks)
	require.Empty(t, s.Devices[2].NVLinks)
	require.True(t, s.Devices[0].MIGCapable)
	require.False(t, s.Devices[0].MIGEnabled)
	require.False(t, s.Devices[1].MIGCapable, "before Ampere nobody asks")

	// MIG is switched on and instances are made, with a gap; one has a name without a profile.
	minors := filepath.Join(m.host.procfs, "driver/nvidia-caps/mig-minors")
	require.NoError(t, os.MkdirAll(filepath.Dir(minors), 0o755))
	require.NoError(t, os.WriteFile(minors, []byte("gpu0/gi2/access 21\ngpu0/gi2/ci0/access 22\n"), 0o644))
	const on = "gpus 3\ngpu 0 mig=1\ngpu 2 mig_pending=1\nmig 0 3g.40gb gi=2 sms=60 gi_slices=3 ci_slices=3 memory_total=40448 copy=3 decoder=3 jpeg=3\n"
	write(on + "mig 0 1g.10gb+me gi=9 index=3 ofa=1 util=40 uuid=MIG-x memory_used=512\nmig 0 - gi=10\n")
	s = await(t, m, "instances with GPM", func(s *gpu.Snapshot) bool {
		in := s.Devices[0].Instances
		return read(s) && len(in) == 3 && in[2].Stats != nil && in[2].Stats.SMActive != nil
	})
	require.True(t, s.Devices[0].MIGEnabled)
	require.Nil(t, s.Devices[0].Stats.Utilization)
	require.True(t, s.Devices[2].MIGPending)
	require.Equal(t, 3, s.HealthyCount())
	in := slices.Clone(s.Devices[0].Instances)
	stats := *in[2].Stats
	for i := range in {
		in[i].Stats = nil
	}
	require.Equal(t, []gpu.Instance{
		{UUID: "MIG-23300000-5140-4000-8000-000000020000", GI: 2, Profile: "3g.40gb", Memory: 40448 << 20, GIMinor: 21, CIMinor: 22,
			Multiprocessors: 60, GISlices: 3, CISlices: 3, Engines: gpu.Engines{Copy: 3, Decoder: 3, JPEG: 3}},
		{UUID: "MIG-23300000-5140-4000-8000-0000000a0000", Index: 2, GI: 10, Memory: 9984 << 20, GIMinor: -1, CIMinor: -1,
			Multiprocessors: 16, GISlices: 1, CISlices: 1, Engines: gpu.Engines{Copy: 1, Decoder: 1, JPEG: 1}},
		{UUID: "MIG-x", Index: 3, GI: 9, Profile: "1g.10gb+me", Memory: 9984 << 20, GIMinor: -1, CIMinor: -1,
			Multiprocessors: 16, GISlices: 1, CISlices: 1, Engines: gpu.Engines{Copy: 1, Decoder: 1, JPEG: 1, OFA: 1}},
	}, in)
	require.Equal(t, uint64(512<<20), *stats.MemoryUsed)
	require.Equal(t, uint64(9984<<20), *stats.BAR1Total)
	require.InDelta(t, 0.4, *stats.SMActive, 1e-9)

	// Another split; an instance whose calls fail; one whose calls hang: only that GPU.
	write(on)
	s = await(t, m, "one instance", func(s *gpu.Snapshot) bool { return len(s.Devices[0].Instances) == 1 && read(s) })
	require.Equal(t, 3, s.HealthyCount())
	write(on + "mig 0 1g.10gb gi=9 code=999\n")
	s = await(t, m, "a failing instance", func(s *gpu.Snapshot) bool { return !s.Devices[0].Health.OK() })
	require.Equal(t, gpu.Unreadable, s.Devices[0].Health.Reason)
	require.Equal(t, "mig: ERROR_UNKNOWN", s.Devices[0].Health.Text)
	require.Len(t, s.Devices[0].Instances, 1)
	write(on + "mig 0 1g.10gb gi=9 hang=1\n")
	s = await(t, m, "a hanging instance", func(s *gpu.Snapshot) bool { return s.Devices[0].Health.Reason == gpu.Hung })
	require.Equal(t, 2, s.HealthyCount())

	// MIG is switched off: what it took away is back.
	write("gpus 3\n")
	await(t, m, "a whole GPU", func(s *gpu.Snapshot) bool {
		d := s.Devices[0]
		return s.HealthyCount() == 3 && !d.MIGEnabled && len(d.Instances) == 0 && d.Stats != nil && d.Stats.Utilization != nil
	})
}

// read reports whether every GPU has readings.
func read(s *gpu.Snapshot) bool {
	for _, d := range s.Devices {
		if d.Stats == nil {
			return false
		}
	}
	return len(s.Devices) > 0
}

func TestAnOldLibraryIsUsedAsFarAsItGoes(t *testing.T) {
	library := os.Getenv("NVML_TEST_LIBRARY")
	if library == "" {
		child(t, buildFake(t, "-DFAKENVML_OLD"))
		return
	}
	t.Setenv("FAKENVML_STATE", "")
	m := open(t, library)
	s := await(t, m, "readings", read)
	require.Equal(t, 8, s.HealthyCount())
	d := s.Devices[0]
	require.Nil(t, d.Fabric)
	require.Nil(t, d.Stats.SMActive)
	require.Nil(t, d.Stats.ClockReasons)
	require.Nil(t, d.Stats.MemoryReserved)
	require.Equal(t, uint64((1024+546)<<20), *d.Stats.MemoryUsed)
	require.Empty(t, d.ReadErrors, "what is not there is no error")
}

func TestALibraryThatIsNotNVMLIsRefused(t *testing.T) {
	_, err := newDriver("libc.so.6").Open()
	require.EqualError(t, err, "libc.so.6 is no usable NVIDIA driver library: it has no nvmlInit_v2")
}

func TestAReplacedLibraryIsNoticed(t *testing.T) {
	library := os.Getenv("NVML_TEST_LIBRARY")
	if library == "" {
		child(t, buildFake(t))
		return
	}
	write := stateFile(t)
	write("init 18\n")
	d := newDriver(library)
	_, err := d.Open()
	require.ErrorContains(t, err, "ERROR_LIB_RM_VERSION_MISMATCH")
	require.NotErrorIs(t, err, ErrLibraryReplaced, "a restart would load the same file again, and again")

	write("")
	worked := newDriver(library)
	s, err := worked.Open()
	require.NoError(t, err)
	s.Close()
	write("init 18\n")
	_, err = worked.Open()
	require.ErrorIs(t, err, ErrLibraryReplaced, "in a container the file stays as it was")

	image, err := os.ReadFile(library)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(library+".new", image, 0o755))
	require.NoError(t, os.Rename(library+".new", library))
	_, err = d.Open()
	require.ErrorIs(t, err, ErrLibraryReplaced)
}
