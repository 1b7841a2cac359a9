package mps_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/mps"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// node is a host with the driver's programs, two GPUs and a root for MPS.
type node struct {
	bin, root, shm string
	snapshots      watch.Value[*gpu.Snapshot]
	policy         watch.Value[resource.Policy]
	daemons        *mps.Daemons
	stop           func()
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{bin: t.TempDir(), root: t.TempDir()}
	for _, name := range []string{"nvidia-cuda-mps-control", "nvidia-smi"} {
		script, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(n.bin, name), script, 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(n.bin, "nvidia-cuda-mps-server"), nil, 0o755))
	n.shm = filepath.Join(n.root, "shm")
	n.share(t, 4)
	n.snapshots.Set(snapshot())
	t.Cleanup(func() { // whatever was left running
		if pid, err := strconv.Atoi(strings.TrimSpace(n.read("pid"))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return n
}

func (n *node) share(t *testing.T, replicas int) {
	policy, err := resource.NewPolicy(resource.Config{
		MPS: &resource.Sharing{Resources: []resource.Shared{{Name: "nvidia.com/gpu", Replicas: replicas}}}, MPSRoot: n.root,
	})
	require.NoError(t, err)
	n.policy.Set(policy)
}

func snapshot(ill ...gpu.UUID) *gpu.Snapshot {
	s := &gpu.Snapshot{Driver: gpu.Driver{Loaded: true, Version: "550.163.01"}, Devices: []gpu.Device{
		{UUID: "GPU-a", Memory: 80 << 30, ComputeMajor: 9}, {UUID: "GPU-b", Index: 1, Minor: 1, Memory: 80 << 30, ComputeMajor: 9},
	}}
	for _, id := range ill {
		s.Device(id).Health = gpu.Health{Reason: gpu.Lost, Text: "lost"}
	}
	return s
}

func (n *node) run(t *testing.T) {
	t.Helper()
	var err error
	n.daemons, err = mps.New(mps.Config{
		BinDir: n.bin, Shm: n.shm, Poll: 50 * time.Millisecond, Patience: 5 * time.Second,
	}, func(s *gpu.Snapshot) []resource.MPS { return n.policy.Get().MPS(s) }, &n.snapshots)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.daemons.Run(ctx) }()
	stopped := false
	n.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(t, <-ended)
		}
	}
	t.Cleanup(n.stop)
}

func (n *node) path(name string) string {
	return filepath.Join(n.root, "nvidia.com/gpu/pipe", name)
}

func (n *node) read(name string) string {
	content, _ := os.ReadFile(n.path(name))
	return string(content)
}

func (n *node) modes() []string {
	content, _ := os.ReadFile(filepath.Join(n.bin, "modes"))
	return strings.Fields(strings.ReplaceAll(strings.TrimSpace(string(content)), "-i ", ""))
}

// eventually waits until Missing is as wanted.
func (n *node) eventually(t *testing.T, want map[gpu.UUID]string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Equal(c, want, n.daemons.Missing(n.snapshots.Get()))
	}, 20*time.Second, 10*time.Millisecond)
}

var none = map[gpu.UUID]string{}

func TestTheDaemonIsStartedToldItsLimitsAndEndedCleanly(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run(t)
	n.eventually(t, none)
	env := n.read("env")
	require.Contains(t, env, "CUDA_MPS_PIPE_DIRECTORY="+n.path("")+"\n")
	require.Contains(t, env, "CUDA_MPS_LOG_DIRECTORY="+filepath.Join(n.root, "nvidia.com/gpu/log")+"\n")
	require.Contains(t, env, "CUDA_VISIBLE_DEVICES=GPU-a,GPU-b\n")
	require.NotEmpty(t, os.Getenv("HOME"))
	require.NotContains(t, env, "HOME=", "what the agent runs with is not the daemon's")
	commands := n.read("commands")
	require.Contains(t, commands, "set_default_device_pinned_mem_limit GPU-a 20480M\n")
	require.Contains(t, commands, "set_default_device_pinned_mem_limit GPU-b 20480M\n")
	require.Contains(t, commands, "set_default_active_thread_percentage 25\n")
	require.Equal(t, []string{"GPU-a", "-c", "EXCLUSIVE_PROCESS", "GPU-b", "-c", "EXCLUSIVE_PROCESS"}, n.modes())
	shm, err := os.Stat(filepath.Join(n.root, "shm"))
	require.NoError(t, err)
	require.Equal(t, os.ModeSticky|0o777, shm.Mode()&(os.ModeSticky|os.ModePerm), "clients need not be root")

	n.stop()
	require.Contains(t, n.read("commands"), "quit\n")
	require.NoFileExists(t, n.path("pid"))
	require.Equal(t, []string{"GPU-a", "-c", "DEFAULT", "GPU-b", "-c", "DEFAULT"}, n.modes()[6:])
}

func TestADeadDaemonHoldsItsGPUsBackAndIsStartedAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run(t)
	n.eventually(t, none)
	pid, err := strconv.Atoi(strings.TrimSpace(n.read("pid")))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(n.root, "nvidia.com/gpu/log/fail"), nil, 0o644))
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	why := "no MPS daemon: nvidia-cuda-mps-control -f ended (exit status 1): An instance of this daemon is already running"
	n.eventually(t, map[gpu.UUID]string{"GPU-a": why, "GPU-b": why})
	require.NoError(t, os.Remove(filepath.Join(n.root, "nvidia.com/gpu/log/fail")))
	n.eventually(t, none)
}

func TestADaemonThatNoLongerAnswersIsReplaced(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run(t)
	n.eventually(t, none)
	first := n.read("pid")
	require.NoError(t, os.WriteFile(n.path("deaf"), nil, 0o644))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Contains(c, n.daemons.Missing(n.snapshots.Get())["GPU-a"], "no MPS daemon: it no longer answers")
	}, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, os.Remove(n.path("deaf")))
	n.eventually(t, none)
	require.NotEqual(t, first, n.read("pid"))
}

func TestADaemonWithClientsOutlivesTheAgentAndIsUsedAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run(t)
	n.eventually(t, none)
	pid := n.read("pid")
	require.NoError(t, os.WriteFile(n.path("servers"), []byte("4711\n"), 0o644))
	n.stop()
	require.NotContains(t, n.read("commands"), "quit")
	require.Equal(t, pid, n.read("pid"))

	n.share(t, 8)
	n.run(t)
	n.eventually(t, none)
	require.Equal(t, pid, n.read("pid"), "its clients live on")
	require.Contains(t, n.read("commands"), "set_default_active_thread_percentage 12\n", "the next clients have the new limits")
	n.stop()
	require.Equal(t, pid, n.read("pid"), "what it did not start it does not end")
}

func TestAnEditOfTheSharesKeepsADaemonThatHasClients(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run(t)
	n.eventually(t, none)
	pid := n.read("pid")
	require.NoError(t, os.WriteFile(n.path("servers"), []byte("4711\n"), 0o644))
	n.share(t, 2)
	require.NotEmpty(t, n.daemons.Missing(n.snapshots.Get()), "the new limits are not told yet")
	n.daemons.Poke()
	n.eventually(t, none)
	require.Equal(t, pid, n.read("pid"))
	require.Contains(t, n.read("commands"), "set_default_active_thread_percentage 50\n")
}

func TestAnIllGPUCostsNoOtherItsDaemonAndJoinsOnceThereAreNoClients(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.snapshots.Set(snapshot("GPU-b"))
	n.run(t)
	without := map[gpu.UUID]string{"GPU-b": "its MPS daemon was started without it, and starts again once it has no clients"}
	n.eventually(t, without)
	require.Contains(t, n.read("env"), "CUDA_VISIBLE_DEVICES=GPU-a\n")
	require.NotContains(t, n.read("commands"), "GPU-b", "it has no limit for a GPU that it does not see")
	pid := n.read("pid")

	require.NoError(t, os.WriteFile(n.path("servers"), []byte("4711\n"), 0o644))
	n.snapshots.Set(snapshot())
	asked := strings.Count(n.read("commands"), "get_server_list")
	require.Eventually(t, func() bool { return strings.Count(n.read("commands"), "get_server_list") > asked+1 }, 20*time.Second, 10*time.Millisecond)
	n.eventually(t, without)
	require.Equal(t, pid, n.read("pid"), "the clients of GPU-a live on")

	require.NoError(t, os.Remove(n.path("servers")))
	n.eventually(t, none)
	require.Contains(t, n.read("env"), "CUDA_VISIBLE_DEVICES=GPU-a,GPU-b\n")
}

func TestAGPUThatCannotBeMadeExclusiveHoldsBackItselfAlone(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	require.NoError(t, os.WriteFile(filepath.Join(n.bin, "ill"), []byte("GPU-a\n"), 0o644))
	n.run(t)
	n.eventually(t, map[gpu.UUID]string{
		"GPU-a": "no MPS daemon: nvidia-smi -c EXCLUSIVE_PROCESS: exit status 15: Unable to set the compute mode for GPU GPU-a: GPU is lost",
	})
	require.Contains(t, n.read("env"), "CUDA_VISIBLE_DEVICES=GPU-b\n")
}

func TestWhatTheHostLacksIsOneClearLine(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		breaks func(*node) error
		want   string
	}{
		"program": {
			func(n *node) error { return os.Remove(filepath.Join(n.bin, "nvidia-cuda-mps-server")) },
			"BIN/nvidia-cuda-mps-server is not there: MPS needs the driver's programs here (NVIDIA_DRIVER_CAPABILITIES=compute,utility), or devicePlugin.mpsBinDir where they are",
		},
		"shared memory": {
			func(n *node) error { n.shm = n.bin; return nil },
			"BIN is not ROOT/shm of the host: the daemon and its clients meet there, so mount it: see docs/mps.md",
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			require.NoError(t, tc.breaks(n))
			n.run(t)
			why := "no MPS daemon: " + strings.NewReplacer("BIN", n.bin, "ROOT", n.root).Replace(tc.want)
			n.eventually(t, map[gpu.UUID]string{"GPU-a": why, "GPU-b": why})
		})
	}
}

func TestCheckNamesTheProgramThatIsNotThere(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	m, err := mps.New(mps.Config{BinDir: n.bin}, nil, nil)
	require.NoError(t, err)
	require.NoError(t, m.Check())
	require.NoError(t, os.Remove(filepath.Join(n.bin, "nvidia-smi")))
	require.ErrorContains(t, m.Check(), filepath.Join(n.bin, "nvidia-smi")+" is not there")
}

func TestADriverThatIsAwayChangesNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run(t)
	n.eventually(t, none)
	pid := n.read("pid")
	n.snapshots.Set(&gpu.Snapshot{Driver: gpu.Driver{Error: "gone"}})
	require.Empty(t, n.daemons.Missing(n.snapshots.Get()))
	n.snapshots.Set(snapshot())
	n.eventually(t, none)
	require.Equal(t, pid, n.read("pid"))

	upgraded := snapshot()
	upgraded.Driver.Version = "570.1"
	n.snapshots.Set(upgraded)
	require.NotEmpty(t, n.daemons.Missing(upgraded), "the old driver's daemon serves nobody")
	n.eventually(t, none)
	require.NotEqual(t, pid, n.read("pid"))
}
