package cache

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// tarball is a tar of files under a directory, "" for none, compressed or not.
func tarball(t *testing.T, under string, compressed bool, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var to io.WriteCloser = struct {
		io.Writer
		io.Closer
	}{&b, io.NopCloser(nil)}
	if compressed {
		to = gzip.NewWriter(&b)
	}
	w := tar.NewWriter(to)
	for _, p := range slices.Sorted(maps.Keys(files)) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: under + p, Mode: 0o600, Size: int64(len(files[p]))}))
		_, err := w.Write(files[p])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	if compressed {
		require.NoError(t, to.Close())
	}
	return b.Bytes()
}

// layered puts archives, in their order, beside ordinary files.
func (o *origin) layered(host, revision string, kind model.Archive, plain map[string][]byte, archives ...[]byte) {
	files := maps.Clone(plain)
	if files == nil {
		files = map[string][]byte{}
	}
	for i, b := range archives {
		files[fmt.Sprintf("layer-%06d", i+1)] = b
	}
	o.put(host, revision, files)
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, f := range o.models[host].Files {
		if _, ok := plain[f.Path]; !ok {
			o.models[host].Files[i].Archive = kind
		}
	}
}

func TestAnArchiveBecomesTheFilesInIt(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		weights, config_, readme := noise(1, 300_000), []byte(`{"a": 1}`), []byte("read me")
		o.layered("a", "r1", model.Directory, map[string][]byte{"README.md": readme},
			tarball(t, "", false, map[string][]byte{"model.safetensors": weights}),
			tarball(t, "tokenizer/", true, map[string][]byte{"config.json": config_, "empty": {}}))
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		s := ready(t, c, "a")
		want := map[string][]byte{"README.md": readme, "model.safetensors": weights, "tokenizer/config.json": config_, "tokenizer/empty": {}}
		holds(t, root, "a", want)
		require.Equal(t, "r1", s.Revision)
		require.Equal(t, 4, s.Files)
		require.EqualValues(t, len(weights)+len(config_)+len(readme), s.Size)
		require.Equal(t, s.Size, c.Get().Used, "the archives are gone")
		require.Zero(t, c.Get().Reserved)
		info, err := os.Stat(filepath.Join(s.Path, "model.safetensors"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o444), info.Mode().Perm())
		damaged, err := c.Verify(t.Context(), "a")
		require.NoError(t, err)
		require.Empty(t, damaged)

		o.forget()
		require.NoError(t, ask(t, c, spec("a", "a")))
		wait(t, c, "a", func(s *model.Status) bool { return s.Answered == s.Asked })
		stop()
		tidy(t, root, want)
		require.Zero(t, o.bytesAsked(), "what is there is what the origin names")
		c = open(t, config(root), o)
		require.Equal(t, model.Ready, c.Get().Model("a").State, "and after a restart")
		require.NoError(t, c.Close())
	})
}

func TestALayerThatStayedIsNotFetchedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		weights := noise(1, 500_000)
		base := tarball(t, "bin/", true, map[string][]byte{"sh": noise(9, 1000)})
		large := tarball(t, "models/", false, map[string][]byte{"w": weights, "old": []byte("old")})
		o.layered("a", "r1", model.Image, nil, base, large, base) // builders repeat an empty layer
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		ready(t, c, "a")
		holds(t, root, "a", map[string][]byte{"w": weights, "old": []byte("old")})
		require.EqualValues(t, len(base)+len(large), o.bytesAsked(), "equal layers come once")

		o.forget()
		small := tarball(t, "models/", true, map[string][]byte{".wh.old": {}, "new": []byte("new")})
		o.layered("a", "r2", model.Image, nil, base, large, small)
		require.NoError(t, ask(t, c, spec("a", "a")))
		wait(t, c, "a", func(s *model.Status) bool { return s.Revision == "r2" })
		holds(t, root, "a", map[string][]byte{"w": weights, "new": []byte("new")})
		require.EqualValues(t, len(small), o.bytesAsked(), "one layer is new")
		time.Sleep(time.Second) // the old revision goes
		synctest.Wait()
		require.EqualValues(t, len(weights)+3, c.Get().Used)
	})
}

func TestAnArchiveIsUnpackedWithinTheLimit(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		cfg := config(root)
		cfg.Limit = 3 * mega
		o.put("old", "r1", map[string][]byte{"x": noise(1, mega)})
		o.layered("fits", "r1", model.Directory, nil, tarball(t, "", true, map[string][]byte{"zeros": make([]byte, mega*5/2)}))
		o.layered("bomb", "r1", model.Image, nil, tarball(t, "bin/", true, map[string][]byte{"zeros": make([]byte, 4*mega)}))
		o.layered("two", "r1", model.Directory, nil, tarball(t, "", true, map[string][]byte{"zeros": make([]byte, 2*mega), "more": make([]byte, 2*mega)}))
		o.layered("sparse", "r1", model.Directory, nil, tarball(t, "", true, map[string][]byte{"zeros": make([]byte, 4*mega)}))
		c := open(t, cfg, o)
		c.Want(nil)
		run(t, c)
		require.NoError(t, ask(t, c, spec("old", "old")))
		ready(t, c, "old")
		require.NoError(t, ask(t, c, spec("fits", "fits")))
		ready(t, c, "fits") // and every inventory on the way kept the limit: see wait
		gone(t, c, "old")

		require.NoError(t, ask(t, c, spec("bomb", "bomb")))
		s := failed(t, c, "bomb", "BadArchive")
		require.Contains(t, s.Message, "more than the whole cache may hold")
		require.True(t, s.Final)
		require.NoError(t, ask(t, c, spec("two", "two")))
		require.Contains(t, failed(t, c, "two", "NoSpace").Message, "model two needs 4.0 MiB")
		require.NoError(t, ask(t, c, spec("sparse", "sparse")))
		s = failed(t, c, "sparse", "NoSpace")
		require.Contains(t, s.Message, "holds a file of 4.0 MiB and the limit of the cache at "+root+" is 3.0 MiB: raise it")
	})
}

func TestAnArchiveThatDoesNotFitNowWaitsUnpackedForRoom(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		cfg := config(root)
		cfg.Limit = 3 * mega
		o.put("pinned", "r1", map[string][]byte{"x": noise(1, mega)})
		b := tarball(t, "", true, map[string][]byte{"zeros": make([]byte, mega*5/2)})
		o.layered("a", "r1", model.Directory, nil, b)
		c := open(t, cfg, o)
		c.Want(nil)
		run(t, c)
		pinned := spec("pinned", "pinned")
		pinned.Pinned = true
		require.NoError(t, ask(t, c, pinned))
		ready(t, c, "pinned")
		o.forget()
		require.NoError(t, ask(t, c, spec("a", "a")))
		s := failed(t, c, "a", "NoSpace")
		require.Contains(t, s.Message, "unpin or remove models")
		require.EqualValues(t, len(b), o.bytesAsked())
		require.NoError(t, c.Remove(t.Context(), "pinned", true))
		ready(t, c, "a")
		require.EqualValues(t, len(b), o.bytesAsked(), "it was not fetched again")
	})
}

// unpackedOnly is the closed cache of a model that was unpacked and could not be revealed.
func unpackedOnly(t *testing.T, root string, o *origin) *Cache {
	t.Helper()
	cfg := config(root)
	cfg.disk.Fault = func(op, path string) error { // revealing begins with this
		if op == "link" && filepath.Base(filepath.Dir(filepath.Dir(path))) == "sha256" {
			return errCrash
		}
		return nil
	}
	c := open(t, cfg, o)
	c.Want([]model.Spec{spec("a", "a")})
	stop := run(t, c)
	failed(t, c, "a", "Failed")
	stop()
	return c
}

func TestWhatIsUnpackedSurvivesARestart(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{"w": noise(1, 200_000), "c": noise(2, 10)}
		o.layered("a", "r1", model.Directory, nil, tarball(t, "", true, map[string][]byte{"w": files["w"]}), tarball(t, "", false, map[string][]byte{"c": files["c"]}))
		c := unpackedOnly(t, root, o)
		o.forget()
		c = open(t, config(root), o)
		require.EqualValues(t, 200_010, c.Get().Used, "the members alone")
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		ready(t, c, "a")
		holds(t, root, "a", files)
		require.Zero(t, o.bytesAsked())
	})
}

// TestAnArchiveWhoseMembersWentIsNotTakenForWhole kills the agent once there are blocks for the archive to come again into.
func TestAnArchiveWhoseMembersWentIsNotTakenForWhole(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{"w": noise(1, 200_000)}
		o.layered("a", "r1", model.Directory, nil, tarball(t, "", false, files))
		c := unpackedOnly(t, root, o)
		s := c.models["a"].job.slots[0]
		require.NoError(t, os.Remove(s.content(0)))
		c = open(t, config(root), o)
		j := c.models["a"].job
		require.NoError(t, j.allocate())
		require.NoError(t, c.Close())
		c = open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		ready(t, c, "a")
		holds(t, root, "a", files)
	})
}

func TestWhatAPartialUpdateLinksGoesWithIt(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		lower := tarball(t, "models/", false, map[string][]byte{"w": noise(1, 100_000)})
		o.layered("a", "r1", model.Image, nil, lower)
		c := open(t, config(root), o)
		c.Want(nil)
		stop := run(t, c)
		require.NoError(t, ask(t, c, spec("a", "a")))
		ready(t, c, "a")
		o.layered("a", "r2", model.Image, nil, lower, tarball(t, "models/", false, map[string][]byte{"new": noise(2, 100_000)}))
		o.onOpen = func(int, context.Context, model.File, int64, int64, []byte) (io.ReadCloser, error, bool) {
			return nil, &model.Error{Reason: "Forbidden", Text: "no", Final: true}, true
		}
		require.NoError(t, ask(t, c, spec("a", "a")))
		failed(t, c, "a", "Forbidden")
		require.NoError(t, c.Remove(t.Context(), "a", false))
		time.Sleep(time.Second)
		stop()
		tidy(t, root)
		require.Zero(t, c.Get().Used)
	})
}

func TestAnArchiveThatCannotBeUsedSaysWhy(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.layered("climbs", "r1", model.Directory, nil, tarball(t, "../", false, map[string][]byte{"x": {1}}))
		o.layered("twice", "r1", model.Directory, map[string][]byte{"x": {1}}, tarball(t, "", false, map[string][]byte{"x": {1}}))
		o.layered("html", "r1", model.Directory, nil, bytes.Repeat([]byte("<html>"), 200))
		o.layered("none", "r1", model.Image, nil, tarball(t, "bin/", false, map[string][]byte{"sh": {1}}))
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("climbs", "climbs"), spec("twice", "twice"), spec("html", "html"), spec("none", "none")})
		run(t, c)
		for name, want := range map[string][2]string{
			"climbs": {"BadArchive", `file layer-000001: the archive cannot be used: the name "../x" leaves the archive`},
			"twice":  {"BadPath", `file "x" is listed twice`},
			"html":   {"BadArchive", "it is not a tar archive"},
			"none":   {"Empty", "mem://none: the image has no file in /models"},
		} {
			s := failed(t, c, name, want[0])
			require.Contains(t, s.Message, want[1], name)
			require.True(t, s.Final, name)
			require.Nil(t, tree(t, layout(root).visible(name)))
		}
	})
}

// TestACrashWhileUnpackingLeavesWhatCanGoOn breaks off at each step on the disk in turn, all following ones failing
// too, or that one alone.
func TestACrashWhileUnpackingLeavesWhatCanGoOn(t *testing.T) {
	one := map[string][]byte{"w": noise(1, 100_000), "c": noise(2, 10)}
	two := map[string][]byte{"w": one["w"], "c": noise(3, 20), "d/e": noise(4, 30)}
	lower := tarball(t, "models/", false, one)
	upper := tarball(t, "models/", true, map[string][]byte{"c": two["c"], "d/e": two["d/e"]})
	for _, alone := range []bool{false, true} {
		for i := int64(1); ; i += stride {
			f, over := &fault{at: i, alone: alone, hit: make(chan struct{})}, false
			t.Run(fmt.Sprintf("alone=%t/%d", alone, i), func(t *testing.T) {
				bubble(t, func(t *testing.T, root string, o *origin) {
					f.hit = make(chan struct{})
					o.layered("a", "r1", model.Image, nil, lower)
					cfg := config(root)
					cfg.Streams, cfg.disk = 1, durable.Disk{Fault: f.step}
					if c, err := Open(cfg, map[string]Source{"mem": o}); err == nil {
						c.Want([]model.Spec{spec("a", "a")})
						stop := run(t, c)
						if until(t, c, f, "r1") {
							o.layered("a", "r2", model.Image, nil, lower, upper)
							for range 2 { // it writes, too
								if ask(t, c, spec("a", "a")) == nil {
									break
								}
							}
							until(t, c, f, "r2")
						}
						stop()
					} else {
						require.ErrorIs(t, err, errCrash)
					}
					over = f.n.Load() < i
					if got := tree(t, layout(root).visible("a")); got != nil && got["d/e"] == nil {
						holds(t, root, "a", one)
					} else if got != nil {
						holds(t, root, "a", two)
					}
					o.layered("a", "r2", model.Image, nil, lower, upper)
					c := open(t, config(root), o)
					inv := c.Get()
					require.LessOrEqual(t, inv.Used+inv.Reserved, inv.Limit)
					c.Want([]model.Spec{spec("a", "a")})
					stop := run(t, c)
					require.NoError(t, ask(t, c, spec("a", "a")))
					wait(t, c, "a", func(s *model.Status) bool { return s.Answered == s.Asked && s.Reason == "" && s.Revision == "r2" })
					time.Sleep(time.Second) // the old revision goes
					synctest.Wait()
					stop()
					holds(t, root, "a", two)
					tidy(t, root, two)
					require.Equal(t, model.Manifest{Files: []model.File{{Size: 100_000}, {Size: 20}, {Size: 30}}}.Size(), c.Get().Used)
					require.Zero(t, c.Get().Reserved)
				})
			})
			if over || t.Failed() {
				if !t.Failed() {
					require.Greater(t, i, int64(80), "the scene is shorter than it was")
				}
				break
			}
		}
	}
}

// until waits for a revision, or for the end of the world.
func until(t *testing.T, c *Cache, f *fault, revision string) bool {
	deadline := time.NewTimer(24 * time.Hour)
	defer deadline.Stop()
	hit := f.hit
	if f.alone {
		hit = nil
	}
	for {
		inv, changed := c.Watch()
		require.LessOrEqual(t, inv.Used+inv.Reserved, inv.Limit)
		if s := inv.Model("a"); s != nil && s.State == model.Ready && s.Revision == revision && s.Reason == "" {
			return true
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

func TestAnArchiveIsReadOnceAndInBoundedMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "archive") // on a disk, which /dev/shm is not
	want := bytes.Repeat([]byte("archive."), 6<<20)
	require.NoError(t, durable.Disk{}.WriteFile(path, want, 0o400))
	f, err := durable.Open(path)
	require.NoError(t, err)
	defer f.Close()
	f.Drop(0, int64(len(want)))
	cold, err := f.Resident(0, int64(len(want)))
	droppable := err == nil && cold < int64(len(want))
	ctx, cancel := context.WithCancel(t.Context())
	in := &patient{ctx: ctx, file: f}
	got, err := io.ReadAll(in)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	if droppable {
		resident, err := f.Resident(0, int64(len(want)))
		require.NoError(t, err)
		require.LessOrEqual(t, resident, int64(3*flushEvery/2))
	} else {
		t.Log("the page cache is not looked at: the kernel cannot say, or this filesystem has no disk below it")
	}
	cancel()
	_, err = in.Read(make([]byte, 1))
	require.ErrorIs(t, err, context.Canceled)
}
