package cdi_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	cdilib "tags.cncf.io/container-device-interface/pkg/cdi"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/cdi"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// twin makes specs as the child does, of device nodes that need not exist.
type twin struct {
	mu     sync.Mutex
	asked  []cdi.Request
	failed map[string]string
	err    error
	crash  string // a unit that ends the child
}

func (g *twin) Generate(_ context.Context, q cdi.Request) (cdi.Result, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, q)
	if g.err != nil {
		return cdi.Result{}, g.err
	}
	if slices.Contains(q.Units, g.crash) {
		return cdi.Result{}, errors.New("symbol lookup error: nvmlFoo")
	}
	device := func(name, node string) cdispecs.Device {
		return cdispecs.Device{Name: name, ContainerEdits: cdispecs.ContainerEdits{DeviceNodes: []*cdispecs.DeviceNode{{Path: node, Major: 195, Type: "c"}}}}
	}
	gpus := &cdispecs.Spec{Kind: cdi.Vendor + "/gpu"}
	for _, unit := range q.Units {
		if g.failed[unit] != "" {
			continue
		}
		d := device(unit, "/dev/"+unit)
		d.Annotations = cdi.UnitAnnotation(unit)
		gpus.Devices = append(gpus.Devices, d)
	}
	all := []*cdispecs.Spec{gpus}
	for _, class := range q.Classes {
		if g.failed[class] == "" {
			all = append(all, &cdispecs.Spec{Kind: cdi.Vendor + "/" + class, Devices: []cdispecs.Device{device("all", "/dev/"+class)}})
		}
	}
	return cdi.Result{Specs: all, Failed: g.failed}, nil
}

func (g *twin) calls() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.asked)
}

func (g *twin) set(failed map[string]string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failed, g.err = failed, err
}

// node is a host with a hook, a folder of specs and a driver.
type node struct {
	cdi.Config
	twin      *twin
	snapshots watch.Value[*gpu.Snapshot]
}

func newNode(t *testing.T) *node {
	n := &node{twin: &twin{}}
	root := t.TempDir()
	n.Config = cdi.Config{Dir: t.TempDir(), DriverRootMount: root, Generator: n.twin, Version: "v1"}
	n.file(t, filepath.Join(root, "usr/bin/nvidia-cdi-hook"), "#!/bin/true", 0o755)
	n.snapshots.Set(snapshot("550.163.01", "GPU-a", "GPU-b"))
	return n
}

func (n *node) file(t *testing.T, path, content string, mode os.FileMode) {
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), mode))
}

func snapshot(driver string, ids ...gpu.UUID) *gpu.Snapshot {
	s := &gpu.Snapshot{Driver: gpu.Driver{Loaded: true, Version: driver}}
	for i, id := range ids {
		s.Devices = append(s.Devices, gpu.Device{Index: i, Minor: i, UUID: id})
	}
	return s
}

// run starts a writer in the bubble of the test.
func (n *node) run(t *testing.T) *cdi.Writer {
	w, err := cdi.New(n.Config, &n.snapshots)
	require.NoError(t, err)
	t.Cleanup(n.start(t, w))
	return w
}

// start runs w until stop is called.
func (n *node) start(t *testing.T, w *cdi.Writer) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		require.NoError(t, <-ended)
	}
}

// devices is what the runtime's own library finds in the folder.
func (n *node) devices(t *testing.T) []string {
	cache, err := cdilib.NewCache(cdilib.WithSpecDirs(n.Dir), cdilib.WithAutoRefresh(false))
	require.NoError(t, err)
	require.Empty(t, cache.GetErrors())
	return cache.ListDevices()
}

const kind = cdi.Vendor + "/gpu="

func TestTheRuntimeResolvesWhatIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.Classes = []string{cdi.ClassGDS}
		w := n.run(t)
		require.NoError(t, w.Err())
		require.Empty(t, w.Missing(n.snapshots.Get()))
		require.Equal(t, []string{cdi.Vendor + "/gds=all", kind + "GPU-a", kind + "GPU-b"}, n.devices(t))

		cache, err := cdilib.NewCache(cdilib.WithSpecDirs(n.Dir), cdilib.WithAutoRefresh(false))
		require.NoError(t, err)
		container := &specs.Spec{}
		unresolved, err := cache.InjectDevices(container, kind+"GPU-b")
		require.NoError(t, err)
		require.Empty(t, unresolved)
		require.Equal(t, "/dev/GPU-b", container.Linux.Devices[0].Path)

		info, err := os.Stat(filepath.Join(n.Dir, "k8s.device-plugin.nvidia.com-gpu.json"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o644), info.Mode().Perm(), "the runtime may not be root")
	})
}

func TestNothingIsReadyBeforeItsSpecIsWritten(t *testing.T) {
	n := newNode(t)
	w, err := cdi.New(n.Config, &n.snapshots)
	require.NoError(t, err)
	require.Equal(t, map[gpu.UUID]string{
		"GPU-a": "its CDI device is not written yet", "GPU-b": "its CDI device is not written yet",
	}, w.Missing(n.snapshots.Get()))
}

func TestARestartHoldsNothingBackAndGeneratesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		first, err := cdi.New(n.Config, &n.snapshots)
		require.NoError(t, err)
		n.start(t, first)()
		require.Equal(t, 1, n.twin.calls())

		w, err := cdi.New(n.Config, &n.snapshots)
		require.NoError(t, err)
		require.Empty(t, w.Missing(n.snapshots.Get()), "before Run")
		n.start(t, w)()
		require.Equal(t, 1, n.twin.calls())

		n.Version = "v2"
		n.run(t)
		require.Equal(t, 2, n.twin.calls(), "another version of the agent may write another spec")
	})
}

func TestSpecsFollowTheDriverAndTheHardware(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		w := n.run(t)
		change := func(s *gpu.Snapshot, missing int, devices ...string) {
			t.Helper()
			before := n.twin.calls()
			require.Len(t, w.Missing(s), missing, "before the files were written")
			n.snapshots.Set(s)
			synctest.Wait()
			require.Equal(t, before+1, n.twin.calls())
			require.Empty(t, w.Missing(s))
			require.Equal(t, devices, n.devices(t))
		}
		change(snapshot("570.1", "GPU-a", "GPU-b"), 2, kind+"GPU-a", kind+"GPU-b")
		change(snapshot("570.1", "GPU-a", "GPU-b", "GPU-c"), 1, kind+"GPU-a", kind+"GPU-b", kind+"GPU-c")

		mig := snapshot("570.1", "GPU-a", "GPU-b", "GPU-c")
		mig.Devices[1].MIGEnabled = true
		mig.Devices[1].Instances = []gpu.Instance{{UUID: "MIG-1", GI: 1}, {UUID: "MIG-2", Index: 1, GI: 2}}
		change(mig, 1, kind+"GPU-a", kind+"GPU-c", kind+"MIG-1", kind+"MIG-2")

		swapped := snapshot("570.1", "GPU-c", "GPU-a")
		change(swapped, 2, kind+"GPU-a", kind+"GPU-c")

		same := snapshot("570.1", "GPU-c", "GPU-a")
		same.Devices[0].Health = gpu.Health{Reason: gpu.XID, Text: "XID 79"}
		before := n.twin.calls()
		n.snapshots.Set(same)
		n.snapshots.Set(&gpu.Snapshot{Driver: gpu.Driver{Error: "gone"}})
		synctest.Wait()
		require.Equal(t, before, n.twin.calls(), "neither health nor a driver that is away changes a spec")
		require.Len(t, n.devices(t), 2)
	})
}

func TestAGPUThatDoesNotAnswerIsNotAskedAndKeepsItsDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		w := n.run(t)
		s := snapshot("550.163.01", "GPU-a", "GPU-b", "GPU-c")
		s.Devices[1].Health = gpu.Health{Reason: gpu.Hung}
		n.snapshots.Set(s)
		synctest.Wait()
		require.Equal(t, []string{"GPU-a", "GPU-c"}, n.twin.asked[1].Units)
		require.Equal(t, []string{kind + "GPU-a", kind + "GPU-b", kind + "GPU-c"}, n.devices(t))
		require.Empty(t, w.Missing(s))

		time.Sleep(time.Hour)
		require.Equal(t, 2, n.twin.calls(), "nothing is asked again for it")
	})
}

func TestOneGPUThatCannotBeDescribedHoldsBackItselfAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.twin.set(map[string]string{"GPU-b": "it has no device node"}, nil)
		w := n.run(t)
		require.Equal(t, map[gpu.UUID]string{"GPU-b": "no CDI device for GPU-b: it has no device node"}, w.Missing(n.snapshots.Get()))
		require.Equal(t, []string{kind + "GPU-a"}, n.devices(t))

		n.twin.set(nil, nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Empty(t, w.Missing(n.snapshots.Get()))
	})
}

func TestAGPUThatEndsTheChildHoldsBackItselfAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.Classes = []string{cdi.ClassGDS}
		n.twin.crash = "GPU-b"
		n.snapshots.Set(snapshot("550.163.01", "GPU-a", "GPU-b", "GPU-c"))
		w := n.run(t)
		require.Equal(t, map[gpu.UUID]string{"GPU-b": "no CDI device for GPU-b: symbol lookup error: nvmlFoo"}, w.Missing(n.snapshots.Get()))
		require.Equal(t, []string{cdi.Vendor + "/gds=all", kind + "GPU-a", kind + "GPU-c"}, n.devices(t))
		require.Equal(t, 1+4, n.twin.calls(), "all at once, then each GPU and the rest")
	})
}

func TestAnAddOnThatIsNotThereHoldsBackEveryGPU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.Classes = []string{cdi.ClassGDRCopy}
		n.twin.set(map[string]string{cdi.ClassGDRCopy: "no /dev/gdrdrv"}, nil)
		w := n.run(t)
		require.Equal(t, "no CDI device for gdrcopy: no /dev/gdrdrv", w.Missing(n.snapshots.Get())["GPU-a"])
	})
}

func TestAFailureIsTriedAgainWithBackoffAndLeavesTheFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		w := n.run(t)
		n.twin.set(nil, errors.New("signal: killed: symbol lookup error"))
		s := snapshot("570.1", "GPU-a", "GPU-b")
		n.snapshots.Set(s)
		synctest.Wait()
		require.EqualError(t, w.Err(), "generate CDI specs: signal: killed: symbol lookup error")
		require.Equal(t, "no CDI device: generate CDI specs: signal: killed: symbol lookup error", w.Missing(s)["GPU-a"])
		require.Len(t, n.devices(t), 2)
		for range 60 {
			time.Sleep(time.Minute)
			n.snapshots.Set(snapshot("570.1", "GPU-a", "GPU-b"))
		}
		calls := n.twin.calls()
		require.InDelta(t, 3*(8+11), calls, 9, "1 s, 2 s, … then every 5 min, however often a snapshot comes")
		n.snapshots.Set(snapshot("570.1", "GPU-a", "GPU-b", "GPU-c"))
		synctest.Wait()
		require.Equal(t, calls+4, n.twin.calls(), "other hardware is another matter, and is tried at once")

		n.twin.set(nil, nil)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		require.NoError(t, w.Err())
		require.Empty(t, w.Missing(s))
	})
}

// looks counts how often the writer asks for the newest snapshot.
type looks struct {
	watch.Value[*gpu.Snapshot]
	n    atomic.Int64
	stop func()
}

func (l *looks) Watch() (*gpu.Snapshot, <-chan struct{}) {
	if l.n.Add(1) > 10_000 {
		l.stop() // a loop that never rests keeps the clock of the bubble from moving
	}
	return l.Value.Watch()
}

func TestWhatCannotBeTriedAgainAfterAFailureIsWaitedFor(t *testing.T) {
	for name, breaks := range map[string]func(*testing.T, *node, *looks){
		"no driver": func(_ *testing.T, _ *node, l *looks) { l.Set(&gpu.Snapshot{Driver: gpu.Driver{Error: "gone"}}) },
		"no hook": func(t *testing.T, n *node, _ *looks) {
			require.NoError(t, os.RemoveAll(filepath.Join(n.DriverRootMount, "usr")))
		},
		"a foreign file": func(t *testing.T, n *node, _ *looks) {
			n.file(t, filepath.Join(n.Dir, "k8s.device-plugin.nvidia.com-gpu.json"), "{", 0o600)
		},
		"as it was before": func(_ *testing.T, _ *node, l *looks) { l.Set(snapshot("550.163.01", "GPU-a", "GPU-b")) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, l := newNode(t), &looks{}
				l.Set(n.snapshots.Get())
				w, err := cdi.New(n.Config, l)
				require.NoError(t, err)
				ctx, stop := context.WithCancel(t.Context())
				l.stop = stop
				ended := make(chan error, 1)
				go func() { ended <- w.Run(ctx) }()
				synctest.Wait()
				n.twin.set(nil, errors.New("signal: killed"))
				l.Set(snapshot("570.1", "GPU-a", "GPU-b"))
				synctest.Wait()
				require.Error(t, w.Err())

				breaks(t, n, l)
				before := l.n.Load()
				time.Sleep(time.Hour)
				synctest.Wait()
				require.Less(t, l.n.Load()-before, int64(70), "once a minute is enough")
				stop()
				require.NoError(t, <-ended)
			})
		})
	}
}

func TestAForeignSpecIsNeverReplaced(t *testing.T) {
	for name, tc := range map[string]struct{ file, content string }{
		"of our kind":      {"other.yaml", "cdiVersion: 0.5.0\nkind: k8s.device-plugin.nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits: {env: [A=b]}\n"},
		"of our name":      {"k8s.device-plugin.nvidia.com-gpu.json", `{"cdiVersion":"0.5.0","kind":"k8s.device-plugin.nvidia.com/gpu","devices":[{"name":"0","containerEdits":{"env":["A=b"]}}]}`},
		"not even a spec":  {"k8s.device-plugin.nvidia.com-gpu.json", "{"},
		"of an unkown key": {"k8s.device-plugin.nvidia.com-gpu.json", `{"kind":"k8s.device-plugin.nvidia.com/gpu","future":1}`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				path := filepath.Join(n.Dir, tc.file)
				n.file(t, path, tc.content, 0o600)
				n.file(t, filepath.Join(n.Dir, "nvidia.yaml"), "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits: {env: [A=b]}\n", 0o600)
				w := n.run(t)
				require.EqualError(t, w.Err(), path+" is in the way and was not written by this agent (NVIDIA's device plugin leaves such a file): it describes k8s.device-plugin.nvidia.com/gpu; remove it")
				require.EqualError(t, w.Check(), w.Err().Error())
				require.Len(t, w.Missing(n.snapshots.Get()), 2)
				left, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Equal(t, tc.content, string(left))
				require.Zero(t, n.twin.calls())

				require.NoError(t, os.Remove(path))
				require.NoError(t, w.Check())
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				require.NoError(t, w.Err())
				require.Empty(t, w.Missing(n.snapshots.Get()))
			})
		})
	}
}

func TestAFileThatSomebodyRemovedIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.run(t)
		require.NoError(t, os.Remove(filepath.Join(n.Dir, "k8s.device-plugin.nvidia.com-gpu.json")))
		n.snapshots.Set(snapshot("550.163.01", "GPU-a", "GPU-b")) // the next sample
		synctest.Wait()
		require.Len(t, n.devices(t), 2)
	})
}

func TestWhatTheHostLacksIsOneClearLine(t *testing.T) {
	for name, tc := range map[string]struct {
		breaks func(*node)
		want   string
	}{
		"hook": {func(n *node) { n.Hook = "/opt/hook" }, "hook /opt/hook is not an executable file of the host (looked at ROOT/opt/hook): install NVIDIA's container toolkit, or set cdi.hook"},
		"any hook": {func(n *node) { _ = os.RemoveAll(filepath.Join(n.DriverRootMount, "usr")) },
			"none of [/usr/bin/nvidia-cdi-hook /usr/bin/nvidia-ctk /usr/local/nvidia/toolkit/nvidia-cdi-hook /usr/local/nvidia/toolkit/nvidia-ctk] is on the host (looked at ROOT/usr/bin/nvidia-cdi-hook, …): install NVIDIA's container toolkit, or set cdi.hook"},
		"folder": {func(n *node) { n.Dir = "/no/such/folder" }, "/no/such/folder is not there: mount the host's folder of CDI specs"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				tc.breaks(n)
				w := n.run(t)
				require.EqualError(t, w.Err(), strings.ReplaceAll(tc.want, "ROOT", n.DriverRootMount))
				require.Equal(t, "no CDI device: "+w.Err().Error(), w.Missing(n.snapshots.Get())["GPU-a"])
			})
		})
	}
}

func TestADriverContainersHookIsLookedForUnderItsOwnPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.DriverRoot, n.Hook = "/run/nvidia/driver", filepath.Join(t.TempDir(), "nvidia-ctk")
		n.file(t, n.Hook, "", 0o755)
		require.NoError(t, n.run(t).Err())
		require.Equal(t, n.Hook, n.twin.asked[0].HostHook)
		require.Equal(t, "/run/nvidia/driver", n.twin.asked[0].HostDevRoot)
	})
}

func TestBadConfigIsOneClearLine(t *testing.T) {
	good := cdi.Config{Generator: &twin{}}
	for want, breaks := range map[string]func(*cdi.Config){
		`path "cdi": want an absolute path`:       func(c *cdi.Config) { c.Dir = "cdi" },
		`class "gdr": want gds, mofed or gdrcopy`: func(c *cdi.Config) { c.Classes = []string{"gdr"} },
		`disabledHooks: "ldcache": want some of apply-cuda-memory-limits, create-symlinks, disable-device-node-modification, enable-cuda-compat, update-application-profile, update-ldcache`: func(c *cdi.Config) {
			c.DisabledHooks = []string{"ldcache"}
		},
		`devRoot "/" is not driverRoot "/run/nvidia/driver": want devRootMount too, where it is mounted here`: func(c *cdi.Config) { c.DriverRoot, c.DevRoot = "/run/nvidia/driver", "/" },
	} {
		c := good
		breaks(&c)
		_, err := cdi.New(c, nil)
		require.EqualError(t, err, want)
	}
}
