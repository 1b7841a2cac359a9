package cache

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/cache/archive"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// crumbs are n small files in some directories.
func crumbs(n int) map[string][]byte {
	files := map[string][]byte{}
	for i := range n {
		files[fmt.Sprintf("%d/%d", i%7, i)] = []byte(fmt.Sprintf("%d is in here", i))
	}
	return files
}

func TestSmallFilesShareTheirWaitsForTheDisk(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := crumbs(2500)
		o.put("a", "r1", files)
		cfg := config(root)
		cfg.Streams = 16
		var mu sync.Mutex
		steps := map[string]int{}
		cfg.disk.Fault = func(op, _ string) error {
			mu.Lock()
			defer mu.Unlock()
			steps[op]++
			return nil
		}
		c := open(t, cfg, o)
		clear(steps)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		stop()
		holds(t, root, "a", files)
		tidy(t, root, files)
		require.GreaterOrEqual(t, steps["syncfs"], 1)
		require.LessOrEqual(t, steps["syncfs"]+steps["sync"], 20, "%v", steps)
		require.LessOrEqual(t, steps["syncdir"], 2*256, "%v", steps)

		// Those of the next revision that are here already take one list, too.
		files["new"] = []byte("new")
		o.put("a", "r2", files)
		c = open(t, cfg, o)
		clear(steps)
		stop = run(t, c)
		require.NoError(t, ask(t, c, spec("a", "a")))
		wait(t, c, "a", func(s *model.Status) bool { return s.Revision == "r2" })
		stop()
		holds(t, root, "a", files)
		require.LessOrEqual(t, steps["sync"], 10, "%v", steps)
	})
}

func TestAKilledAgentKeepsItsBatchesOfSmallFiles(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := crumbs(2*batchFiles + 500)
		o.put("a", "r1", files)
		var mu sync.Mutex
		n := 0
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			mu.Lock()
			n++
			late := n > batchFiles+200
			mu.Unlock()
			if late {
				<-ctx.Done()
				return nil, ctx.Err(), true
			}
			return nil, nil, false
		}
		cfg := config(root)
		dead := make(chan struct{})
		cfg.disk.Fault = func(string, string) error {
			select {
			case <-dead:
				return errCrash
			default:
				return nil
			}
		}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		synctest.Wait()
		close(dead)
		stop()

		// What no list names may be anything.
		paths, err := os.ReadDir(layout(root).partial("a"))
		require.NoError(t, err)
		c = open(t, config(root), o)
		kept := 0
		for _, s := range c.models["a"].job.slots {
			if s.sum != "" {
				kept++
			}
		}
		require.GreaterOrEqual(t, kept, batchFiles)
		require.Less(t, kept, len(paths)-1, "the last ones were in no list")
		o.forget()
		c.Want([]model.Spec{spec("a", "a")})
		stop = run(t, c)
		ready(t, c, "a")
		stop()
		require.Len(t, o.asked, len(files)-kept)
		holds(t, root, "a", files)
		tidy(t, root, files)
	})
}

// TestFewSmallFilesDoNotWaitForABatch has them come while a large file takes hours.
func TestFewSmallFilesDoNotWaitForABatch(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := crumbs(3)
		files["big"] = noise(1, 10*64<<10)
		o.put("a", "r1", files)
		o.onOpen = func(_ int, ctx context.Context, f model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			if f.Path == "big" {
				return &drip{ctx, part, 16 << 10, 10 * time.Second}, nil, true
			}
			return nil, nil, false
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		time.Sleep(time.Second)
		c.mu.Lock()
		j := c.models["a"].job
		c.mu.Unlock()
		j.mu.Lock()
		require.Equal(t, 1, j.left)
		j.mu.Unlock()
		stop()
		o.forget()
		c = open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop = run(t, c)
		ready(t, c, "a")
		stop()
		for _, s := range o.asked {
			require.Equal(t, "big", s.path)
		}
		holds(t, root, "a", files)
	})
}

// TestManySmallFilesTakeLittleMemory counts what a download keeps of each, beside what the origin said.
func TestManySmallFilesTakeLittleMemory(t *testing.T) {
	p := plan{Step: 16 << 20}
	for i := range 10_000 {
		digest := model.Digest(fmt.Sprintf("%064x", i))
		p.Manifest.Files = append(p.Manifest.Files, model.File{Path: fmt.Sprintf("f%05d", i), Size: 2000, Digest: digest})
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	j := newJob(durable.Disk{}, "/store/partial/a", p)
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Len(t, j.slots, 10_000)
	require.Less(t, int64(after.HeapAlloc-before.HeapAlloc), int64(10_000*150))
}

// TestFilesAreAsEarlierVersionsWroteThem compares with encoding/json, which has the whole of one in memory.
func TestFilesAreAsEarlierVersionsWroteThem(t *testing.T) {
	digest := model.Digest(strings.Repeat("0a", 32))
	files := []model.File{{Path: "a<b", Size: 1, Digest: digest, Check: "md5:00", Version: "v\u2028", Key: "k"}, {Path: "é"}}
	for name, v := range map[string]any{
		"record": &record{Name: "a", Files: files, Published: time.Unix(1, 5).UTC(), Archives: []archive.Unpacked{{Digest: digest}}},
		"empty":  &record{},
		"plan":   &plan{Step: 1, Manifest: model.Manifest{Files: files}},
		"batch":  &map[int]model.Digest{10: digest, 9: digest},
		"journal": &journal{Done: []byte{1}, Parts: map[int]int64{11: 1, 2: 2}, Hash: []byte("x"), Unpacked: true,
			Members: []archive.Member{{Path: "p", Size: 1}}},
		"memory": &memory{Pins: []string{"a"}, Uses: map[string]time.Time{"b": time.Unix(2, 0).UTC()}, Held: hold{Revision: "r"}},
	} {
		path := filepath.Join(t.TempDir(), "f.json")
		require.NoError(t, writeJSON(durable.Disk{}, path, v, 0o600))
		want, err := json.Marshal(v)
		require.NoError(t, err)
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, string(want)+"\n", string(got), name)
		again := reflect.New(reflect.TypeOf(v).Elem()).Interface()
		require.NoError(t, readJSON(path, again))
		require.Equal(t, v, again, name)
	}
}
