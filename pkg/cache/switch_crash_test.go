package cache

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

var commit3 = strings.Repeat("3", 40)

// TestEveryStepOfASwitchMayFailOrBeTheLast has a model with an old revision get a third, go back, and lose
// its old revision to another model, with a fault at each step in turn.
func TestEveryStepOfASwitchMayFailOrBeTheLast(t *testing.T) {
	shared := noise(1, 100)
	revisions := map[string]map[string][]byte{
		commit1: {"c": shared, "w": noise(2, 70_000)},
		commit2: {"c": shared, "w": noise(3, 70_000)},
		commit3: {"c": shared, "w": noise(4, 70_000), "x/y": noise(5, 10)},
	}
	big := map[string][]byte{"f": noise(6, 100_000)}
	for _, alone := range []bool{false, true} {
		step := int64(stride)
		if alone {
			step = 3 * stride // the other scene has a lone fault at each
		}
		for i := int64(1); ; i += step {
			f, over := &fault{at: i, alone: alone, hit: make(chan struct{})}, false
			t.Run(fmt.Sprintf("alone=%t/%d", alone, i), func(t *testing.T) {
				bubble(t, func(t *testing.T, root string, o *origin) {
					f.hit = make(chan struct{})
					switches(t, root, o, f, revisions, big)
					over = f.n.Load() < i
					settled(t, root, o, revisions)
				})
			})
			if over || t.Failed() {
				require.Greater(t, i, int64(60), "the scene is shorter than it was")
				break
			}
		}
	}
}

func switches(t *testing.T, root string, o *origin, f *fault, revisions map[string]map[string][]byte, big map[string][]byte) {
	t.Helper()
	cfg := config(root)
	cfg.Keep, cfg.Limit, cfg.Streams = 1, 220_000, 1
	put := func(revision string) { o.put("a", revision, revisions[revision]) }
	o.hub["a"] = model.Hub{Repo: "org/m", Revision: "main"}
	put(commit1)
	c := open(t, cfg, o)
	c.Want([]model.Spec{spec("a", "a")})
	stop := run(t, c)
	ready(t, c, "a")
	moves(t, c, o, "a", commit2, revisions[commit2])
	stop()

	cfg.disk.Fault = f.step
	c, err := Open(cfg, map[string]Source{"mem": o})
	if err != nil {
		require.ErrorIs(t, err, errCrash)
		return
	}
	c.Want([]model.Spec{spec("a", "a")})
	stop = run(t, c)
	defer stop()
	until := func(ok func(s *model.Status) bool, name string) bool {
		deadline := time.NewTimer(time.Hour)
		defer deadline.Stop()
		for {
			inv, changed := c.Watch()
			require.LessOrEqual(t, inv.Used+inv.Reserved, inv.Limit)
			if s := inv.Model(name); s != nil && ok(s) {
				return true
			}
			hit := f.hit
			if f.alone {
				hit = nil
			}
			select {
			case <-hit:
				return false
			case <-changed:
			case <-deadline.C:
				require.Fail(t, "did not recover", "%+v", inv.Models)
			}
		}
	}
	put(commit3)
	for range 3 {
		if err := ask(t, c, spec("a", "a")); err == nil {
			break
		}
	}
	if !until(func(s *model.Status) bool { return s.Revision == commit3 && s.Update == nil && s.Reason == "" }, "a") {
		return
	}
	for range 3 {
		_, err := c.Rollback(t.Context(), "a", "")
		if err == nil || model.ReasonOf(err) == "NotFound" { // it was, and what cleans up failed
			break
		}
		require.ErrorIs(t, err, errCrash)
		if !f.alone {
			return
		}
		if s := c.Get().Model("a"); s.Revision == commit2 {
			break
		}
	}
	require.Equal(t, commit2, c.Get().Model("a").Revision)
	o.put("big", "r1", big)
	for range 3 {
		if err := ask(t, c, spec("big", "big")); err == nil || !errors.Is(err, errCrash) {
			break
		}
	}
	// What one failure has left behind takes room until the next Open.
	until(func(s *model.Status) bool { return s.State == model.Ready || f.alone && s.Reason == "NoSpace" }, "big")
}

// settled opens the root, twice, and finds it whole: all that is shown is some revision, and all of it.
func settled(t *testing.T, root string, o *origin, revisions map[string]map[string][]byte) {
	t.Helper()
	l := layout(root)
	may := map[string][]map[string][]byte{}
	for commit, files := range revisions {
		may[commit] = []map[string][]byte{files}
	}
	serves(t, root, "org/m", may)
	whole := func() {
		t.Helper()
		require.True(t, slices.ContainsFunc(slices.Collect(maps.Values(revisions)), func(files map[string][]byte) bool {
			return maps.EqualFunc(files, tree(t, l.visible("a")), slices.Equal)
		}), "a is visible all the time")
		for _, name := range files(t, l.byName()) {
			if of, revision, ok := strings.Cut(name, "@"); ok && of == "a" {
				holds(t, root, name, revisions[strings.Repeat(revision[:1], 40)])
			}
		}
	}
	whole()
	cfg := config(root)
	cfg.Keep = 1
	c := open(t, cfg, o)
	whole()
	s := c.Get().Model("a")
	require.NotNil(t, s)
	require.Equal(t, model.Ready, s.State)
	holds(t, root, "a", revisions[s.Revision])
	holds(t, root, "a@"+model.Revision12(s.Revision), revisions[s.Revision])
	if s.Held != "" {
		require.Equal(t, s.Held, s.Revision)
	}
	require.Equal(t, s.Revision, string(tree(t, filepath.Join(l.repository("org/m"), "refs"))["main"]))
	serves(t, root, "org/m", may)
	for _, r := range s.Old {
		holds(t, root, "a@"+model.Revision12(r.Revision), revisions[r.Revision])
		require.DirExists(t, filepath.Join(l.repository("org/m"), "snapshots", r.Revision))
	}
	require.LessOrEqual(t, len(files(t, l.revisions())), len(s.Old))

	// What is there can be gone on from, and nothing is left over.
	c.Want([]model.Spec{spec("a", "a")})
	stop := run(t, c)
	if c.Get().Model("big") != nil {
		require.NoError(t, c.Remove(t.Context(), "big", false))
	}
	moves(t, c, o, "a", commit1, revisions[commit1])
	s = c.Get().Model("a")
	stop()
	holds(t, root, "a", revisions[commit1])
	shown, content := []string{"a", "a@" + commit1[:12]}, maps.Clone(revisions[commit1])
	for _, r := range s.Old {
		shown = append(shown, "a@"+r.Revision[:12])
		content["w of "+r.Revision] = revisions[r.Revision]["w"]
		content["x of "+r.Revision] = revisions[r.Revision]["x/y"]
	}
	require.LessOrEqual(t, len(s.Old), 1)
	require.Equal(t, shown, files(t, l.byName()))
	require.Len(t, files(t, l.revisions()), len(s.Old))
	require.Empty(t, tree(t, l.partials()))
	require.Equal(t, []string{"a.json"}, files(t, l.manifests()))
	var used int64
	for _, b := range content {
		used += int64(len(b))
	}
	require.Equal(t, used, c.Get().Used)
	var stored int64
	for _, b := range tree(t, l.blobs()) {
		stored += int64(len(b))
	}
	require.Equal(t, used, stored)
}
