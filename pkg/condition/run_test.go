package condition

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
)

// fakeNode records what is said of it.
type fakeNode struct {
	mu         sync.Mutex
	err        error
	tries      int
	conditions []string // status, reason: of each write
	events     map[string]string
	told       []string // "kind reason: message", of each event that was new
}

func (f *fakeNode) SetCondition(_ context.Context, kind, status, reason, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	if f.err == nil {
		f.conditions = append(f.conditions, strings.TrimSpace(kind+" "+status+" "+reason))
	}
	return f.err
}

func (f *fakeNode) Event(_ context.Context, id, kind, reason, message string, _ time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	if f.err == nil && f.events[id] == "" {
		f.events[id] = message
		f.told = append(f.told, fmt.Sprintf("%s %s: %s", kind, reason, message))
	}
	return f.err
}

func (f *fakeNode) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// said is the conditions so far; the race detector does not see that fake time orders the accesses.
func (f *fakeNode) said() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.conditions)
}

func (f *fakeNode) heard() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.told)
}

func (f *fakeNode) tried() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tries
}

type world struct {
	t    *testing.T
	gpus watch.Value[*gpu.Snapshot]
	node fakeNode
	stop func()
}

// inWorld runs test while Run does, in a bubble of fake time.
func inWorld(t *testing.T, cfg Config, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, node: fakeNode{events: map[string]string{}}}
		w.start(cfg)
		test(w)
		before := len(w.node.said())
		w.stop()
		require.Len(t, w.node.said(), before, "the condition stays when the agent stops")
	})
}

func (w *world) start(cfg Config) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, &w.gpus, &w.node) }()
	w.stop = func() {
		cancel()
		require.NoError(w.t, <-done)
	}
	synctest.Wait()
}

func (w *world) set(s *gpu.Snapshot) {
	w.gpus.Set(s)
	synctest.Wait()
}

func (w *world) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func both() Config { return Config{Condition: true, Events: true} }

const (
	healthy = "GPUsHealthy True AllHealthy"
	sick    = "GPUsHealthy False XID"
)

func TestASickGPUIsSaidAtOnceAndTakenBackWhenItHeals(t *testing.T) {
	t.Parallel()
	inWorld(t, both(), func(w *world) {
		w.set(gputest.Node(8))
		require.Equal(w.t, []string{healthy}, w.node.said())
		require.Empty(w.t, w.node.heard(), "health is nothing to tell of")
		w.pass(spacing)
		w.set(gputest.Sick(gputest.Node(8), 3, gpu.XID))
		require.Equal(w.t, []string{healthy, sick}, w.node.said())
		w.pass(spacing)
		w.set(gputest.Node(8))
		require.Equal(w.t, []string{healthy, sick, healthy}, w.node.said())
		require.Equal(w.t, []string{
			"Warning GPUUnhealthy: GPU 3 (GPU-00000000-0000-0000-0000-000000000003): XID: GPU is XID, needs ResetGPU",
			"Normal GPUHealthy: GPU 3 (GPU-00000000-0000-0000-0000-000000000003) is healthy again, after XID: GPU is XID",
		}, w.node.heard())
	})
}

func TestUnchangedTruthIsRenewedAndNoMore(t *testing.T) {
	t.Parallel()
	inWorld(t, both(), func(w *world) {
		for range 100 {
			w.set(gputest.Node(8)) // a sample a second
			w.pass(time.Second)
		}
		require.Len(w.t, w.node.said(), 1)
		w.pass(resync)
		require.Len(w.t, w.node.said(), 2)
	})
}

func TestFlappingIsSlowedDownAndEndsInTheTruth(t *testing.T) {
	t.Parallel()
	inWorld(t, both(), func(w *world) {
		began := time.Now()
		for i := range 600 {
			s := gputest.Sick(gputest.Node(8), 0, gpu.XID)
			s.Devices[0].Health.Since = began.Add(time.Duration(i) * time.Second)
			w.set(s)
			w.pass(500 * time.Millisecond)
			w.set(gputest.Node(8))
			w.pass(500 * time.Millisecond)
		}
		minutes := int(time.Since(began) / time.Minute)
		require.LessOrEqual(w.t, len(w.node.said()), 1+12*minutes)
		require.LessOrEqual(w.t, len(w.node.heard()), eventBurst+minutes)
		w.pass(2 * eventEvery)
		require.Equal(w.t, healthy, w.node.said()[len(w.node.said())-1])
		require.Contains(w.t, w.node.heard()[len(w.node.heard())-1], "is healthy again")
	})
}

func TestADriverThatIsAwayIsBelievedAfterAWhile(t *testing.T) {
	t.Parallel()
	away := gputest.Sick(gputest.Node(8), 0, gpu.XID)
	away.Driver = gpu.Driver{Error: "being upgraded"}
	inWorld(t, both(), func(w *world) {
		w.pass(patience - time.Second)
		require.Empty(w.t, w.node.said(), "a node boots")
		w.set(gputest.Node(8))
		w.pass(spacing)
		w.set(away)
		w.pass(patience - time.Second)
		require.Equal(w.t, []string{healthy}, w.node.said())
		w.pass(time.Second)
		require.Equal(w.t, []string{healthy, "GPUsHealthy Unknown DriverNotLoaded"}, w.node.said())
		require.Empty(w.t, w.node.heard())
		w.pass(spacing)
		w.set(gputest.Node(8))
		require.Equal(w.t, healthy, w.node.said()[2])
	})
}

func TestAReleaseIsToldAtOnce(t *testing.T) {
	t.Parallel()
	away := gputest.Sick(gputest.Node(1), 0, gpu.Released)
	away.Driver = gpu.Driver{Error: "released by an operator"}
	inWorld(t, both(), func(w *world) {
		w.set(away)
		require.Equal(w.t, []string{"GPUsHealthy False Released"}, w.node.said())
		require.Len(w.t, w.node.heard(), 1)
		w.pass(spacing)
		w.set(gputest.Node(1))
		require.Equal(w.t, healthy, w.node.said()[1])
		require.Len(w.t, w.node.heard(), 2, "and that it is over")
	})
}

func TestWhatIsOffIsTakenOffAndNotTold(t *testing.T) {
	t.Parallel()
	inWorld(t, Config{}, func(w *world) {
		require.Equal(w.t, []string{Kind}, w.node.said(), "once, also without a driver")
		w.set(gputest.Sick(gputest.Node(8), 3, gpu.XID))
		require.Len(w.t, w.node.said(), 1)
		require.Empty(w.t, w.node.heard())
	})
}

func TestAnAPIServerThatIsAwayIsAskedAgain(t *testing.T) {
	t.Parallel()
	inWorld(t, both(), func(w *world) {
		w.node.fail(errors.New("connection refused"))
		w.set(gputest.Sick(gputest.Node(8), 3, gpu.XID))
		w.pass(time.Hour)
		require.Less(w.t, w.node.tried(), 150)
		require.Empty(w.t, w.node.said())
		w.node.fail(nil)
		w.pass(backoffMax)
		require.Equal(w.t, []string{sick}, w.node.said())
		require.Len(w.t, w.node.heard(), 1)
	})
}

func TestARestartTellsNothingTwice(t *testing.T) {
	t.Parallel()
	inWorld(t, both(), func(w *world) {
		w.set(gputest.Sick(gputest.Node(8), 3, gpu.XID))
		w.stop()
		w.start(both())
		require.Len(w.t, w.node.heard(), 1)
		w.set(gputest.Node(8))
		require.Len(w.t, w.node.heard(), 2)
	})
}

func TestAGPUThatIsTakenOutIsForgotten(t *testing.T) {
	t.Parallel()
	inWorld(t, both(), func(w *world) {
		w.set(gputest.Sick(gputest.Node(8), 7, gpu.Lost))
		w.set(gputest.Node(7))
		w.set(gputest.Node(8))
		require.Len(w.t, w.node.heard(), 1, "another in its place was never ill")
	})
}
