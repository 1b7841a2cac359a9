package nvml

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

func TestACordonHoldsUntilItIsLifted(t *testing.T) {
	k := newNode(t)
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		require.ErrorContains(t, m.Cordon(t.Context(), "GPU-2", " "), "a cordon needs a reason")
		require.ErrorContains(t, m.Cordon(t.Context(), "GPU-2", "a\nb"), "want one line of at most 256 bytes")
		require.EqualError(t, m.Cordon(t.Context(), "GPU-x", "why"),
			"there is no GPU GPU-x here: want one of GPU-0, GPU-1, GPU-2, GPU-3, GPU-4, GPU-5, GPU-6, GPU-7")
		require.NoError(t, m.Cordon(t.Context(), "GPU-2", "fan is loud"))
		s := m.Get()
		require.Equal(t, gpu.Health{Reason: gpu.Cordoned, Text: "cordoned: fan is loud", Since: s.Devices[2].Health.Since, Needs: gpu.Operator}, s.Devices[2].Health)
		require.Equal(t, 7, s.HealthyCount())
		d.xid(2, 119)
		require.Equal(t, "XID 119 (GSP_RPC_TIMEOUT); cordoned: fan is loud", m.Get().Devices[2].Health.Text)
	})
	k.boot(t, "boot-2")
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		pass(30 * time.Second)
		require.Equal(t, "cordoned: fan is loud", m.Get().Devices[2].Health.Text, "a reboot heals, and uncordons nothing")
		d.do(func() { d.cards[2].fault = errGPULost })
		pass(10 * time.Second)
		ended, left, err := m.Uncordon(t.Context(), "GPU-2")
		require.NoError(t, err)
		require.Equal(t, []string{"cordoned: fan is loud"}, ended)
		require.Equal(t, gpu.Lost, left.Reason, "nobody can use a GPU that does not answer")
	})
}

func TestAnOperatorWaitsUntilTheInventoryIsKnown(t *testing.T) {
	play(t, func() *script { d := eight(); d.cards[7].hang = make(chan struct{}); return d }, func(t *testing.T, m *Monitor, d *script) {
		done := make(chan error, 1)
		go func() { done <- m.Cordon(t.Context(), "GPU-2", "x") }()
		synctest.Wait()
		require.Empty(t, m.Get().Devices, "seven of eight, as long as the eighth may answer")
		pass(DefaultDeadline)
		require.NoError(t, <-done)
		require.Equal(t, 6, m.Get().HealthyCount())
		d.do(func() { close(d.cards[7].hang); d.cards[7].hang = nil })
	})
}

func TestARecordThatSomebodyElseWroteIsWrittenAgain(t *testing.T) {
	k := newNode(t)
	file := filepath.Join(k.cfg.Health.StateDir, recordName)
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		require.NoError(t, m.Cordon(t.Context(), "GPU-2", "x"))
		want, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, spoil := range []func() error{
			func() error { return os.Remove(file) },
			func() error { return os.WriteFile(file, []byte(`{"version": 1}`), 0o600) },
		} {
			require.NoError(t, spoil())
			pass(lookAgain + time.Second)
			got, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), string(got))
		}
	})
}

// two runs two agents on one state directory: the first is there already when the second starts.
func two(t *testing.T, test func(t *testing.T, leaves, stays *Monitor, stop func())) {
	t.Helper()
	k := newNode(t)
	synctest.Test(t, func(t *testing.T) {
		next := func() *Monitor {
			m, err := New(k.cfg)
			require.NoError(t, err)
			m.driver, m.host = eight(), k.host
			return m
		}
		leaves, stays := next(), next()
		stop := running(t, leaves)
		require.NoError(t, leaves.Cordon(t.Context(), "GPU-1", "before"))
		pass(time.Second)
		stopStays := running(t, stays)
		pass(time.Second)
		test(t, leaves, stays, stop)
		stopStays()
	})
}

func TestACordonGivenToTheAgentThatLeavesHolds(t *testing.T) {
	two(t, func(t *testing.T, leaves, stays *Monitor, stop func()) {
		_, _, err := stays.Uncordon(t.Context(), "GPU-1")
		require.NoError(t, err)
		require.NoError(t, leaves.Cordon(t.Context(), "GPU-2", "fan is loud"))
		require.NoError(t, stays.Cordon(t.Context(), "GPU-3", "fan is loud, too"))
		stop()
		pass(lookAgain + time.Second)
		require.Equal(t, gpu.Cordoned, stays.Get().Devices[2].Health.Reason)
		require.Equal(t, 6, stays.Get().HealthyCount(), "the cordon of before was lifted here")
		_, _, err = stays.Uncordon(t.Context(), "GPU-2")
		require.NoError(t, err)
		pass(2 * lookAgain)
		require.Equal(t, 7, stays.Get().HealthyCount())
	})
}

func TestAnUncordonGivenToTheAgentThatLeavesHolds(t *testing.T) {
	two(t, func(t *testing.T, leaves, stays *Monitor, stop func()) {
		for _, m := range []*Monitor{leaves, stays} {
			m.driver.(*script).xid(4, 119)
		}
		require.NoError(t, stays.Cordon(t.Context(), "GPU-2", "x"))
		_, _, err := leaves.Uncordon(t.Context(), "GPU-1")
		require.NoError(t, err)
		_, _, err = leaves.Uncordon(t.Context(), "GPU-4")
		require.NoError(t, err)
		pass(time.Millisecond)
		stays.driver.(*script).xid(4, 79) // after the word
		pass(2*lookEvery + time.Second)
		for who, m := range map[string]*Monitor{"leaves": leaves, "stays": stays} {
			require.True(t, m.Get().Devices[1].Health.OK(), who)
			require.Equal(t, gpu.Cordoned, m.Get().Devices[2].Health.Reason, who)
		}
		require.True(t, leaves.Get().Devices[4].Health.OK())
		require.Regexp(t, `^XID 79 \([A-Z_]+\)$`, stays.Get().Devices[4].Health.Text)
		require.NoError(t, leaves.Cordon(t.Context(), "GPU-1", "again"))
		stop()
		pass(2*lookEvery + time.Second)
		require.Equal(t, "cordoned: again", stays.Get().Devices[1].Health.Text)
	})
}

func TestAReleaseGivenToEitherAgentIsOneOfBoth(t *testing.T) {
	two(t, func(t *testing.T, leaves, stays *Monitor, stop func()) {
		both := func(healthy int) {
			t.Helper()
			pass(2*lookEvery + listenFor)
			require.Equal(t, healthy, leaves.Get().HealthyCount())
			require.Equal(t, healthy, stays.Get().HealthyCount())
		}
		require.NoError(t, leaves.Release(t.Context(), time.Minute))
		both(0)
		d := stays.driver.(*script)
		d.do(func() { require.Equal(t, 1, d.closes) })
		require.NoError(t, stays.Resume(t.Context()))
		both(7)
		require.NoError(t, stays.Release(t.Context(), time.Hour))
		both(0)
		require.NoError(t, leaves.Release(t.Context(), time.Minute))
		both(0)
		stop()
		pass(time.Minute)
		require.Equal(t, 7, stays.Get().HealthyCount(), "the last word counts")
	})
}

func TestTwoAgentsDoNotWriteInTurns(t *testing.T) {
	two(t, func(t *testing.T, leaves, stays *Monitor, stop func()) {
		require.NoError(t, leaves.Cordon(t.Context(), "GPU-2", "x"))
		pass(lookAgain / 2)
		before := [2]os.FileInfo{leaves.keeper.written, stays.keeper.written}
		pass(lookAgain / 3)
		require.Equal(t, before, [2]os.FileInfo{leaves.keeper.written, stays.keeper.written})
		stop()
	})
}

func TestAReleaseLetsGoOfTheDriver(t *testing.T) {
	k := newNode(t)
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		require.ErrorContains(t, m.Release(t.Context(), 2*time.Hour), "want more than 0s and at most 1h0m0s")
		require.NoError(t, m.Release(t.Context(), 10*time.Minute))
		d.do(func() { require.Equal(t, 1, d.closes) })
		s := m.Get()
		require.Len(t, s.Devices, 8)
		require.Zero(t, s.HealthyCount())
		require.Equal(t, gpu.Released, s.Devices[0].Health.Reason)
		require.False(t, s.Driver.Loaded)
		require.Contains(t, s.Driver.Error, "gpu-agent devices resume")

		asked := 0
		d.do(func() { asked = d.cards[0].asked[opMemory] })
		pass(9 * time.Minute)
		d.do(func() {
			require.Equal(t, asked, d.cards[0].asked[opMemory], "nothing is asked")
			require.Len(t, d.opens, 1)
		})
		require.NoError(t, m.Cordon(t.Context(), "GPU-2", "in the meantime"))
		require.NoError(t, m.Release(t.Context(), 5*time.Minute), "longer")
		pass(4 * time.Minute)
		require.Zero(t, m.Get().HealthyCount())
		pass(time.Minute)
		require.Equal(t, 7, m.Get().HealthyCount(), "it ends by itself")

		require.NoError(t, m.Release(t.Context(), time.Hour))
		require.NoError(t, m.Resume(t.Context()))
		synctest.Wait()
		require.Equal(t, 7, m.Get().HealthyCount())
		require.NoError(t, m.Resume(t.Context()), "nothing to end")
		require.NoError(t, m.Release(t.Context(), time.Hour))
	})
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.do(func() { require.Empty(t, d.opens, "a restart does not end it") })
		require.Len(t, m.Get().Devices, 8, "the kubelet must not see them vanish")
		require.Equal(t, gpu.Released, m.Get().Devices[3].Health.Reason)
		require.NoError(t, m.Resume(t.Context()))
		synctest.Wait()
		require.Equal(t, 7, m.Get().HealthyCount())
	})
}

func TestAReleaseWithoutADriver(t *testing.T) {
	play(t, func() *script { d := newScript(2); d.openErr = errAway; return d }, func(t *testing.T, m *Monitor, d *script) {
		require.NoError(t, m.Release(t.Context(), time.Minute))
		d.do(func() { d.openErr = nil })
		pass(59 * time.Second)
		d.do(func() { require.Len(t, d.opens, 1) })
		pass(time.Second)
		require.Equal(t, 2, m.Get().HealthyCount())
	})
}

func TestAReleaseDuringInitialisationWaitsForIt(t *testing.T) {
	play(t, func() *script { d := newScript(2); d.opening = make(chan struct{}); return d }, func(t *testing.T, m *Monitor, d *script) {
		opening := d.opening
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, m.Release(ctx, time.Minute), context.DeadlineExceeded)
		d.do(func() { d.opening = nil })
		close(opening)
		synctest.Wait()
		require.Equal(t, 1, d.closes)
		pass(time.Minute)
		require.Equal(t, 2, m.Get().HealthyCount())
	})
}

func TestAStuckCallMakesAReleaseImpossible(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		hang := make(chan struct{})
		d.do(func() { d.cards[1].hang = hang })
		pass(time.Minute)
		require.ErrorContains(t, m.Release(t.Context(), time.Minute), "a driver call is stuck")
		d.do(func() { d.cards[1].hang = nil })
		close(hang)
		pass(time.Minute)
		require.Equal(t, 8, m.Get().HealthyCount(), "and nothing has changed")
	})
}

func TestADamagedRecordIsSaidAndPutAside(t *testing.T) {
	for name, content := range map[string]string{
		"no JSON":         "{",
		"another version": `{"version": 2}`,
		"no UUID":         `{"version": 1, "gpus": [{}]}`,
		"no reason":       `{"version": 1, "gpus": [{"uuid": "GPU-1", "troubles": [{"until": "reset"}]}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			k := newNode(t)
			var log bytes.Buffer
			k.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
			file := filepath.Join(k.cfg.Health.StateDir, recordName)
			require.NoError(t, os.MkdirAll(k.cfg.Health.StateDir, 0o755))
			require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
			k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
				require.Equal(t, 8, m.Get().HealthyCount())
				require.Contains(t, m.Get().StateError, "which GPUs were unhealthy before this start is not known")
				require.NoError(t, m.Cordon(t.Context(), "GPU-1", "x"))
			})
			require.Equal(t, 1, strings.Count(log.String(), "which GPUs were unhealthy"))
			aside, err := os.ReadFile(file + ".damaged")
			require.NoError(t, err)
			require.Equal(t, content, string(aside))
			k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
				require.Equal(t, 7, m.Get().HealthyCount())
				require.Empty(t, m.Get().StateError)
			})
		})
	}
}

func TestADamagedRecordIsReplacedByItsCopy(t *testing.T) {
	for name, damage := range map[string]func(file string) error{
		"no JSON": func(file string) error { return os.WriteFile(file, []byte("{"), 0o600) },
		"it went": os.Remove,
		"no file": func(file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o755)) }, // read gives EISDIR
	} {
		t.Run(name, func(t *testing.T) {
			k := newNode(t)
			k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
				d.xid(4, 119)
				require.NoError(t, m.Cordon(t.Context(), "GPU-1", "x"))
			})
			file := filepath.Join(k.cfg.Health.StateDir, recordName)
			require.NoError(t, damage(file))
			k.play(t, eight, func(t *testing.T, m *Monitor, _ *script) {
				require.Equal(t, 6, m.Get().HealthyCount())
				_, err := os.Stat(file + ".damaged")
				require.Equal(t, name == "no JSON", err == nil, "only what was read and makes no sense is moved")
			})
		})
	}
}

func TestADiskThatCannotBeWrittenIsSaid(t *testing.T) {
	k := newNode(t)
	var log bytes.Buffer
	k.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	var full atomic.Bool
	full.Store(true)
	synctest.Test(t, func(t *testing.T) {
		m, err := New(k.cfg)
		require.NoError(t, err)
		d := eight()
		m.driver, m.host = d, k.host
		m.keeper.disk.Fault = func(op, _ string) error {
			if full.Load() && op == "write" {
				return errors.New("no space left on device")
			}
			return nil
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		pass(10 * time.Second)
		require.Contains(t, m.Get().StateError, "no space left on device")
		err = m.Cordon(t.Context(), "GPU-1", "x")
		require.ErrorContains(t, err, "done, but a restart of the agent would forget it")
		require.Equal(t, 7, m.Get().HealthyCount())
		pass(time.Hour)
		full.Store(false)
		pass(time.Minute)
		require.Empty(t, m.Get().StateError)
		stop()
		require.NoError(t, <-done)
	})
	require.Equal(t, 1, strings.Count(log.String(), "cannot be kept"), log.String())
	k.cfg.Log = nil
	k.play(t, eight, func(t *testing.T, m *Monitor, _ *script) { require.Equal(t, 7, m.Get().HealthyCount()) })
}
