package nvml

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// shows makes a reading of a card answer, from now on.
func (c *scriptCard) shows(o op, f func(*gpu.Stats)) { c.d.do(func() { c.readings[o] = f }) }

func (c *scriptCard) recovery(action uint64) {
	c.shows(opRecoveryAction, func(s *gpu.Stats) { s.RecoveryAction = new(action) })
}

func (c *scriptCard) uncorrected(n uint64) {
	c.shows(opECCUncorrVolatile, func(s *gpu.Stats) { s.ECCUncorrectedVolatile = new(n) })
}

func (c *scriptCard) remap(pending, failed bool) {
	c.shows(opRemappedRows, func(s *gpu.Stats) { s.RowRemapPending, s.RowRemapFailed = &pending, &failed })
}

func (c *scriptCard) persistence(on bool) {
	c.shows(opPersistence, func(s *gpu.Stats) { s.PersistenceMode = &on })
}

// xid has the driver report an XID.
func (d *script) xid(gpu int, code uint64) {
	d.cards[gpu].events <- event{Code: code}
	synctest.Wait()
}

// node is a host whose boot id and PCI bindings a test may change, and a folder for the state.
type node struct {
	host host
	cfg  Config
}

func newNode(t *testing.T) node {
	k := node{host{sysfs: t.TempDir(), procfs: t.TempDir()}, Config{Health: Health{StateDir: filepath.Join(t.TempDir(), "state")}}}
	k.boot(t, "boot-1")
	return k
}

func (k node) boot(t *testing.T, id string) {
	file := filepath.Join(k.host.procfs, "sys/kernel/random/boot_id")
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, []byte(id+"\n"), 0o644))
}

// bind binds the kernel driver to a PCI device: the link of another binding is another file.
func (k node) bind(t *testing.T, busID string) {
	link := filepath.Join(k.host.sysfs, "bus/pci/devices", busID, "driver")
	require.NoError(t, os.MkdirAll(filepath.Dir(link), 0o755))
	require.NoError(t, os.Symlink("nvidia", link+".new"))
	require.NoError(t, os.Rename(link+".new", link))
}

func (k node) play(t *testing.T, d func() *script, test func(t *testing.T, m *Monitor, d *script)) {
	t.Helper()
	playWith(t, k.cfg, k.host, d, test)
}

func TestTheRecoveryActionDecides(t *testing.T) {
	for action, needs := range map[uint64]gpu.Remedy{
		1: gpu.ResetGPU, 2: gpu.RebootNode, 3: gpu.RestartApp, 4: gpu.ResetGPU, 5: gpu.Operator, 6: gpu.ResetGPU, 7: gpu.RebootNode, 8: gpu.ResetGPU,
	} {
		t.Run(fmt.Sprint(action), func(t *testing.T) {
			play(t, eight, func(t *testing.T, m *Monitor, d *script) {
				c := d.cards[2]
				c.recovery(action)
				pass(10 * time.Second)
				h := m.Get().Devices[2].Health
				require.Equal(t, gpu.RecoveryAction, h.Reason)
				require.Equal(t, needs, h.Needs)
				require.Contains(t, h.Text, fmt.Sprintf("(recovery action %d)", action))
				require.Equal(t, 7, m.Get().HealthyCount())

				d.do(func() { c.faults[opRecoveryAction] = errUnknown })
				pass(time.Minute)
				require.Equal(t, h, m.Get().Devices[2].Health, "an action that cannot be read has not gone")
				d.do(func() { delete(c.faults, opRecoveryAction) })
				c.recovery(0)
				pass(20 * time.Second)
				require.Equal(t, h, m.Get().Devices[2].Health, "two probes are not three")
				pass(10 * time.Second)
				require.Equal(t, 8, m.Get().HealthyCount())
			})
		})
	}
}

func TestNothingHealsWithoutEvidence(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.xid(4, 119)
		h := m.Get().Devices[4].Health
		require.Equal(t, gpu.Health{Reason: gpu.XID, Text: "XID 119 (GSP_RPC_TIMEOUT)", Needs: gpu.ResetGPU, Since: h.Since}, h)
		pass(time.Hour)
		require.Equal(t, h, m.Get().Devices[4].Health, "good samples alone")

		d.do(func() { d.cards = append(d.cards, newScript(9).cards[8]); d.cards[8].d = d })
		pass(time.Minute)
		require.Len(t, m.Get().Devices, 9)
		require.Equal(t, h, m.Get().Devices[4].Health, "the library initialised anew")

		d.do(func() { d.gone, d.openErr = errDriverNotLoaded, errAway })
		pass(time.Minute)
		require.Zero(t, m.Get().HealthyCount())
		d.do(func() { d.gone, d.openErr = success, nil })
		pass(2 * time.Minute)
		require.Equal(t, h, m.Get().Devices[4].Health, "the same driver, there again")
		require.Equal(t, 8, m.Get().HealthyCount())
	})
}

// errAway is some trouble of the driver.
var errAway = errors.New("driver away")

func TestEvidenceHealsAfterThreeProbes(t *testing.T) {
	for name, prove := range map[string]func(t *testing.T, k node, d *script){
		"the recovery action fell":    func(_ *testing.T, _ node, d *script) { d.cards[4].recovery(0) },
		"memory errors were cleared":  func(_ *testing.T, _ node, d *script) { d.cards[4].uncorrected(0) },
		"a remapping was carried out": func(_ *testing.T, _ node, d *script) { d.cards[4].remap(false, false) },
		"bound anew":                  func(t *testing.T, k node, _ *script) { k.bind(t, "0000:04:00.0") },
		"a driver of another version": func(_ *testing.T, _ node, d *script) {
			d.do(func() { d.version = "580.1"; d.cards = append(d.cards, newScript(9).cards[8]); d.cards[8].d = d })
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newNode(t)
			k.bind(t, "0000:04:00.0")
			k.play(t, func() *script {
				d := newScript(8)
				d.cards[4].bus = "00000000:04:00.0"
				d.cards[4].uncorrected(5)
				d.cards[4].remap(true, false)
				return d
			}, func(t *testing.T, m *Monitor, d *script) {
				require.Equal(t, 8, m.Get().HealthyCount(), "errors of before are not judged, and a pending row is a notice")
				d.xid(4, 119)
				if name == "the recovery action fell" {
					d.cards[4].recovery(1)
				}
				pass(time.Minute)
				require.Equal(t, 7, m.Get().HealthyCount())
				prove(t, k, d)
				pass(20 * time.Second)
				require.Equal(t, len(d.cards)-1, m.Get().HealthyCount(), "two probes are not three")
				pass(30 * time.Second)
				require.Equal(t, len(d.cards), m.Get().HealthyCount())
			})
		})
	}
}

func TestAResetIsNoEvidenceOfAReboot(t *testing.T) {
	k := newNode(t)
	k.bind(t, "0000:04:00.0")
	k.play(t, func() *script { d := newScript(8); d.cards[4].bus = "00000000:04:00.0"; return d },
		func(t *testing.T, m *Monitor, d *script) {
			d.xid(4, 151)
			pass(10 * time.Second)
			k.bind(t, "0000:04:00.0")
			pass(time.Hour)
			require.Equal(t, gpu.RebootNode, m.Get().Devices[4].Health.Needs)
		})
	k.boot(t, "boot-2")
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		require.Equal(t, 7, m.Get().HealthyCount())
		pass(30 * time.Second)
		require.Equal(t, 8, m.Get().HealthyCount())
	})
}

func TestCountersThatStartAnewAreEvidenceOnlyWhereTheGPUStayedOpen(t *testing.T) {
	for _, persistent := range []bool{false, true} {
		t.Run(fmt.Sprintf("persistence mode %t", persistent), func(t *testing.T) {
			k := newNode(t)
			k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
				d.cards[4].uncorrected(5)
				d.cards[4].persistence(persistent)
				pass(10 * time.Second)
				d.xid(4, 119)
				pass(time.Minute)
			})
			k.play(t, func() *script {
				d := newScript(8)
				d.cards[4].uncorrected(0)
				d.cards[4].persistence(persistent)
				return d
			}, func(t *testing.T, m *Monitor, d *script) {
				pass(time.Hour)
				require.Equal(t, persistent, m.Get().Devices[4].Health.OK())
			})
		})
	}
}

func TestARestartHealsNothing(t *testing.T) {
	k := newNode(t)
	var before gpu.Health
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.xid(4, 119)
		d.xid(4, 79)
		pass(time.Second)
		before = m.Get().Devices[4].Health
		require.Equal(t, "XID 79 (ROBUST_CHANNEL_GPU_HAS_FALLEN_OFF_THE_BUS); XID 119 (GSP_RPC_TIMEOUT)", before.Text)
	})
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		require.Equal(t, 7, m.Get().HealthyCount(), "from the first snapshot on")
		pass(time.Hour)
		after := m.Get().Devices[4].Health
		require.True(t, before.Since.Equal(after.Since))
		after.Since = before.Since
		require.Equal(t, before, after)
	})
	// The GPU is away while the agent starts twice: what is known of it is kept.
	k.play(t, func() *script { d := newScript(8); d.cards = d.cards[:4]; return d }, func(t *testing.T, m *Monitor, _ *script) {
		pass(time.Minute)
		require.Equal(t, 4, m.Get().HealthyCount())
	})
	k.play(t, eight, func(t *testing.T, m *Monitor, _ *script) { require.Equal(t, 7, m.Get().HealthyCount()) })
	k.boot(t, "boot-2")
	k.play(t, eight, func(t *testing.T, m *Monitor, _ *script) {
		pass(30 * time.Second)
		require.Equal(t, 8, m.Get().HealthyCount())
	})
	k.play(t, eight, func(t *testing.T, m *Monitor, _ *script) {
		require.Equal(t, 8, m.Get().HealthyCount(), "and that is kept, too")
	})
}

func TestAGPUThatFellOffTheBusHealsWhenItAnswersAgain(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.xid(4, 79)
		pass(time.Minute)
		require.Equal(t, 7, m.Get().HealthyCount(), "it answers, as if nothing had been: that proves nothing")
		d.do(func() { d.cards[4].fault = errGPULost })
		pass(10 * time.Second)
		require.Equal(t, gpu.Lost, m.Get().Devices[4].Health.Reason)
		d.do(func() { d.cards[4].fault = success })
		pass(30 * time.Second)
		require.Equal(t, 8, m.Get().HealthyCount())
	})
}

func TestAnXIDThatTheDriverDecides(t *testing.T) {
	for name, tc := range map[string]struct {
		xid    uint64
		action *uint64
		reason gpu.Reason
		needs  gpu.Remedy
	}{
		"no field, NVLink":          {74, nil, gpu.XID, gpu.ResetGPU},
		"no field, support":         {59, nil, gpu.XID, gpu.Support},
		"no field, in no catalog":   {999, nil, gpu.XID, gpu.Support},
		"no field, informational":   {154, nil, gpu.Healthy, ""},
		"nothing to do":             {74, new(uint64(0)), gpu.Healthy, ""},
		"nothing to do for support": {59, new(uint64(0)), gpu.Healthy, ""},
		"a reset":                   {154, new(uint64(1)), gpu.RecoveryAction, gpu.ResetGPU},
		"a reboot":                  {45, new(uint64(2)), gpu.RecoveryAction, gpu.RebootNode},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func() *script {
				d := newScript(8)
				if tc.action != nil {
					d.cards[4].recovery(0)
				}
				return d
			}, func(t *testing.T, m *Monitor, d *script) {
				if tc.action != nil {
					d.cards[4].recovery(*tc.action)
				}
				pass(time.Second)
				d.xid(4, tc.xid)
				pass(200 * time.Millisecond)
				dev := m.Get().Devices[4]
				require.Equal(t, tc.reason, dev.Health.Reason)
				require.Equal(t, tc.needs, dev.Health.Needs)
				require.Equal(t, uint64(1), dev.XIDs[0].Count)
				if tc.reason == gpu.XID && tc.needs == gpu.Support {
					pass(day)
					require.Equal(t, dev.Health, m.Get().Devices[4].Health, "sticky")
				}
			})
		})
	}
}

func TestAQuestionThatCannotBeAskedIsAnsweredByTheCatalog(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.cards[4].recovery(0)
		pass(10 * time.Second)
		d.do(func() { d.cards[4].fault = errUnknown })
		d.xid(4, 74)
		pass(time.Second)
		d.do(func() { d.cards[4].fault = success })
		pass(time.Hour)
		require.Equal(t, "XID 74 (NVLINK_ERROR)", m.Get().Devices[4].Health.Text)
	})
}

func TestContainedMemoryErrorsKeepTheGPU(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		for _, c := range d.cards[:5] {
			c.uncorrected(0)
		}
		pass(10 * time.Second)
		unhealthy := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 3 {
				s, changed := m.Watch()
				unhealthy += 8 - s.HealthyCount()
				<-changed
			}
		}()
		d.xid(0, 48)
		d.xid(0, 63)
		d.xid(1, 94)
		d.xid(1, 48)
		d.cards[0].uncorrected(1)
		d.cards[1].uncorrected(1)
		d.cards[2].uncorrected(1)
		pass(10 * time.Second)
		<-done
		s := m.Get()
		require.True(t, s.Devices[0].Health.OK())
		require.True(t, s.Devices[1].Health.OK())
		require.Equal(t, gpu.Contained, s.Devices[0].Notices[0].Code)
		require.Equal(t, gpu.Contained, s.Devices[1].Notices[0].Code)
		require.Equal(t, gpu.ECC, s.Devices[2].Health.Reason)
		require.Equal(t, gpu.ResetGPU, s.Devices[2].Health.Needs)

		d.xid(3, 48)
		pass(200 * time.Millisecond)
		require.Equal(t, "XID 48 (ROBUST_CHANNEL_GPU_ECC_DBE)", m.Get().Devices[3].Health.Text)
		d.xid(3, 63)
		pass(200 * time.Millisecond)
		require.True(t, m.Get().Devices[3].Health.OK(), "the word that it was contained came late")
		d.xid(4, 171)
		pass(2 * time.Minute)
		d.xid(4, 63)
		pass(time.Minute)
		require.False(t, m.Get().Devices[4].Health.OK(), "too late: that was another error")
	})
}

func TestStickyConditionsNeedAnOperator(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.cards[0].remap(false, true)
		d.cards[1].shows(opSRAM, func(s *gpu.Stats) { s.SRAMThresholdExceeded = new(true) })
		pass(10 * time.Second)
		s := m.Get()
		require.Equal(t, gpu.RowRemapFailed, s.Devices[0].Health.Reason)
		require.Equal(t, gpu.SRAMThreshold, s.Devices[1].Health.Reason)
		require.Equal(t, gpu.Support, s.Devices[1].Health.Needs)
		d.cards[0].remap(false, false)
		pass(day)
		require.Equal(t, gpu.RowRemapFailed, m.Get().Devices[0].Health.Reason)

		ended, left, err := m.Uncordon(t.Context(), "GPU-1")
		require.NoError(t, err)
		require.Len(t, ended, 1)
		require.True(t, left.OK())
		pass(time.Minute)
		s = m.Get()
		require.True(t, s.Devices[1].Health.OK(), "an operator knows, and uses it")
		require.Equal(t, gpu.NoticeCode(gpu.SRAMThreshold), s.Devices[1].Notices[0].Code)
		d.cards[1].shows(opSRAM, func(s *gpu.Stats) { s.SRAMThresholdExceeded = new(false) })
		pass(10 * time.Second)
		require.Empty(t, m.Get().Devices[1].Notices)
		d.cards[1].shows(opSRAM, func(s *gpu.Stats) { s.SRAMThresholdExceeded = new(true) })
		pass(10 * time.Second)
		require.False(t, m.Get().Devices[1].Health.OK(), "what was accepted had ended")
	})
}

func TestAFabricThatCannotBeReadHasNotRecovered(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		c := d.cards[0]
		for _, tc := range []struct {
			state, status, mask uint64
			needs               gpu.Remedy
		}{
			{fabricInProgress, 0, 0, gpu.Operator},
			{fabricCompleted, 999, 0, gpu.Operator},
			{fabricCompleted, 0, 1 << 4, gpu.ResetGPU},
			{fabricCompleted, 0, 5 << 8, gpu.Operator},
		} {
			c.shows(opFabric, func(s *gpu.Stats) { s.FabricState, s.FabricStatus, s.FabricHealth = &tc.state, &tc.status, &tc.mask })
			pass(10 * time.Second)
			h := m.Get().Devices[0].Health
			require.Equal(t, gpu.FabricFault, h.Reason)
			require.Equal(t, tc.needs, h.Needs, h.Text)
		}
		d.do(func() { c.faults[opFabric] = errUnknown })
		pass(time.Hour)
		require.Equal(t, 7, m.Get().HealthyCount())
		d.do(func() { delete(c.faults, opFabric) })
		c.shows(opFabric, func(s *gpu.Stats) {
			s.FabricState, s.FabricStatus, s.FabricHealth = new(uint64(fabricCompleted)), new(uint64(0)), new(uint64(1|1<<2|1<<6|1<<8))
		})
		pass(30 * time.Second)
		require.Equal(t, 8, m.Get().HealthyCount())
		require.Len(t, m.Get().Devices[0].Notices, 3, "degraded, and in use")
	})
}

func TestAnActionThatCouldNotBeReadOnceIsAskedForAgain(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		c := d.cards[4]
		c.recovery(0)
		d.do(func() { c.faults[opRecoveryAction] = errUnknown })
		pass(10 * time.Second)
		d.do(func() { delete(c.faults, opRecoveryAction) })
		d.xid(4, 59)
		pass(time.Second)
		require.Equal(t, 8, m.Get().HealthyCount())
	})
}

func TestIgnoredReasonsAreNotices(t *testing.T) {
	cfg := Config{Health: Health{Ignore: []gpu.Reason{gpu.FabricFault, gpu.ECC, gpu.Unavailable}}}
	playWith(t, cfg, host{}, eight, func(t *testing.T, m *Monitor, d *script) {
		d.cards[0].shows(opFabric, func(s *gpu.Stats) { s.FabricState = new(uint64(fabricInProgress)) })
		d.cards[1].uncorrected(0)
		pass(10 * time.Second)
		d.cards[1].uncorrected(2)
		d.cards[2].events <- event{Kind: eventUnavailable}
		pass(10 * time.Second)
		s := m.Get()
		require.Equal(t, 8, s.HealthyCount())
		require.Equal(t, gpu.NoticeCode(gpu.FabricFault), s.Devices[0].Notices[0].Code)
		require.Equal(t, gpu.NoticeCode(gpu.ECC), s.Devices[1].Notices[0].Code)
		require.Equal(t, gpu.NoticeCode(gpu.Unavailable), s.Devices[2].Notices[0].Code)
	})
}

func TestTheDriversEvents(t *testing.T) {
	play(t, func() *script { d := newScript(8); d.cards[1].recovery(0); return d }, func(t *testing.T, m *Monitor, d *script) {
		d.cards[0].events <- event{Kind: eventUnavailable}
		d.cards[1].events <- event{Kind: eventUnavailable}
		synctest.Wait()
		require.Equal(t, gpu.Unavailable, m.Get().Devices[0].Health.Reason)
		require.Equal(t, 6, m.Get().HealthyCount())
		pass(time.Minute)
		require.True(t, m.Get().Devices[1].Health.OK(), "the driver asks for nothing, three probes long")
		require.False(t, m.Get().Devices[0].Health.OK(), "this one cannot say so")

		d.cards[1].recovery(2)
		d.cards[1].events <- event{Kind: eventRecoveryAction}
		pass(200 * time.Millisecond)
		require.Equal(t, gpu.RecoveryAction, m.Get().Devices[1].Health.Reason, "it was asked at once")
	})
}

func TestAGPUThatFlapsWaitsForAnOperator(t *testing.T) {
	k := newNode(t)
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		for i := range 5 {
			d.do(func() { d.cards[3].fault = errUnknown })
			pass(10 * time.Second)
			require.Equal(t, gpu.Unreadable, m.Get().Devices[3].Health.Reason)
			d.do(func() { d.cards[3].fault = success })
			pass(time.Minute)
			require.Equal(t, i < 4, m.Get().Devices[3].Health.OK(), "time %d", i)
		}
		h := m.Get().Devices[3].Health
		require.Equal(t, gpu.Flapping, h.Reason)
		require.Equal(t, gpu.Operator, h.Needs)
		require.Contains(t, h.Text, "fell ill again 4 times within a day")
		require.Equal(t, 7, m.Get().HealthyCount())
	})
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		pass(2 * day)
		require.Equal(t, gpu.Flapping, m.Get().Devices[3].Health.Reason)
		_, left, err := m.Uncordon(t.Context(), "GPU-3")
		require.NoError(t, err)
		require.True(t, left.OK())
		require.Equal(t, 8, m.Get().HealthyCount())
	})
}

func TestARebootIsNoWordOfAnOperator(t *testing.T) {
	k := newNode(t)
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.cards[0].remap(false, true)
		pass(10 * time.Second)
		d.cards[0].remap(false, false)
		d.xid(1, 59) // ask support, and the driver has no recovery action
		pass(time.Minute)
		require.Equal(t, 6, m.Get().HealthyCount())
	})
	k.boot(t, "boot-2")
	k.play(t, eight, func(t *testing.T, m *Monitor, _ *script) {
		pass(time.Hour)
		require.Equal(t, gpu.RowRemapFailed, m.Get().Devices[0].Health.Reason)
		require.Equal(t, gpu.XID, m.Get().Devices[1].Health.Reason)
	})
}

func TestARecoveryActionThatResetsNothingIsNoEvidenceOfAReset(t *testing.T) {
	for _, action := range []uint64{3, 5} {
		t.Run(fmt.Sprint(action), func(t *testing.T) {
			play(t, eight, func(t *testing.T, m *Monitor, d *script) {
				c := d.cards[4]
				c.recovery(action)
				pass(10 * time.Second)
				d.xid(4, 95)
				pass(time.Minute)
				c.recovery(0)
				pass(time.Hour)
				h := m.Get().Devices[4].Health
				require.Equal(t, gpu.XID, h.Reason)
				require.NotContains(t, h.Text, "recovery action", "that one is over")

				c.recovery(action)
				pass(time.Minute)
				c.recovery(1)
				pass(time.Minute)
				c.recovery(action)
				pass(time.Minute)
				c.recovery(0)
				pass(time.Minute)
				require.True(t, m.Get().Devices[4].Health.OK(), "a reset was asked for, and is not any more")
			})
		})
	}
}
