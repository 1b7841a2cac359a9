package nvml

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// split turns MIG on, with two instances on the GPU.
func (c *scriptCard) split() {
	c.mig, c.instances = true, []gpu.Instance{
		{UUID: "MIG-a", Index: 0, GI: 1, CI: 0, Profile: "3g.40gb"},
		{UUID: "MIG-b", Index: 2, GI: 9, CI: 0, Profile: "1g.10gb"},
	}
}

func splitEight() *script {
	d := newScript(8)
	d.cards[2].split()
	return d
}

func TestMIGInstancesComeAndGoWithoutARestart(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		require.True(t, m.Get().Devices[2].MIGCapable)
		require.False(t, m.Get().Devices[2].MIGEnabled)

		d.do(d.cards[2].split)
		pass(10 * time.Second)
		dev := m.Get().Devices[2]
		require.True(t, dev.MIGEnabled)
		require.Len(t, dev.Instances, 2)
		require.Equal(t, gpu.UUID("MIG-b"), dev.Instances[1].UUID)
		require.Equal(t, uint64(9), *dev.Instances[1].Stats.MemoryUsed)
		require.Len(t, d.opens, 1, "the session went on")

		d.do(func() { d.cards[2].instances = d.cards[2].instances[1:] })
		pass(10 * time.Second)
		require.Len(t, m.Get().Devices[2].Instances, 1)
		require.Len(t, dev.Instances, 2, "a published snapshot does not change")

		d.do(func() { d.cards[2].mig, d.cards[2].instances = false, nil })
		pass(10 * time.Second)
		dev = m.Get().Devices[2]
		require.False(t, dev.MIGEnabled)
		require.Empty(t, dev.Instances)
		require.Empty(t, dev.ReadErrors)
		require.Equal(t, 8, m.Get().HealthyCount())
	})
}

func TestAMIGChangeIsSaidOnce(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		var log bytes.Buffer
		m.log = slog.New(slog.NewTextHandler(&log, nil))
		d.do(d.cards[2].split)
		pass(30 * time.Second)
		d.do(func() { d.cards[2].instances = nil })
		pass(30 * time.Second)
		require.Equal(t, 2, strings.Count(log.String(), "MIG changed"))
		require.Contains(t, log.String(), `gpu=2 uuid=GPU-2 was=off now="on: 3g.40gb 1g.10gb"`)
		require.Contains(t, log.String(), `was="on: 3g.40gb 1g.10gb" now="on, no instance"`)
		require.Equal(t, "on: ; a change of the mode waits for a reset", describeMIG(gpu.Device{MIGEnabled: true, MIGPending: true, Instances: make([]gpu.Instance, 1)}))
	})
}

func TestAMIGEventIsFollowedAtOnceWhileAnotherGPUHangs(t *testing.T) {
	play(t, splitEight, func(t *testing.T, m *Monitor, d *script) {
		hang := make(chan struct{})
		d.do(func() {
			d.cards[7].hang = hang
			d.cards[2].instances[1].UUID = "MIG-c" // the same profile, made anew
		})
		pass(time.Second)
		require.Equal(t, gpu.UUID("MIG-b"), m.Get().Devices[2].Instances[1].UUID)
		d.cards[2].events <- event{Kind: eventMIGChange}
		synctest.Wait()
		require.Equal(t, gpu.UUID("MIG-c"), m.Get().Devices[2].Instances[1].UUID)
		d.do(func() { d.cards[7].hang = nil })
		close(hang)
	})
}

func TestAModeChangeIsAResetOfTheGPU(t *testing.T) {
	play(t, splitEight, func(t *testing.T, m *Monitor, d *script) {
		d.do(func() { d.cards[2].faults[opUtilization] = errNotSupported }) // as NVML does while MIG is on
		pass(10 * time.Second)
		d.do(func() {
			clear(d.cards[2].faults)
			clear(d.cards[2].asked)
		})
		pass(10 * time.Second)
		d.do(func() {
			require.Zero(t, d.cards[2].asked[opUtilization])
			require.Zero(t, d.cards[2].closes)
			d.cards[2].mig, d.cards[2].instances = false, nil
		})
		pass(10 * time.Second)
		d.do(func() {
			require.Equal(t, 1, d.cards[2].asked[opUtilization], "what could not be read with MIG on is asked again")
			require.Equal(t, 1, d.cards[2].closes, "and with a handle of after the reset")
		})
		require.NotNil(t, m.Get().Devices[2].Stats)
	})
}

func TestAFailingMIGCallMarksOnlyItsGPU(t *testing.T) {
	play(t, splitEight, func(t *testing.T, m *Monitor, d *script) {
		d.do(func() { d.cards[2].migFaults = []code{errUnknown} })
		pass(10 * time.Second)
		require.Equal(t, 8, m.Get().HealthyCount(), "an instance that went while it was listed is no fault")
		require.Empty(t, m.Get().Devices[2].ReadErrors)

		d.do(func() { d.cards[2].migFaults = []code{errUnknown, errUnknown} })
		pass(10 * time.Second)
		s := m.Get()
		require.Equal(t, 7, s.HealthyCount())
		require.Equal(t, gpu.Unreadable, s.Devices[2].Health.Reason)
		require.Equal(t, "mig: ERROR_UNKNOWN", s.Devices[2].Health.Text)
		require.Equal(t, []gpu.ReadError{{Op: "mig", Return: "ERROR_UNKNOWN", Count: 1}}, s.Devices[2].ReadErrors)
		require.Len(t, s.Devices[2].Instances, 2, "the kubelet must not see them vanish")
		require.Nil(t, s.Devices[2].Instances[0].Stats)

		pass(30 * time.Second)
		require.Equal(t, 8, m.Get().HealthyCount())
		require.NotNil(t, m.Get().Devices[2].Instances[0].Stats)
	})
}

func TestAGPUWhoseMIGStateWasNeverReadIsListed(t *testing.T) {
	play(t, func() *script {
		d := eight()
		d.cards[2].migFaults = []code{errUnknown, errUnknown}
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		require.Len(t, m.Get().Devices, 8)
		require.Equal(t, gpu.Unreadable, m.Get().Devices[2].Health.Reason)
		require.Equal(t, 7, m.Get().HealthyCount())
	})
}

func TestAHungMIGCallMarksOnlyItsGPU(t *testing.T) {
	play(t, splitEight, func(t *testing.T, m *Monitor, d *script) {
		hang := make(chan struct{})
		d.do(func() { d.cards[2].migHang = hang })
		pass(10*time.Second + DefaultDeadline)
		s := m.Get()
		require.Equal(t, gpu.Hung, s.Devices[2].Health.Reason)
		require.Len(t, s.Devices[2].Instances, 2)
		require.Nil(t, s.Devices[2].Instances[0].Stats)
		require.Equal(t, 7, s.HealthyCount())
		for i, dev := range s.Devices {
			require.Equal(t, i != 2, dev.Stats != nil)
		}
		d.do(func() { d.cards[2].migHang = nil })
		close(hang)
		pass(30 * time.Second)
		require.Equal(t, 8, m.Get().HealthyCount())
	})
}

func TestAnInstanceThatCannotBeReadHasNoReadings(t *testing.T) {
	play(t, splitEight, func(t *testing.T, m *Monitor, d *script) {
		require.Equal(t, 2, d.cards[2].asked["mig_memory"])
		require.Equal(t, 1, d.cards[2].asked["mig_gpm"], "not supported: asked once")
		d.do(func() { d.cards[2].instanceFault = errUnknown })
		pass(10 * time.Second)
		dev := m.Get().Devices[2]
		require.True(t, dev.Health.OK())
		require.NotNil(t, dev.Stats)
		require.Nil(t, dev.Instances[0].Stats.MemoryUsed)
		require.Equal(t, []gpu.ReadError{{Op: "mig_memory", Return: "ERROR_UNKNOWN", Count: 2}}, dev.ReadErrors)

		d.do(func() { d.cards[2].instanceFault = errGPULost })
		pass(10 * time.Second)
		require.Equal(t, "mig_memory: ERROR_GPU_IS_LOST: the GPU has fallen off the bus", m.Get().Devices[2].Health.Text)

		d.do(func() {
			d.cards[2].instanceFault = success
			d.cards[2].instances[1].Profile = "1g.20gb"
			clear(d.cards[2].asked)
		})
		pass(10 * time.Second)
		require.Equal(t, 1, d.cards[2].asked["mig_gpm"], "another split may have what this one had not")
	})
}

func TestInstancesAreListedWithoutThePermissionToReadThem(t *testing.T) {
	const noPermission = code(4) // of a container without the MIG monitor capability
	play(t, func() *script {
		d := splitEight()
		d.cards[2].faults[opMemory], d.cards[2].instanceFault = noPermission, noPermission
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		dev := m.Get().Devices[2]
		require.True(t, dev.Health.OK())
		require.Len(t, dev.Instances, 2)
		require.NotNil(t, dev.Stats.Temperature)
		require.Nil(t, dev.Stats.MemoryTotal)
		require.Equal(t, &gpu.Stats{}, dev.Instances[1].Stats)
		require.Contains(t, dev.ReadErrors, gpu.ReadError{Op: "mig_memory", Return: "ERROR_NO_PERMISSION", Count: 2})
	})
}

func TestComputeInstancesShareTheReadingsOfTheirGPUInstance(t *testing.T) {
	play(t, func() *script {
		d := newScript(1)
		d.cards[0].mig, d.cards[0].instances = true, []gpu.Instance{
			{UUID: "MIG-a", GI: 1, CI: 0, Profile: "1c.3g.40gb"}, {UUID: "MIG-b", GI: 1, CI: 1, Profile: "2c.3g.40gb"},
		}
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		instances := m.Get().Devices[0].Instances
		require.Equal(t, uint64(1), *instances[1].Stats.MemoryUsed)
		require.Equal(t, 1, d.cards[0].asked["mig_memory"])
	})
}

func TestLinksAreAskedOnceAMinute(t *testing.T) {
	play(t, func() *script {
		d := newScript(2)
		d.cards[0].links = []gpu.NVLink{{Count: 18}}
		d.cards[1].faults[opLinks] = errNotSupported
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		require.Equal(t, []gpu.NVLink{{Count: 18}}, m.Get().Devices[0].NVLinks)
		pass(30 * time.Second)
		d.do(func() {
			require.Equal(t, 1, d.cards[0].asked[opLinks])
			d.cards[0].links = []gpu.NVLink{{Count: 17}}
		})
		pass(40 * time.Second)
		require.Equal(t, []gpu.NVLink{{Count: 17}}, m.Get().Devices[0].NVLinks)
		d.do(func() {
			d.cards[0].faults[opLinks] = errUnknown
			require.Equal(t, 1, d.cards[1].asked[opLinks])
		})
		pass(time.Minute)
		dev := m.Get().Devices[0]
		require.Equal(t, []gpu.NVLink{{Count: 17}}, dev.NVLinks, "what cannot be read is as it was")
		require.Equal(t, []gpu.ReadError{{Op: "nvlinks", Return: "ERROR_UNKNOWN", Count: 1}}, dev.ReadErrors)
		require.True(t, dev.Health.OK())

		d.do(func() { d.cards[0].faults[opLinks] = errGPULost })
		pass(time.Minute)
		require.Equal(t, "nvlinks: ERROR_GPU_IS_LOST: the GPU has fallen off the bus", m.Get().Devices[0].Health.Text)
	})
}

func TestTheMinorsOfCapabilityNodesComeFromProcfs(t *testing.T) {
	root := t.TempDir()
	instances := []gpu.Instance{{GI: 1, CI: 0}, {GI: 13, CI: 1}}
	require.Nil(t, readCapMinors(root, 1))
	nameCapabilities(instances, nil)
	require.Equal(t, -1, instances[0].GIMinor)

	dir := filepath.Join(root, "driver/nvidia-caps")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mig-minors"), []byte("config 1\nmonitor 2\n"+
		"gpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\ngpu1/gi1/access 147\ngpu1/gi1/ci0/access 148\ngpu1/gi13/access 255\n"), 0o644))
	nameCapabilities(instances, readCapMinors(root, 1))
	require.Equal(t, []gpu.Instance{{GI: 1, GIMinor: 147, CIMinor: 148}, {GI: 13, CI: 1, GIMinor: 255, CIMinor: -1}}, instances)
	require.Empty(t, readCapMinors(root, -1))
}

func TestProfilesAreReadFromNames(t *testing.T) {
	for name, want := range map[string]string{
		"NVIDIA H100 80GB HBM3 MIG 1g.10gb+me": "1g.10gb+me",
		"NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb": "1c.3g.20gb",
		"NVIDIA MIG board MIG 7g.80gb":         "7g.80gb",
		"NVIDIA H100 80GB HBM3":                "",
	} {
		require.Equal(t, want, migProfile(name))
	}
}
