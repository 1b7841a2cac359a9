package cache

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// machine is a made-up /proc and /sys/fs/cgroup.
type machine string

func (m machine) write(t *testing.T, path, text string) {
	t.Helper()
	path = filepath.Join(string(m), path)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

// node has so many MiB of memory: in all, free, and page cache that was not read twice.
func (m machine) node(t *testing.T, total, free, inactive int) {
	m.write(t, "proc/meminfo", fmt.Sprintf("MemTotal: %d kB\nMemFree: %d kB\nMemAvailable: 1 kB\nActive(file): 7 kB\nInactive(file): %d kB\n",
		total<<10, free<<10, inactive<<10))
}

// newMachine is a node whose agent has no memory limit.
func newMachine(t *testing.T, total, free, inactive int) machine {
	m := machine(t.TempDir())
	m.node(t, total, free, inactive)
	m.write(t, "proc/self/cgroup", "0::/\n")
	m.write(t, "proc/self/mountinfo", "22 28 0:20 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n")
	m.write(t, "sys/fs/cgroup/memory.stat", "inactive_file 0\n")
	m.write(t, "sys/fs/cgroup/memory.max", "max\n")
	return m
}

// within gives the agent's container a memory limit, in MiB.
func (m machine) within(t *testing.T, limit, used, inactive int) {
	m.write(t, "sys/fs/cgroup/memory.max", fmt.Sprintf("%d\n", limit<<20))
	m.write(t, "sys/fs/cgroup/memory.current", fmt.Sprintf("%d\n", used<<20))
	m.write(t, "sys/fs/cgroup/memory.stat", fmt.Sprintf("anon 5\nfile 77\nkernel 1\ninactive_file %d\nactive_file 9\n", inactive<<20))
}

// shelf is a cache on a disk with models of the given MiB, none of it in memory.
func shelf(t *testing.T, mibs map[string]int) (root string, o *origin) {
	t.Helper()
	root, o = onDisk(t), newOrigin()
	cfg := config(root)
	cfg.Limit = 512 * mega
	synctest.Test(t, func(t *testing.T) {
		seed := uint64(1)
		var specs []model.Spec
		for name, n := range mibs {
			seed++
			big := noise(seed, n*mega-500)
			o.put(name, "r1", map[string][]byte{"config.json": noise(seed+100, 500), "a.safetensors": big[:n/2*mega], "b.safetensors": big[n/2*mega:]})
			specs = append(specs, spec(name, name))
		}
		c := open(t, cfg, o)
		c.Want(specs)
		stop := run(t, c)
		for name := range mibs {
			ready(t, c, name)
		}
		stop()
	})
	for name := range mibs {
		coolModel(t, root, name)
	}
	return root, o
}

func filesOf(t *testing.T, root, name string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(layout(root).visible(name), "*"))
	require.NoError(t, err)
	require.Len(t, paths, 3)
	return paths
}

func coolModel(t *testing.T, root, name string) {
	t.Helper()
	for _, p := range filesOf(t, root, name) {
		cool(t, p)
	}
	require.Zero(t, inCache(t, root, name))
}

// inCache is how many MiB of a model the kernel has.
func inCache(t *testing.T, root, name string) (n int) {
	t.Helper()
	for _, p := range filesOf(t, root, name) {
		n += cached(t, p, 0, 0)
	}
	return n * os.Getpagesize() / mega
}

// warming is a configuration of a cache on the shelf.
func warming(root string, m machine, w Warm) Config {
	cfg := config(root)
	cfg.Limit, cfg.Warm, cfg.system = 512*mega, w, string(m)
	return cfg
}

func warmed(t *testing.T, c *Cache, name string) *model.Status {
	t.Helper()
	return wait(t, c, name, func(s *model.Status) bool { return s != nil && strings.HasPrefix(s.Warmth, "read ahead") })
}

func TestAReadyModelIsReadAhead(t *testing.T) {
	root, o := shelf(t, map[string]int{"a": 40, "b": 20})
	synctest.Test(t, func(t *testing.T) {
		c := open(t, warming(root, newMachine(t, 1000, 500, 0), Warm{OnReady: true, LimitPercent: 50, KeepFreePercent: 10}), o)
		c.Want([]model.Spec{spec("a", "a")})
		require.Nil(t, c.Get().Model("a").Resident, "nobody has looked")
		stop := run(t, c)
		a, b := warmed(t, c, "a"), warmed(t, c, "b")
		require.Equal(t, "read ahead", a.Warmth)
		require.Equal(t, a.Size, *a.Resident)
		require.Equal(t, b.Size, *b.Resident)
		require.Equal(t, []int{40, 20}, []int{inCache(t, root, "a"), inCache(t, root, "b")})
		require.InDelta(t, 60*mega, c.Get().ReadAhead, 10*4096, "but for what belongs to a page")

		// What the kernel takes back is seen, and not read again: whoever needed the memory needs it still.
		coolModel(t, root, "a")
		wait(t, c, "a", func(s *model.Status) bool { return *s.Resident == 0 })
		time.Sleep(time.Hour)
		require.Zero(t, inCache(t, root, "a"))

		// What comes in later is read too.
		o.put("c", "r1", map[string][]byte{"config.json": {1}, "a.safetensors": noise(77, 3*mega), "b.safetensors": {3}})
		require.NoError(t, ask(t, c, spec("c", "c")))
		s := warmed(t, c, "c")
		require.Equal(t, s.Size, *s.Resident)
		stop()
	})
}

func TestReadingAheadIsOff(t *testing.T) {
	root, o := shelf(t, map[string]int{"a": 10})
	synctest.Test(t, func(t *testing.T) {
		c := open(t, warming(root, machine(t.TempDir()), Warm{LimitPercent: 50}), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		c.InUse(calls("p", "a"))
		time.Sleep(time.Hour)
		require.Nil(t, c.Get().Model("a").Resident)
		require.Empty(t, c.Get().Model("a").Warmth)
		require.Zero(t, c.Get().ReadAhead)
		require.Zero(t, inCache(t, root, "a"))
		stop()
	})
}

func TestAPodHasItsModelReadAheadOnce(t *testing.T) {
	root, o := shelf(t, map[string]int{"a": 20, "b": 20})
	synctest.Test(t, func(t *testing.T) {
		c := open(t, warming(root, newMachine(t, 1000, 500, 0), Warm{OnPod: true, LimitPercent: 50}), o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		stop := run(t, c)
		time.Sleep(time.Minute)
		require.Zero(t, inCache(t, root, "a")+inCache(t, root, "b"), "nobody has asked")

		pods := calls("p", "b")
		c.InUse(pods)
		s := warmed(t, c, "b")
		require.Equal(t, "read ahead for pod ns/p", s.Warmth)
		require.Equal(t, s.Size, *s.Resident)
		require.Zero(t, inCache(t, root, "a"))

		coolModel(t, root, "b")
		c.InUse(pods)
		time.Sleep(time.Hour)
		require.Zero(t, inCache(t, root, "b"), "the same pod again")

		// Another, by a volume and by the revision, and then one of the same name as the first.
		pods = append(pods, model.Use{Model: "b", Revision: s.Revision, By: "ns/q", Since: time.Now()})
		c.InUse(pods)
		wait(t, c, "b", func(s *model.Status) bool { return s.Warmth == "read ahead for pod ns/p, ns/q" && *s.Resident > 0 })
		coolModel(t, root, "b")
		wait(t, c, "b", func(s *model.Status) bool { return *s.Resident == 0 })
		c.InUse(calls("p", "b"))
		wait(t, c, "b", func(s *model.Status) bool { return *s.Resident == s.Size })

		// A pod that began before the revision came has the old one in its GPUs.
		c.InUse(calls("r", "a"))
		warmed(t, c, "a")
		o.put("a", "r2", map[string][]byte{"config.json": {1}, "a.safetensors": noise(9, 2*mega), "b.safetensors": {3}})
		time.Sleep(time.Second)
		require.NoError(t, ask(t, c, spec("a", "a")))
		wait(t, c, "a", func(s *model.Status) bool { return s.Revision == "r2" && s.Update == nil })
		coolModel(t, root, "a")
		require.Empty(t, c.Get().Model("a").Warmth)
		time.Sleep(time.Hour)
		require.Zero(t, inCache(t, root, "a"))
		stop()
	})
}

func TestReadingAheadIsNoUseOfAModel(t *testing.T) {
	root, o := shelf(t, map[string]int{"a": 10})
	synctest.Test(t, func(t *testing.T) {
		cfg := warming(root, newMachine(t, 1000, 500, 0), Warm{OnPod: true, LimitPercent: 50})
		cfg.opens = watchOpens
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		time.Sleep(time.Minute) // the directories are watched
		x, err := c.Explain("a")
		require.NoError(t, err)
		before := x.LastUse
		c.InUse(calls("p", "a"))
		s := warmed(t, c, "a")
		require.Equal(t, s.Size, *s.Resident)
		time.Sleep(time.Minute)
		x, err = c.Explain("a")
		require.NoError(t, err)
		require.Equal(t, before, x.LastUse)
		_, err = os.ReadFile(filepath.Join(s.Path, "config.json"))
		require.NoError(t, err)
		time.Sleep(time.Minute)
		x, err = c.Explain("a")
		require.NoError(t, err)
		require.True(t, x.LastUse.After(before), "that one is seen")
		stop()
	})
}

func TestReadingAheadKeepsItsBounds(t *testing.T) {
	// Files are 20 and 20, in steps of 16, so that what is read of them ends at 16, 20, 36 or 40 MiB.
	for _, tc := range []struct {
		name string
		warm Warm
		on   func(t *testing.T) machine
		want int
		why  string
	}{
		{"the limit", Warm{Limit: 30 * mega}, func(t *testing.T) machine { return newMachine(t, 1000, 500, 0) }, 20,
			"no more fits into cache.warm.limit of 30.0 MiB"},
		{"a share of memory", Warm{LimitPercent: 2}, func(t *testing.T) machine { return newMachine(t, 900, 500, 0) }, 16,
			"no more fits into cache.warm.limit of 18.0 MiB"},
		// meminfo stands still here, so each step finds what it found; what is held is counted off.
		{"the node's memory", Warm{LimitPercent: 50, KeepFree: 100 * mega}, func(t *testing.T) machine { return newMachine(t, 1000, 60, 50) }, 0,
			"no more fits into the node's free memory and page cache that was read once, less 100.0 MiB (cache.warm.keepFree)"},
		{"what others have not read twice", Warm{LimitPercent: 50, KeepFreePercent: 10}, func(t *testing.T) machine { return newMachine(t, 1000, 70, 66) }, 36,
			"no more fits into the node's free memory and page cache that was read once, less 100.0 MiB (cache.warm.keepFree)"},
		{"the agent's limit", Warm{LimitPercent: 50}, func(t *testing.T) machine {
			m := newMachine(t, 1000, 500, 0)
			m.within(t, 180, 60, 26)
			return m
		}, 16, "no more fits into the agent's own memory limit of 180.0 MiB, in which what it reads ahead counts: give its container no limit, or one that is larger by cache.warm.limit"},
		{"an agent's limit that holds nothing more", Warm{LimitPercent: 50}, func(t *testing.T) machine {
			m := newMachine(t, 1000, 500, 0)
			m.within(t, 128, 60, 10)
			return m
		}, 0, "no more fits into the agent's own memory limit of 128.0 MiB, in which what it reads ahead counts: give its container no limit, or one that is larger by cache.warm.limit"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root, o := shelf(t, map[string]int{"a": 40})
			synctest.Test(t, func(t *testing.T) {
				tc.warm.OnReady = true
				c := open(t, warming(root, tc.on(t), tc.warm), o)
				c.Want([]model.Spec{spec("a", "a")})
				stop := run(t, c)
				s := warmed(t, c, "a")
				require.Equal(t, "read ahead in part: "+tc.why, s.Warmth)
				// At most so much; the kernel may take a page of it back before it is asked.
				bounded := func(n int) {
					t.Helper()
					require.LessOrEqual(t, n, tc.want)
					require.GreaterOrEqual(t, n, tc.want-1)
				}
				require.LessOrEqual(t, *s.Resident, int64(tc.want*mega))
				bounded(int(*s.Resident / mega))
				bounded(inCache(t, root, "a"))
				if tc.want >= 20 {
					first := cached(t, filepath.Join(s.Path, "a.safetensors"), 0, 0)
					require.GreaterOrEqual(t, first, 19*mega/4096, "the first file first")
				}
				time.Sleep(time.Hour)
				bounded(inCache(t, root, "a"))
				stop()
			})
		})
	}
}

func TestWhatAPodNeedsTakesThePlaceOfWhatItDoesNot(t *testing.T) {
	root, o := shelf(t, map[string]int{"a": 20, "b": 20, "c": 20})
	synctest.Test(t, func(t *testing.T) {
		c := open(t, warming(root, newMachine(t, 1000, 500, 0), Warm{OnReady: true, OnPod: true, Limit: 45 * mega}), o)
		high := spec("a", "a")
		high.Priority = 1
		c.Want([]model.Spec{spec("c", "c"), spec("b", "b"), high})
		stop := run(t, c)
		require.Equal(t, "read ahead in part: no more fits into cache.warm.limit of 45.0 MiB", warmed(t, c, "b").Warmth)
		require.Equal(t, []int{20, 0, 20}, []int{inCache(t, root, "a"), inCache(t, root, "b"), inCache(t, root, "c")}, "by priority, and then as the config lists them")

		c.InUse(calls("p", "b"))
		wait(t, c, "b", func(s *model.Status) bool { return s.Warmth == "read ahead for pod ns/p" })
		require.Equal(t, []int{20, 20, 0}, []int{inCache(t, root, "a"), inCache(t, root, "b"), inCache(t, root, "c")})
		require.Equal(t, "given up for what a pod needs", c.Get().Model("c").Warmth)

		// Two pods' models do not push out each other.
		c.InUse(append(calls("p", "a", "b"), calls("q", "c")...))
		wait(t, c, "c", func(s *model.Status) bool {
			return s.Warmth == "read ahead for pod ns/q in part: no more fits into cache.warm.limit of 45.0 MiB"
		})
		require.Equal(t, []int{20, 20, 0}, []int{inCache(t, root, "a"), inCache(t, root, "b"), inCache(t, root, "c")})

		// And there is room when one of the models goes.
		c.InUse(calls("q", "c"))
		c.Want([]model.Spec{spec("c", "c"), high})
		require.NoError(t, c.Remove(t.Context(), "b", true))
		wait(t, c, "c", func(s *model.Status) bool { return s.Warmth == "read ahead for pod ns/q" })
		stop()
	})
}

func TestTheLimitHoldsForAllDisksTogether(t *testing.T) {
	roots, origins := [2]string{}, [2]*origin{}
	for i := range roots {
		roots[i], origins[i] = shelf(t, map[string]int{"a": 40})
	}
	synctest.Test(t, func(t *testing.T) {
		memory, m := NewMemory(), newMachine(t, 1000, 500, 0)
		var stops []func()
		for i, root := range roots {
			cfg := warming(root, m, Warm{OnReady: true, Limit: 60 * mega})
			cfg.Memory = memory
			c := open(t, cfg, origins[i])
			c.Want([]model.Spec{spec("a", "a")})
			stops = append(stops, run(t, c))
			warmed(t, c, "a")
		}
		require.Equal(t, []int{40, 20}, []int{inCache(t, roots[0], "a"), inCache(t, roots[1], "a")})
		stops[0]()
		require.Len(t, memory.held, 1, "what a closed cache has counts no more")
		stops[1]()
	})
}

func TestReadingAheadEndsWithItsPod(t *testing.T) {
	root, o := shelf(t, map[string]int{"a": 80})
	synctest.Test(t, func(t *testing.T) {
		c := open(t, warming(root, newMachine(t, 1000, 500, 0), Warm{OnPod: true, LimitPercent: 50}), o)
		c.Want([]model.Spec{spec("a", "a")})
		c.InUse(calls("p", "a"))
		w := &warmer{c: c, resident: map[model.Digest]int64{}, done: map[*record]map[string]bool{}, short: map[*record]bool{}}
		require.NoError(t, w.measure())
		errands := c.toWarm()
		require.Len(t, errands, 1)
		record := errands[0].record

		// The pod goes once the first step has been read.
		steps := 0
		w.stepped = func() {
			if steps++; steps == 1 {
				c.InUse(nil)
			}
		}
		w.read(t.Context(), errands[0])
		require.Equal(t, 1, steps)
		require.Equal(t, 16, inCache(t, root, "a"))
		require.Empty(t, w.done[record], "the next pod has it read")
		require.Empty(t, c.Get().Model("a").Warmth)

		// And with the agent.
		c.InUse(calls("p", "a"))
		ctx, cancel := context.WithCancel(t.Context())
		w.stepped = cancel
		w.read(ctx, errands[0])
		require.Equal(t, 32, inCache(t, root, "a"))
		require.NoError(t, c.Close())
	})
}

func TestTheAgentsMemoryLimitIsFound(t *testing.T) {
	read := func(t *testing.T, m machine) string {
		r, err := findRAM(string(m))
		require.NoError(t, err)
		bounds, err := r.limits()
		require.NoError(t, err)
		text := ""
		for _, b := range bounds {
			text += fmt.Sprintf("free %d inactive %d keep %d;", b.free>>20, b.inactive>>20, b.keep>>20)
		}
		return text
	}
	t.Run("v2, in a container", func(t *testing.T) {
		m := newMachine(t, 1, 1, 1)
		require.Empty(t, read(t, m))
		m.within(t, 512, 100, 30)
		require.Equal(t, "free 412 inactive 30 keep 128;", read(t, m))
		m.write(t, "sys/fs/cgroup/memory.high", fmt.Sprint(300<<20))
		require.Equal(t, "free 200 inactive 30 keep 128;", read(t, m), "where it is slowed down")
	})
	t.Run("v2, on the host, all groups above", func(t *testing.T) {
		m := newMachine(t, 1, 1, 1)
		m.write(t, "proc/self/cgroup", "1:name=systemd:/x\n0::/kubepods/pod1/agent\n")
		require.NoError(t, os.Remove(filepath.Join(string(m), "sys/fs/cgroup/memory.max")), "the root of all has none")
		for at, limit := range map[string]string{"kubepods": fmt.Sprint(900 << 20), "kubepods/pod1": "max", "kubepods/pod1/agent": fmt.Sprint(200 << 20)} {
			m.write(t, "sys/fs/cgroup/"+at+"/memory.max", limit)
			m.write(t, "sys/fs/cgroup/"+at+"/memory.current", fmt.Sprint(len(at)<<20))
			m.write(t, "sys/fs/cgroup/"+at+"/memory.stat", "inactive_file 1048576\n")
		}
		require.Equal(t, "free 181 inactive 1 keep 128;free 892 inactive 1 keep 128;", read(t, m))
	})
	v1 := func(t *testing.T, root, of string) machine {
		m := newMachine(t, 1, 1, 1)
		m.write(t, "proc/self/cgroup", "9:cpu,cpuacct:/elsewhere\n4:memory:"+of+"\n0::/\n")
		m.write(t, "proc/self/mountinfo", "30 22 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"+
			"33 30 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n34 30 0:31 "+root+" /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n")
		return m
	}
	stat := fmt.Sprintf("inactive_file 5\nhierarchical_memory_limit %d\ntotal_inactive_file %d\n", 512<<20, 30<<20)
	for name, at := range map[string]struct{ root, of, dir string }{
		"v1, in a container":                {"/kubepods/pod1/agent", "/kubepods/pod1/agent", ""},
		"v1, in a container of a container": {"/docker/kind", "/kubepods/pod1/agent", ""},
		"v1, on the host":                   {"/", "/kubepods/pod1/agent", "/kubepods/pod1/agent"},
	} {
		t.Run(name, func(t *testing.T) {
			m := v1(t, at.root, at.of)
			m.write(t, "sys/fs/cgroup/memory"+at.dir+"/memory.stat", stat)
			m.write(t, "sys/fs/cgroup/memory"+at.dir+"/memory.usage_in_bytes", fmt.Sprint(100<<20))
			require.Equal(t, "free 412 inactive 30 keep 128;", read(t, m))
			m.write(t, "sys/fs/cgroup/memory"+at.dir+"/memory.stat", "hierarchical_memory_limit 9223372036854771712\n")
			require.Empty(t, read(t, m))
		})
	}
	t.Run("not to be found", func(t *testing.T) {
		m := newMachine(t, 1, 1, 1)
		m.write(t, "proc/self/mountinfo", "22 28 0:20 / /proc rw - proc proc rw\n")
		_, err := findRAM(string(m))
		require.EqualError(t, err, "no control groups are mounted, so the agent's memory limit is not known")
		m = newMachine(t, 1, 1, 1)
		m.write(t, "sys/fs/cgroup/memory.max", "lots")
		r, err := findRAM(string(m))
		require.NoError(t, err)
		_, err = r.limits()
		require.ErrorContains(t, err, `the agent's memory limit is not known: `)
	})
}

func TestNothingIsReadAheadWhereTheLimitIsNotKnown(t *testing.T) {
	root, o := shelf(t, map[string]int{"a": 20})
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, 1000, 500, 0)
		m.write(t, "proc/self/mountinfo", "22 28 0:20 / /proc rw - proc proc rw\n")
		var log bytes.Buffer
		cfg := warming(root, m, Warm{OnReady: true, LimitPercent: 50})
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		s := wait(t, c, "a", func(s *model.Status) bool { return s.Warmth != "" && s.Resident != nil })
		require.Equal(t, "not read ahead: no control groups are mounted, so the agent's memory limit is not known", s.Warmth)
		time.Sleep(time.Hour)
		require.Zero(t, inCache(t, root, "a"))
		stop()
		require.Equal(t, 1, strings.Count(log.String(), "no model is read ahead"))
	})
}

// TestReadingAheadStaysWithinARealMemoryLimit runs a cache in a control group of the kernel, whose limit is less than the
// model, and looks at what the group has counted.
func TestReadingAheadStaysWithinARealMemoryLimit(t *testing.T) {
	const limit = 256
	if root := os.Getenv("WARM_ROOT"); root != "" { // the cache, in the group
		c := open(t, warming(root, "", Warm{OnReady: true, LimitPercent: 50}), newOrigin())
		c.Want(nil)
		stop := run(t, c)
		s := warmed(t, c, "a")
		fmt.Printf("warmth=%s\n", s.Warmth)
		stop()
		return
	}
	group, limitFile, usageFile, failures := memoryGroup(t)
	require.NoError(t, os.WriteFile(filepath.Join(group, limitFile), []byte(strconv.Itoa(limit<<20)), 0o644))
	root, _ := shelf(t, map[string]int{"a": 240})
	dir, err := os.Open(group)
	require.NoError(t, err)
	defer dir.Close()
	child := exec.Command("/bin/sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, group, os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), "WARM_ROOT="+root)
	out, err := child.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "warmth=read ahead in part: no more fits into the agent's own memory limit of 256.0 MiB")
	has := inCache(t, root, "a")
	t.Logf("a limit of %d MiB: %d MiB of 240 are in memory, %s MiB count, %s", limit, has, usageFile(t), failures(t))
	require.LessOrEqual(t, has, limit-ownMemory>>20, "the agent keeps its own")
	require.GreaterOrEqual(t, has, 48, "the rest is used")
	require.Equal(t, "reached 0 times", failures(t))
}

// memoryGroup makes a control group that counts memory, or skips.
func memoryGroup(t *testing.T) (dir, limit string, usage, failures func(*testing.T) string) {
	t.Helper()
	r, err := findRAM("/")
	if err != nil {
		t.Skip(err)
	}
	v1 := r.groups[0].v1
	at := r.groups[len(r.groups)-1].dir
	dir = filepath.Join(at, fmt.Sprintf("gpu-agent-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no control group can be made: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Rmdir(dir)) })
	limit, use := "memory.max", "memory.current"
	if v1 {
		limit, use = "memory.limit_in_bytes", "memory.usage_in_bytes"
	}
	if _, err := os.Stat(filepath.Join(dir, limit)); err != nil {
		t.Skipf("groups of %s do not count memory: %v", at, err)
	}
	usage = func(t *testing.T) string {
		n, err := number(filepath.Join(dir, use))
		require.NoError(t, err)
		return fmt.Sprint(n >> 20)
	}
	failures = func(t *testing.T) string {
		n := int64(0)
		if v1 {
			n, err = number(filepath.Join(dir, "memory.failcnt"))
			require.NoError(t, err)
		} else {
			events, err := numbers(filepath.Join(dir, "memory.events"))
			require.NoError(t, err)
			n = events["max"]
		}
		return fmt.Sprintf("reached %d times", n)
	}
	return dir, limit, usage, failures
}

func TestWeightsAreReadFirstInTheirOrder(t *testing.T) {
	var got []string
	for _, f := range weightsFirst([]model.File{{Path: "config.json"}, {Path: "m-1.safetensors"}, {Path: "m-2.safetensors"}, {Path: "original/c.pth"}, {Path: "sub/x.safetensors"}}) {
		got = append(got, f.Path)
	}
	require.Equal(t, []string{"m-1.safetensors", "m-2.safetensors", "sub/x.safetensors", "config.json", "original/c.pth"}, got)
}
