package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

var errCrash = errors.New("injected")

// fault fails the disk's step number at: alone, or with all that come after it.
type fault struct {
	at    int64
	alone bool
	n     atomic.Int64
	hit   chan struct{}
}

func (f *fault) step(string, string) error {
	n := f.n.Add(1)
	if n == f.at {
		close(f.hit)
	}
	if n == f.at || n > f.at && !f.alone {
		return errCrash
	}
	return nil
}

// scene is a first revision, another model that shares a file, a new revision, a removal. It ends early
// when the fault strikes and it is not alone.
func scene(t *testing.T, root string, o *origin, f *fault, one, two, other map[string][]byte) {
	t.Helper()
	o.hub["a"], o.hub["b"] = model.Hub{Repo: "org/m", Revision: "main"}, model.Hub{Repo: "org/m", Revision: "v1"}
	o.put("a", commit1, one)
	o.put("b", commit1, other)
	cfg := config(root)
	cfg.Streams = 1
	cfg.disk.Fault = f.step
	var c *Cache
	for range 3 {
		var err error
		if c, err = Open(cfg, map[string]Source{"mem": o}); err == nil {
			break
		}
		require.ErrorIs(t, err, errCrash)
	}
	if c == nil {
		return
	}
	c.Want([]model.Spec{spec("a", "a")})
	stop := run(t, c)
	defer stop()
	until := func(ok func() bool) bool {
		deadline := time.NewTimer(24 * time.Hour)
		defer deadline.Stop()
		for {
			inv, changed := c.Watch()
			require.LessOrEqual(t, inv.Used+inv.Reserved, inv.Limit)
			if ok() {
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
	is := func(name, revision string) func() bool {
		return func() bool {
			s := c.Get().Model(name)
			return s != nil && s.State == model.Ready && s.Revision == revision && s.Reason == ""
		}
	}
	try := func(do func() error) {
		for range 3 {
			if err := do(); err == nil || errors.Is(err, errCrash) && !f.alone {
				return
			}
		}
	}
	if !until(is("a", commit1)) {
		return
	}
	try(func() error { return ask(t, c, spec("b", "b")) })
	if !until(is("b", commit1)) {
		return
	}
	o.put("a", commit2, two)
	try(func() error { return ask(t, c, spec("a", "a")) })
	if !until(is("a", commit2)) {
		return
	}
	try(func() error {
		err := c.Remove(t.Context(), "b", false)
		if model.ReasonOf(err) == "NotFound" {
			return nil
		}
		return err
	})
	until(func() bool { return c.Get().Model("b") == nil })
}

// TestEveryStepOnDiskMayFailOrBeTheLast checks the invariants after a fault at each step in turn.
func TestEveryStepOnDiskMayFailOrBeTheLast(t *testing.T) {
	one := map[string][]byte{"x/w": noise(1, 150_000), "c": noise(2, 100)}
	two := map[string][]byte{"x/w": noise(3, 150_000), "c": one["c"], "y/z": noise(4, 10)}
	other := map[string][]byte{"c": one["c"], "d": noise(5, 70_000)}
	for _, alone := range []bool{false, true} {
		for i := int64(1); ; i += stride {
			f, over := &fault{at: i, alone: alone}, false
			t.Run(fmt.Sprintf("alone=%t/%d", alone, i), func(t *testing.T) {
				bubble(t, func(t *testing.T, root string, o *origin) {
					f.hit = make(chan struct{})
					scene(t, root, o, f, one, two, other)
					over = f.n.Load() < i
					check(t, root, o, one, two, other)
				})
			})
			if over || t.Failed() {
				if alone == false {
					require.Greater(t, i, int64(100), "the scene is shorter than it was")
				}
				break
			}
		}
	}
}

// check looks at what pods would see, opens the root again, and lets it come to rest.
func check(t *testing.T, root string, o *origin, one, two, other map[string][]byte) {
	t.Helper()
	l := layout(root)
	serves(t, root, "org/m", map[string][]map[string][]byte{commit1: {one, other, both(one, other)}, commit2: {two}})
	for revision, files := range map[string]map[string][]byte{"a@111111111111": one, "a@222222222222": two, "b@111111111111": other} {
		if _, err := os.Stat(l.visible(revision)); err == nil {
			holds(t, root, revision, files)
		}
	}
	if _, err := os.Stat(l.visible("a")); err == nil {
		revision := one
		if _, new := tree(t, l.visible("a"))["y/z"]; new {
			revision = two
		}
		holds(t, root, "a", revision)
	}
	if _, err := os.Stat(l.visible("b")); err == nil {
		holds(t, root, "b", other)
	}
	o.put("a", commit2, two)
	readOnly(t, root, o, map[string]map[string][]byte{"a@" + commit1: one, "a@" + commit2: two, "b@" + commit1: other})
	c := open(t, config(root), o)
	for _, m := range c.Get().Models {
		if m.State == model.Ready {
			require.NotNil(t, tree(t, l.visible(m.Name)), "said to be ready")
			require.Equal(t, tree(t, l.visible(m.Name)), tree(t, l.visible(m.Name+"@"+m.Revision[:12])), "the revision, too")
		}
	}
	serves(t, root, "org/m", map[string][]map[string][]byte{commit1: {one, other, both(one, other)}, commit2: {two}})
	for name, ref := range map[string]string{"a": "main", "b": "v1"} {
		if m := c.Get().Model(name); m != nil && m.State == model.Ready {
			text, err := os.ReadFile(filepath.Join(l.repository("org/m"), "refs", ref))
			require.NoError(t, err)
			require.Equal(t, m.Revision, string(text))
		}
	}
	inv := c.Get()
	require.LessOrEqual(t, inv.Used+inv.Reserved, inv.Limit)
	c.Want([]model.Spec{spec("a", "a")})
	stop := run(t, c)
	require.NoError(t, ask(t, c, spec("a", "a")))
	wait(t, c, "a", func(s *model.Status) bool { return s != nil && s.State == model.Ready && s.Revision == commit2 })
	if m := c.Get().Model("b"); m != nil {
		require.NoError(t, c.Remove(t.Context(), "b", false))
	}
	time.Sleep(time.Second)
	synctest.Wait()
	stop()
	holds(t, root, "a", two)
	holds(t, root, "a@222222222222", two)
	tidy(t, root, two)
	entries, err := os.ReadDir(l.hub())
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, []string{"refs/main", "snapshots/" + commit2, "trees/" + commit2 + ".json"}, outline(t, l.repository("org/m")))
	serves(t, root, "org/m", map[string][]map[string][]byte{commit2: {two}})
	var size int64
	for _, b := range two {
		size += int64(len(b))
	}
	require.Equal(t, size, c.Get().Used)
	require.Zero(t, c.Get().Reserved)
}

// readOnly opens the root as if its disk were read-only: what is said to be ready is whole, as it is, and stays so.
func readOnly(t *testing.T, root string, o *origin, want map[string]map[string][]byte) {
	t.Helper()
	before := listing(t, root)
	cfg := config(root)
	cfg.disk.Fault = func(op, path string) error {
		if op == "mkdir" && exists(path) {
			return nil
		}
		return syscall.EROFS
	}
	c, err := Open(cfg, map[string]Source{"mem": o})
	if err != nil { // it had not got as far as to make its directories
		require.ErrorIs(t, err, syscall.EROFS)
		require.ErrorContains(t, err, "is not usable")
		return
	}
	require.True(t, c.sealed)
	for _, m := range c.Get().Models {
		if m.State == model.Ready {
			holds(t, root, m.Name, want[m.Name+"@"+m.Revision])
		}
	}
	require.NoError(t, c.Close())
	require.Equal(t, before, listing(t, root))
	for _, name := range []string{"a", "b"} {
		for _, path := range []string{c.at.next(name), c.at.manifest(name)} {
			if r, err := readRecord(path); err == nil && c.matches(c.at.visible(name), r.Files, nil) {
				require.NotNil(t, c.Get().Model(name), "it is whole")
				require.Equal(t, r.Revision, c.Get().Model(name).Revision)
				break
			}
		}
	}
}

// listing is all that is below a root.
func listing(t *testing.T, root string) (paths []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && path != layout(root).lock() {
			paths = append(paths, path)
		}
		return err
	}))
	return paths
}
