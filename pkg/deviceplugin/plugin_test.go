package deviceplugin_test

import (
	"context"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin"
	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin/kubelettest"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const deadline = 20 * time.Second // for what takes milliseconds on an idle machine

// node is a plugin folder with a kubelet that is not started, and a plugin that is.
type node struct {
	t         *testing.T
	dir       string
	kubelet   *kubelettest.Kubelet
	snapshots watch.Value[*gpu.Snapshot]
	elsewhere watch.Value[string]
	policies  *watch.Value[resource.Policy] // of the plugin started last
	plugin    *deviceplugin.Plugin
	stop      func() // the plugin, and waits for it
}

func newNode(t *testing.T, s *gpu.Snapshot, cfg resource.Config) *node {
	t.Helper()
	n := &node{t: t, dir: shortDir(t)}
	n.kubelet = kubelettest.New(n.dir)
	n.snapshots.Set(s)
	n.plugin, n.stop = n.start(cfg)
	t.Cleanup(n.stop)
	return n
}

func policy(t *testing.T, cfg resource.Config) resource.Policy {
	t.Helper()
	p, err := resource.NewPolicy(cfg)
	require.NoError(t, err)
	return p
}

// shortDir: a socket's path holds 107 bytes, and t.TempDir takes most of them.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dp")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func (n *node) start(cfg resource.Config) (*deviceplugin.Plugin, func()) {
	policies := &watch.Value[resource.Policy]{}
	policies.Set(policy(n.t, cfg))
	n.policies = policies
	log := slog.New(slog.NewTextHandler(n.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	plugin := deviceplugin.New(deviceplugin.Config{Dir: n.dir, Elsewhere: &n.elsewhere, Log: log}, policies, &n.snapshots)
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	go func() { done <- plugin.Run(ctx) }()
	stopped := false
	return plugin, func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			require.NoError(n.t, err)
		case <-time.After(deadline):
			require.Fail(n.t, "Run has not returned")
		}
	}
}

func (n *node) startKubelet() {
	n.t.Helper()
	require.NoError(n.t, n.kubelet.Start())
	n.t.Cleanup(n.kubelet.Stop)
}

func (n *node) restartKubelet() {
	n.t.Helper()
	n.kubelet.Stop()
	require.NoError(n.t, n.kubelet.Start())
}

func (n *node) wait(what func(kubelettest.State) bool) kubelettest.State {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), deadline)
	defer cancel()
	s, err := n.kubelet.Wait(ctx, what)
	require.NoError(n.t, err)
	return s
}

// registered waits for the times-th registration with that many healthy devices.
func (n *node) registered(times, healthy int) kubelettest.State {
	n.t.Helper()
	s := n.wait(func(s kubelettest.State) bool {
		return len(s.Registrations) >= times && s.Healthy() == healthy && s.Streams == 1
	})
	require.Len(n.t, s.Registrations, times)
	require.Len(n.t, slices.Compact(slices.Sorted(slices.Values(s.Registrations))), times, "names must be fresh")
	require.Zero(n.t, s.Refused)
	return s
}

// upgrade starts a second instance, after the first has noted when it registered: one that notes it later counts as
// one that registered later.
func (n *node) upgrade() (*deviceplugin.Plugin, func()) {
	n.t.Helper()
	require.Eventually(n.t, func() bool { return n.plugin.Status().Registered }, deadline, time.Millisecond)
	newer, stop := n.start(resource.Config{})
	n.t.Cleanup(stop)
	return newer, stop
}

// waitingFor waits until the plugin says that it is not registered because of text.
func (n *node) waitingFor(text string) {
	n.t.Helper()
	require.Eventually(n.t, func() bool {
		s := n.plugin.Status()
		return !s.Registered && s.Err != nil && strings.Contains(s.Err.Error(), text)
	}, deadline, time.Millisecond, "waiting for %q", text)
}

func (n *node) sockets() []string {
	n.t.Helper()
	var names []string
	entries, err := os.ReadDir(n.dir)
	require.NoError(n.t, err)
	for _, e := range entries {
		if e.Type()&fs.ModeSocket != 0 && e.Name() != "kubelet.sock" {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestRegistersOnceADriverIsThereAndNotBefore(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil, resource.Config{})
	n.startKubelet()
	n.waitingFor("no GPU known yet")
	n.snapshots.Set(&gpu.Snapshot{Driver: gpu.Driver{Error: "libnvidia-ml.so.1 not found"}})
	n.waitingFor("driver not loaded: libnvidia-ml.so.1 not found")
	n.snapshots.Set(&gpu.Snapshot{Driver: gpu.Driver{Loaded: true}})
	n.waitingFor("no GPU known yet")
	unloaded := gputest.Node(8)
	unloaded.Driver = gpu.Driver{Error: "driver is being upgraded"}
	n.snapshots.Set(unloaded)
	n.waitingFor("driver is being upgraded")
	require.Empty(t, n.kubelet.State().Registrations)
	require.Empty(t, n.sockets())

	s := gputest.Node(8)
	s.Devices[7].NUMANode = -1
	n.snapshots.Set(s)
	got := n.registered(1, 8)
	require.Len(t, got.Devices, 8)
	require.Equal(t, int64(0), got.Devices[string(gputest.UUID(0))].GetTopology().GetNodes()[0].GetID())
	require.Equal(t, int64(1), got.Devices[string(gputest.UUID(6))].GetTopology().GetNodes()[0].GetID())
	require.Nil(t, got.Devices[string(gputest.UUID(7))].GetTopology())
	require.Equal(t, got.Registrations, n.sockets())
}

func TestComesBackAfterAKubeletRestart(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	n.restartKubelet()
	n.registered(2, 8)
	n.restartKubelet()
	s := n.registered(3, 8)
	require.Equal(t, s.Registrations[2:], n.sockets(), "one socket, the last one")
}

func TestComesBackAfterTheKubeletWasKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	require.NoError(t, n.kubelet.Kill())
	n.waitingFor("connection refused")
	require.NoError(t, n.kubelet.Start())
	n.registered(2, 8)
}

func TestAKubeletThatStartsLaterSeesOneRegistration(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.waitingFor("kubelet is not there")
	require.Empty(t, n.sockets())
	n.startKubelet()
	n.registered(1, 8)
	require.Eventually(t, func() bool { return n.plugin.Status().Registered }, deadline, time.Millisecond)
	require.Equal(t, uint64(1), n.plugin.Status().Registrations)
	n.restartKubelet() // whatever the first start still had to cause comes before this
	n.registered(2, 8)
}

func TestComesBackAfterItsSocketWasDeleted(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	s := n.registered(1, 8)
	require.NoError(t, os.Remove(filepath.Join(n.dir, s.Registrations[0])))
	s = n.registered(2, 8)
	require.Equal(t, s.Registrations[1:], n.sockets())
}

func TestComesBackAfterItsStreamWasDropped(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	n.kubelet.DropStreams()
	s := n.registered(2, 8)
	require.Equal(t, s.Registrations[1:], n.sockets())
}

func TestWaitsForThePluginFolderAndSurvivesItsReplacement(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil, resource.Config{})
	require.NoError(t, os.Remove(n.dir))
	n.snapshots.Set(gputest.Node(8))
	n.waitingFor("plugin folder is not there")
	require.NoError(t, os.Mkdir(n.dir, 0o755))
	n.startKubelet()
	n.registered(1, 8)

	n.kubelet.Stop()
	require.NoError(t, os.RemoveAll(n.dir))
	n.waitingFor("plugin folder is not there")
	require.NoError(t, os.Mkdir(n.dir, 0o755))
	require.NoError(t, n.kubelet.Start())
	n.registered(2, 8)
}

func TestHealthReachesTheStream(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	n.snapshots.Set(gputest.Sick(gputest.Node(8), 3, gpu.Lost))
	s := n.registered(1, 7)
	require.Equal(t, api.Unhealthy, s.Devices[string(gputest.UUID(3))].GetHealth())
	n.snapshots.Set(gputest.Node(8))
	n.registered(1, 8)
}

func TestStaysRegisteredWhenNothingIsLeftToOffer(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(1), resource.Config{})
	n.startKubelet()
	n.registered(1, 1)
	split := gputest.Node(1)
	split.Devices[0].MIGEnabled = true
	n.snapshots.Set(split)
	s := n.wait(func(s kubelettest.State) bool { return s.Updates == 2 })
	require.Empty(t, s.Devices)
	n.restartKubelet()
	n.wait(func(s kubelettest.State) bool { return s.Updates == 3 })
	n.snapshots.Set(gputest.Node(1))
	n.registered(2, 1)
}

func TestAllStreamsSeeTheSame(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	require.Eventually(t, func() bool { return n.plugin.Status().Registered }, deadline, time.Millisecond)

	conn, err := grpc.NewClient("unix:"+n.plugin.Status().Endpoints[0].Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	stream, err := api.NewDevicePluginClient(conn).ListAndWatch(ctx, &api.Empty{})
	require.NoError(t, err)
	sameAsKubelet := func(s kubelettest.State) {
		list, err := stream.Recv()
		require.NoError(t, err)
		require.Len(t, list.GetDevices(), len(s.Devices))
		for _, d := range list.GetDevices() {
			require.Equal(t, s.Devices[d.GetID()].String(), d.String())
		}
	}
	sameAsKubelet(n.kubelet.State())
	n.snapshots.Set(gputest.Sick(gputest.Node(8), 5, gpu.XID))
	sameAsKubelet(n.registered(1, 7))

	cancel() // a second listener's end is not the kubelet's
	n.snapshots.Set(gputest.Node(8))
	n.registered(1, 8)
}

func TestLeavesWithoutAWordAndWithoutASocket(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	n.stop()
	require.Empty(t, n.sockets())
	s := n.wait(func(s kubelettest.State) bool { return s.Healthy() == 0 })
	require.Len(t, s.Devices, 8, "an empty list was sent")
	require.Equal(t, 1, s.Updates)
	require.Len(t, s.Registrations, 1)
}

func TestAnUpgradeThatOverlapsLeavesNoGap(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	n.upgrade()
	n.wait(func(s kubelettest.State) bool { return s.Streams == 2 && s.Updates == 2 })
	n.stop()
	s := n.registered(2, 8)
	require.Equal(t, 2, s.Updates)
	require.Equal(t, s.Registrations[1:], n.sockets())
}

// On kubelet 1.36 and older the old instance's exit closes the new one's connection.
func TestAnUpgradeOnAKubeletWithOneEndpointEndsRegistered(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.kubelet.OneEndpoint = true
	n.startKubelet()
	n.registered(1, 8)
	n.upgrade()
	n.wait(func(s kubelettest.State) bool { return s.Streams == 2 && s.Updates == 2 })
	n.stop()
	s := n.registered(3, 8)
	require.Equal(t, s.Registrations[2:], n.sockets())
}

func TestSweepsSocketsOfTheDeadOnly(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil, resource.Config{})
	n.startKubelet()
	open := func(name string) *net.UnixListener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(n.dir, name), Net: "unix"})
		require.NoError(t, err)
		l.SetUnlinkOnClose(false)
		return l
	}
	require.NoError(t, open("gpu-agent-dead.sock").Close())
	require.NoError(t, open("nvidia-gpu.sock").Close())
	alive := open("gpu-agent-alive.sock")
	defer alive.Close()
	n.snapshots.Set(gputest.Node(8))
	s := n.registered(1, 8)
	require.ElementsMatch(t, []string{s.Registrations[0], "gpu-agent-alive.sock", "nvidia-gpu.sock"}, n.sockets())
}

func TestAllocateAndPrefer(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Sick(gputest.Node(8), 2, gpu.Lost), resource.Config{
		Strategies: []string{resource.EnvVar, resource.CDICRI}, PassDeviceSpecs: true,
		Exists: func(p string) bool { return p == "/dev/nvidiactl" },
	})
	n.startKubelet()
	n.registered(1, 7)
	u := func(i int) string { return string(gputest.UUID(i)) }

	out, err := n.kubelet.Allocate(t.Context(), "nvidia.com/gpu", u(1), u(0))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"NVIDIA_VISIBLE_DEVICES": u(0) + "," + u(1)}, out.GetEnvs())
	require.Equal(t, "nvidia.com/gpu="+u(0), out.GetCdiDevices()[0].GetName())
	require.Equal(t, "nvidia.com/gpu="+u(1), out.GetCdiDevices()[1].GetName())
	var nodes []string
	for _, d := range out.GetDevices() {
		nodes = append(nodes, d.GetHostPath()+" "+d.GetContainerPath()+" "+d.GetPermissions())
	}
	require.Equal(t, []string{"/dev/nvidiactl /dev/nvidiactl rw", "/dev/nvidia0 /dev/nvidia0 rw", "/dev/nvidia1 /dev/nvidia1 rw"}, nodes)

	_, err = n.kubelet.Allocate(t.Context(), "nvidia.com/gpu", u(2))
	require.ErrorContains(t, err, "is unhealthy: GPU is Lost")
	_, err = n.kubelet.Allocate(t.Context(), "nvidia.com/gpu", "GPU-gone")
	require.ErrorContains(t, err, "not offered on this node")
	require.Equal(t, uint64(1), n.plugin.Status().Allocations)

	picked, err := n.kubelet.Prefer(t.Context(), "nvidia.com/gpu", []string{u(5), u(0), u(4), u(2)}, []string{u(5)}, 2)
	require.NoError(t, err)
	require.Equal(t, []string{u(5), u(4)}, picked)
	picked, err = n.kubelet.Prefer(t.Context(), "nvidia.com/gpu", []string{"not an id"}, []string{"nor this"}, -1)
	require.NoError(t, err)
	require.Equal(t, []string{"nor this"}, picked)
}
