package nvml

import (
	"context"
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

// running runs m until it is told to stop.
func running(t *testing.T, m *Monitor) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

func TestAMonitorThatFollowsKnowsWhatIsOnNoDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := eight()
		next := func() *Monitor {
			m, err := New(Config{})
			require.NoError(t, err)
			m.driver, m.host = d, host{}
			return m
		}
		first, second, third := next(), next(), next()
		require.NoError(t, second.Follow(first))
		require.NoError(t, third.Follow(second))

		stop := running(t, first)
		d.xid(4, 119)
		require.NoError(t, first.Cordon(t.Context(), "GPU-5", "fan is loud"))
		sick := first.Get().Devices[4]
		stop()

		stop = running(t, second)
		require.Equal(t, 6, second.Get().HealthyCount())
		require.Equal(t, sick.Health, second.Get().Devices[4].Health)
		require.Equal(t, sick.XIDs, second.Get().Devices[4].XIDs, "counters do not begin anew")
		require.NoError(t, second.Release(t.Context(), 10*time.Minute))
		opens := 0
		d.do(func() { opens = len(d.opens) })
		stop()

		stop = running(t, third)
		pass(time.Minute)
		d.do(func() { require.Len(t, d.opens, opens, "the driver is still let go of") })
		require.Equal(t, gpu.Released, third.Get().Devices[0].Health.Reason)
		pass(10 * time.Minute)
		require.Equal(t, 6, third.Get().HealthyCount())
		stop()
	})
}

func TestMadeUpGPUsAreTakenOverWhereTheyAreTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := func(count int) *Monitor {
			m, err := New(Config{Simulate: &Simulation{GPU: "H100", Count: count}})
			require.NoError(t, err)
			return m
		}
		first, same, fewer := sim(8), sim(8), sim(4)
		stop := running(t, first)
		require.NoError(t, first.Cordon(t.Context(), first.Get().Devices[5].UUID, "fan is loud"))
		require.NoError(t, same.Follow(first))
		require.Equal(t, 7, same.Get().HealthyCount(), "nobody sees a gap")
		stop()
		require.Equal(t, 7, same.Get().HealthyCount())
		stop = running(t, same)
		require.Equal(t, 7, same.Get().HealthyCount())
		require.NoError(t, fewer.Follow(same))
		stop()
		stop = running(t, fewer)
		require.Len(t, first.Get().Devices, 4, "who watched the first one sees the last one's")
		stop()
	})
}

func TestACordonMayEndWhileTheDriverIsAway(t *testing.T) {
	k := newNode(t)
	k.play(t, eight, func(t *testing.T, m *Monitor, _ *script) {
		require.NoError(t, m.Cordon(t.Context(), "GPU-5", "fan is loud"))
	})
	away := func() *script { d := eight(); d.openErr = errAway; return d }
	k.play(t, away, func(t *testing.T, m *Monitor, _ *script) {
		require.ErrorContains(t, m.Cordon(t.Context(), "GPU-6", "x"), "want one of GPU-5")
		ended, left, err := m.Uncordon(t.Context(), "GPU-5")
		require.NoError(t, err)
		require.Equal(t, []string{"cordoned: fan is loud"}, ended)
		require.Equal(t, gpu.Lost, left.Reason)
	})
	newNode(t).play(t, away, func(t *testing.T, m *Monitor, _ *script) {
		require.ErrorContains(t, m.Cordon(t.Context(), "GPU-6", "x"), "the driver has named none (driver away)")
	})
	k.play(t, eight, func(t *testing.T, m *Monitor, _ *script) { require.Equal(t, 8, m.Get().HealthyCount()) })
}

func TestADiskThatFailsIsLoggedOnceForEachCause(t *testing.T) {
	k := newNode(t)
	var log strings.Builder
	k.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		require.NoError(t, os.MkdirAll(k.cfg.Health.StateDir, 0o755))
		tries := 0
		m.keeper.disk.Fault = func(op, path string) error {
			if op != "create" {
				return nil
			}
			tries++
			return &os.PathError{Op: "open", Path: filepath.Join(path, strings.Repeat("x", tries)), Err: os.ErrPermission}
		}
		d.xid(4, 119)
		pass(time.Minute)
		require.Greater(t, tries, 3)
	})
	require.Equal(t, 1, strings.Count(log.String(), "cannot be kept"))
}

// library is a script behind a library's name.
type library struct {
	*script
	name string
	held bool
}

func (l library) library() string { return l.name }
func (l library) loaded() bool    { return l.held }

func TestAProcessKeepsTheLibraryThatItHasLoaded(t *testing.T) {
	next := func(d driver) *Monitor {
		m, err := New(Config{})
		require.NoError(t, err)
		m.driver = d
		return m
	}
	wrong, right, other := library{eight(), "/wrong.so", false}, library{eight(), "/right.so", true}, library{eight(), "/other.so", false}
	first, second, simulated := next(wrong), next(right), next(eight())
	require.NoError(t, second.Follow(first), "nothing was loaded")
	require.NoError(t, simulated.Follow(second))
	require.EqualError(t, next(other).Follow(second), "library /other.so: this process has loaded /right.so, and keeps it: restart the agent")
	require.Error(t, next(other).Follow(simulated), "a simulation in between changes nothing")
	require.NoError(t, next(right).Follow(simulated))
}
