package cache

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// What a directory of many small files costs is counted here for each of them, with fewer than there may be: 100,000.

// allocated is how many bytes do allocates.
func allocated(do func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// counter counts the steps of a disk by their kind.
type counter struct {
	mu    sync.Mutex
	steps map[string]int
}

func (n *counter) step(op, _ string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.steps[op]++
	return nil
}

func TestManyFilesAreVerifiedInOneBuffer(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		const n = 300
		o.put("a", "r1", crumbs(n))
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		ready(t, c, "a")
		require.Less(t, allocated(func() {
			damaged, err := c.Verify(t.Context(), "a")
			require.NoError(t, err)
			require.Empty(t, damaged)
		}), int64(4*bufferSize))
	})
}

// many is a record of n files whose text is long.
func many(n int) *record {
	r := &record{Name: "a"}
	for i := range n {
		r.Files = append(r.Files, model.File{Path: fmt.Sprintf("f%06d", i), Digest: model.Digest(fmt.Sprintf("%064x", i)),
			Version: strings.Repeat("0", 1000)})
	}
	return r
}

func TestARecordIsNotInMemoryAsText(t *testing.T) {
	const n, text = 2000, 1200
	path := filepath.Join(t.TempDir(), "r.json")
	require.NoError(t, writeJSON(durable.Disk{}, path, many(n), 0o600))
	var r *record
	// What it says is of that size, too; its text would take twice as much again while it is read.
	require.Less(t, allocated(func() {
		var err error
		r, err = readRecord(path)
		require.NoError(t, err)
	}), int64(n*text*2))
	require.Len(t, r.Files, n)
}

func TestABundleIsNotInMemoryAsText(t *testing.T) {
	const n, text = 2000, 1200
	b := many(n).bundle(model.Ref{})
	b.Source, b.Revision = "mem://a", "r"
	var out bytes.Buffer
	out.Grow(2 * n * text)
	none := func(model.File) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("")), nil }
	require.Less(t, allocated(func() {
		require.NoError(t, bundleWriter{tar.NewWriter(&out)}.write([]bundled{b}, none))
	}), int64(n*text*2))
	var again []bundled
	require.Less(t, allocated(func() {
		var err error
		again, err = parseBundle(newBundleReader(&out).text)
		require.NoError(t, err)
	}), int64(n*text*2))
	require.Equal(t, b.Files, again[0].Files)
}

func TestWhoseFilesTheseAreIsNotAskedOfAllOfTheirSize(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{}
		for i := range 2000 {
			files[fmt.Sprint(i)] = fmt.Appendf(nil, "%08d", i)
		}
		o.put("a", "r1", files)
		o.put("b", "r1", map[string][]byte{"one": files["1234"]})
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		run(t, c)
		ready(t, c, "a")
		ready(t, c, "b")
		require.True(t, c.linked(c.at.visible("b")))
		require.Less(t, testing.AllocsPerRun(5, func() { c.linked(c.at.visible("b")) }), 100.)
	})
}

func TestRoomIsSoughtWithoutALookAtEachSmallFile(t *testing.T) {
	p := plan{Step: 16 << 20}
	for i := range 1000 {
		p.Manifest.Files = append(p.Manifest.Files, model.File{Path: fmt.Sprint(i), Size: 2000})
	}
	j := newJob(durable.Disk{}, t.TempDir(), p)
	j.slots[0].sum, j.slots[1].sum, j.slots[2].sum = "a", "b", "c"
	j.slots[2].linked = true
	require.EqualValues(t, 2*2000, j.allocated())
	require.Zero(t, testing.AllocsPerRun(5, func() { j.allocated() }))
}

// TestNobodyWaitsForTheDeletionOfManyFiles looks whether others could publish, while directories are deleted.
func TestNobodyWaitsForTheDeletionOfManyFiles(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		const n = 100
		o.hub["a"] = model.Hub{Repo: "org/a", Revision: "main"}
		files := crumbs(n)
		o.put("a", commit1, files)
		cfg := config(root)
		var c *Cache
		free, held := 0, 0
		cfg.Keep = 1
		var watching atomic.Bool
		cfg.disk.Fault = func(op, path string) error {
			if in, _ := filepath.Rel(root, path); !watching.Load() || op != "remove" || !strings.HasPrefix(in, "models/") {
				return nil
			}
			if c.links.TryLock() {
				c.links.Unlock()
				free++
			} else {
				held++
			}
			return nil
		}
		c = open(t, cfg, o)
		stop := run(t, c)
		require.NoError(t, ask(t, c, spec("a", "a")))
		ready(t, c, "a")
		synctest.Wait()
		watching.Store(true)
		require.NoError(t, c.Remove(t.Context(), "a", false))
		require.Greater(t, free, 3*n, "by name, by revision and in the hub")
		require.Zero(t, held)

		watching.Store(false)
		require.NoError(t, ask(t, c, spec("a", "a")))
		ready(t, c, "a")
		files["0/0"] = []byte("new")
		o.put("a", commit2, files)
		require.NoError(t, ask(t, c, spec("a", "a")))
		wait(t, c, "a", func(s *model.Status) bool { return s.Revision == commit2 && len(s.Old) == 1 })
		synctest.Wait()
		free, held = 0, 0
		watching.Store(true)
		require.NoError(t, c.Remove(t.Context(), "a@"+model.Revision12(commit1), true))
		require.Greater(t, free, n, "by revision")
		watching.Store(false)
		stop()
		holds(t, root, "a", files)
		tidy(t, root, files)
	})
}

func TestSmallFilesOfABundleShareTheirWaitsForTheDisk(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := crumbs(1500)
		files["large"] = noise(1, 3*64<<10)
		o.put("a", "r1", files)
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		var bundle bytes.Buffer
		require.NoError(t, c.Export(t.Context(), []string{"a"}, &bundle))
		stop()
		there, n := dir(t), counter{steps: map[string]int{}}
		cfg := config(there)
		cfg.disk.Fault = n.step
		c = open(t, cfg, o)
		run(t, c)
		clear(n.steps)
		require.NoError(t, take(t, c, bundle.Bytes()))
		require.LessOrEqual(t, n.steps["sync"]+n.steps["syncfs"], 20, "%v", n.steps)
		require.GreaterOrEqual(t, n.steps["syncfs"], 2, "%v", n.steps)
		synctest.Wait()
		require.Zero(t, c.Get().Reserved)
		holds(t, there, "a", files)
	})
}

// TestABundleThatIsCutOffLeavesItsSmallFiles takes them from here when it comes again.
func TestABundleThatIsCutOffLeavesItsSmallFiles(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := crumbs(1500)
		o.put("a", "r1", files)
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		var bundle bytes.Buffer
		require.NoError(t, c.Export(t.Context(), []string{"a"}, &bundle))
		stop()
		there := dir(t)
		c = open(t, config(there), o)
		o.onResolve = func(int, model.Ref) (error, bool) { return io.ErrUnexpectedEOF, true }
		c.Want([]model.Spec{spec("a", "a")})
		stop = run(t, c)
		failed(t, c, "a", "Failed")
		half := bundle.Bytes()[:bundle.Len()*3/4]
		require.ErrorContains(t, take(t, c, half), "cut off")
		stop()
		n := counter{steps: map[string]int{}}
		cfg := config(there)
		cfg.disk.Fault = n.step
		c = open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		synctest.Wait()
		clear(n.steps)
		require.NoError(t, take(t, c, bundle.Bytes()))
		require.Less(t, n.steps["write"], 1000, "those that came before are not written again")
		require.Zero(t, c.Get().Reserved)
		holds(t, there, "a", files)
	})
}

func TestSmallMembersOfAnArchiveShareTheirWaitsForTheDisk(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := crumbs(300)
		files["large"] = noise(1, 3*64<<10)
		o.layered("a", "r1", model.Directory, nil, tarball(t, "", true, files))
		n := counter{steps: map[string]int{}}
		cfg := config(root)
		cfg.disk.Fault = n.step
		c := open(t, cfg, o)
		clear(n.steps)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		stop()
		require.LessOrEqual(t, n.steps["sync"]+n.steps["syncfs"], 20, "%v", n.steps)
		require.GreaterOrEqual(t, n.steps["syncfs"], 1, "%v", n.steps)
		holds(t, root, "a", files)
		tidy(t, root, files)
	})
}
