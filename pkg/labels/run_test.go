package labels_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
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
	"github.com/gpu-agent/gpu-agent/pkg/labels"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// fakeSink records what is applied.
type fakeSink struct {
	mu    sync.Mutex
	err   error
	tries int
	all   []map[string]string
	kept  []string // of each
}

func (f *fakeSink) Apply(_ context.Context, l map[string]string, keep string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	if f.err == nil {
		f.all = append(f.all, maps.Clone(l))
		f.kept = append(f.kept, keep)
	}
	return f.err
}

func (f *fakeSink) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeSink) tried() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tries
}

func (f *fakeSink) sets() []map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.all)
}

func (f *fakeSink) last() map[string]string {
	all := f.sets()
	return all[len(all)-1]
}

// lockedLog is a log that is read while it may be written.
type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

type world struct {
	gpus   watch.Value[*gpu.Snapshot]
	models watch.Value[*model.Inventory]
	sink   fakeSink
	told   fakeSink // by Config.Applied
	log    lockedLog
}

func whole(t *testing.T) *watch.Value[resource.Policy] {
	t.Helper()
	p, err := resource.NewPolicy(resource.Config{})
	require.NoError(t, err)
	var policies watch.Value[resource.Policy]
	policies.Set(p)
	return &policies
}

// inWorld runs test while Run does, in a bubble of fake time.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{}
		w.models.Set(&model.Inventory{})
		ctx, cancel := context.WithCancel(t.Context())
		cfg := labels.Config{
			Machine: "DGX H100", Log: slog.New(slog.NewTextHandler(&w.log, nil)),
			Applied: func(l map[string]string) { _ = w.told.Apply(ctx, l, "") },
		}
		done := make(chan error, 1)
		go func() {
			done <- labels.Run(ctx, cfg, &w.gpus, &w.models, whole(t), &w.sink)
		}()
		synctest.Wait()
		test(t, w)
		before := len(w.sink.sets())
		cancel()
		require.NoError(t, <-done)
		require.Len(t, w.sink.sets(), before, "labels stay when the agent stops")
	})
}

func (w *world) set(s *gpu.Snapshot) {
	w.gpus.Set(s)
	synctest.Wait()
}

func TestNothingIsAppliedBeforeTheFirstDriver(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.set(&gpu.Snapshot{Driver: gpu.Driver{Error: "libnvidia-ml.so.1 not found"}})
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Zero(t, w.sink.tried())
		require.Equal(t, 1, strings.Count(w.log.String(), "until a driver is loaded"))
		w.set(gputest.Node(8))
		require.Len(t, w.sink.sets(), 1)
		require.Equal(t, "8", w.sink.last()["nvidia.com/gpu.count"])
		require.Equal(t, "DGX-H100", w.sink.last()["nvidia.com/gpu.machine"])
	})
}

func TestOnlyAChangeIsApplied(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.set(gputest.Node(8))
		for range 20 { // readings change, labels do not
			s := gputest.Node(8)
			s.Time = time.Now()
			w.set(s)
		}
		require.Len(t, w.sink.sets(), 1)
		w.set(gputest.Sick(gputest.Node(8), 2, gpu.XID))
		require.Len(t, w.sink.sets(), 2)
		require.Equal(t, "7", w.sink.last()["gpu-agent.dev/gpu.healthy"])
		require.Contains(t, w.log.String(), "changed=[gpu-agent.dev/gpu.healthy]")
		require.Equal(t, w.sink.sets(), w.told.sets())
	})
}

func TestTheResyncHealsDeletionsByHand(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.set(gputest.Node(8))
		time.Sleep(5*time.Minute - time.Second)
		synctest.Wait()
		require.Len(t, w.sink.sets(), 1)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Len(t, w.sink.sets(), 2)
		require.Equal(t, w.sink.sets()[0], w.sink.sets()[1])
		require.Equal(t, 1, strings.Count(w.log.String(), "labels applied"))
	})
}

func TestAFailedApplyIsTriedAgainEverMoreSlowly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.sink.fail(errors.New("no route to host"))
		w.set(gputest.Node(8))
		for range 100 { // a snapshot a second must not defeat the backoff
			time.Sleep(time.Second)
			w.set(gputest.Node(8))
		}
		require.Equal(t, 7, w.sink.tried(), "at 0, 1, 3, 7, 15, 31, 63 s")
		require.Zero(t, w.told.tried())
		w.sink.fail(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, w.sink.sets(), 1)
		w.set(gputest.Sick(gputest.Node(8), 2, gpu.XID))
		require.Len(t, w.sink.sets(), 2, "the backoff is over")
	})
}

func TestLabelsSurviveTheDriver(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.set(gputest.Node(8))
		w.set(&gpu.Snapshot{Driver: gpu.Driver{Error: "driver unloaded"}})
		require.Len(t, w.sink.sets(), 2)
		want := maps.Clone(w.sink.sets()[0])
		want["gpu-agent.dev/gpu.healthy"] = "0"
		require.Equal(t, want, w.sink.last())
		w.set(gputest.Node(8))
		require.Equal(t, w.sink.sets()[0], w.sink.last())
	})
}

func TestAModelsLabelGoesAndThatIsTold(t *testing.T) {
	const key = "models.gpu-agent.dev/llama"
	require.Equal(t, key, labels.ModelKey("llama"))
	inWorld(t, func(t *testing.T, w *world) {
		w.models.Set(&model.Inventory{Models: []model.Status{{Name: "llama", State: model.Ready, Revision: "r"}}})
		w.set(gputest.Node(1))
		require.Equal(t, "r", w.sink.last()[key])
		w.models.Set(&model.Inventory{Models: []model.Status{{Name: "llama", State: model.Removing, Revision: "r"}}})
		synctest.Wait()
		require.NotContains(t, w.sink.last(), key)
		require.NotContains(t, w.told.last(), key)
	})
}

func TestLabelsOfModelsStayUntilTheCacheIsOpen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.models.Set(nil)
		w.set(gputest.Node(1))
		require.Equal(t, []string{"models.gpu-agent.dev/"}, w.sink.kept)
		require.Zero(t, w.told.tried(), "what is on the node of them is not known")
		w.models.Set(&model.Inventory{})
		synctest.Wait()
		require.Equal(t, []string{"models.gpu-agent.dev/", ""}, w.sink.kept)
		require.Len(t, w.told.sets(), 1)
	})
}

func TestRunWithoutACache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gpus watch.Value[*gpu.Snapshot]
		gpus.Set(gputest.Node(2))
		sink := &fakeSink{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, labels.Run(ctx, labels.Config{}, &gpus, nil, whole(t), sink))
		require.Equal(t, []string{""}, sink.kept, "and models have no labels")
	})
}

func TestFileSinkReplacesTheFileWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sink := labels.FileSink{Path: filepath.Join(dir, "gpu-agent")}
	require.NoError(t, sink.Apply(t.Context(), map[string]string{"b.io/x": "1", "a.io/y": "", "gone": "1"}, ""))
	require.NoError(t, sink.Apply(t.Context(), map[string]string{"b.io/x": "2", "a.io/y": ""}, ""))
	got, err := os.ReadFile(sink.Path)
	require.NoError(t, err)
	require.Equal(t, "a.io/y=\nb.io/x=2\n", string(got))
	info, err := os.Stat(sink.Path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode().Perm(), "NFD runs as another user")

	require.NoError(t, os.Mkdir(filepath.Join(dir, "taken"), 0o755))
	require.NoError(t, sink.Apply(t.Context(), map[string]string{"b.io/x": "3"}, "a.io/"))
	got, err = os.ReadFile(sink.Path)
	require.NoError(t, err)
	require.Equal(t, "a.io/y=\nb.io/x=3\n", string(got), "what is kept stays as it is")
	fresh := labels.FileSink{Path: filepath.Join(dir, "fresh")}
	require.NoError(t, fresh.Apply(t.Context(), map[string]string{"b.io/x": "3"}, "a.io/"))

	err = labels.FileSink{Path: filepath.Join(dir, "taken")}.Apply(t.Context(), nil, "")
	require.ErrorContains(t, err, "write labels to "+dir)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 3, "no temporary file is left")

	require.ErrorIs(t, labels.FileSink{Path: filepath.Join(dir, "none", "f")}.Apply(t.Context(), nil, ""), os.ErrNotExist)
}

func TestMachine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "product_name")
	require.Equal(t, "unknown", labels.Machine(path))
	require.NoError(t, os.WriteFile(path, []byte(" \n"), 0o600))
	require.Equal(t, "unknown", labels.Machine(path))
	require.NoError(t, os.WriteFile(path, []byte("DGXH100\n"), 0o600))
	require.Equal(t, "DGXH100", labels.Machine(path))
}
