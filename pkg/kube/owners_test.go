package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

func pod(namespace, name string, containers ...*podresources.ContainerResources) *podresources.PodResources {
	return &podresources.PodResources{Namespace: namespace, Name: name, Containers: containers}
}

func container(name string, devices ...*podresources.ContainerDevices) *podresources.ContainerResources {
	return &podresources.ContainerResources{Name: name, Devices: devices}
}

func holds(resource string, ids ...string) *podresources.ContainerDevices {
	return &podresources.ContainerDevices{ResourceName: resource, DeviceIds: ids}
}

func list(pods ...*podresources.PodResources) *podresources.ListPodResourcesResponse {
	return &podresources.ListPodResourcesResponse{PodResources: pods}
}

func TestOwnersAreReadFromTheKubeletsList(t *testing.T) {
	tests := map[string]struct {
		pods []*podresources.PodResources
		want map[gpu.UUID][]resource.Owner
	}{
		"no pods": {nil, map[gpu.UUID][]resource.Owner{}},
		"one GPU each, one entry a device": {
			[]*podresources.PodResources{
				pod("ns", "b", container("main", holds("nvidia.com/gpu", "GPU-1"), holds("nvidia.com/gpu", "GPU-2")), container("sidecar")),
				pod("ns", "a", container("main", holds("nvidia.com/gpu", "GPU-0"))),
			},
			map[gpu.UUID][]resource.Owner{
				"GPU-0": {{Namespace: "ns", Pod: "a", Container: "main"}},
				"GPU-1": {{Namespace: "ns", Pod: "b", Container: "main"}},
				"GPU-2": {{Namespace: "ns", Pod: "b", Container: "main"}},
			},
		},
		"shares of one GPU": {
			[]*podresources.PodResources{
				pod("ns", "b", container("main", holds("nvidia.com/gpu.shared", "GPU-1::0", "GPU-1::3"))),
				pod("ns", "a", container("main", holds("nvidia.com/gpu.shared", "GPU-1::1"))),
			},
			map[gpu.UUID][]resource.Owner{"GPU-1": {
				{Namespace: "ns", Pod: "a", Container: "main"},
				{Namespace: "ns", Pod: "b", Container: "main"},
			}},
		},
		"MIG instances, and shares of one": {
			[]*podresources.PodResources{
				pod("ns", "b", container("main", holds("nvidia.com/mig-1g.10gb", "MIG-1"))),
				pod("ns", "a", container("main", holds("nvidia.com/mig-3g.40gb.shared", "MIG-2::0"))),
			},
			map[gpu.UUID][]resource.Owner{
				"MIG-1": {{Namespace: "ns", Pod: "b", Container: "main"}},
				"MIG-2": {{Namespace: "ns", Pod: "a", Container: "main"}},
			},
		},
		"other resources and other ids": {
			[]*podresources.PodResources{
				pod("ns", "a", container("main", holds("amd.com/gpu", "GPU-9"), holds("nvidia.com/gpu", "nvidia0", "GPU-0"))),
			},
			map[gpu.UUID][]resource.Owner{"GPU-0": {{Namespace: "ns", Pod: "a", Container: "main"}}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tt.want, NewOwners(Config{}).read(list(tt.pods...)))
		})
	}
}

func TestTheHoldersOfOtherNamesAreWantedToo(t *testing.T) {
	o := NewOwners(Config{Ours: func(resource string) bool { return resource == "acme.com/h100" }})
	got := o.read(list(pod("ns", "a", container("main", holds("acme.com/h100", "GPU-0"), holds("nvidia.com/gpu", "GPU-1")))))
	require.Equal(t, map[gpu.UUID][]resource.Owner{"GPU-0": {{Namespace: "ns", Pod: "a", Container: "main"}}}, got)
}

func TestAnUnknownIDIsLoggedOnceForItsResource(t *testing.T) {
	var log bytes.Buffer
	o := NewOwners(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	for range 3 {
		o.read(list(pod("ns", "a", container("main", holds("nvidia.com/mig-1g.10gb", "MIG-GPU-1/1/0", "MIG-GPU-1/2/0")))))
	}
	require.Equal(t, 1, strings.Count(log.String(), "not attributed"))
	require.Contains(t, log.String(), "MIG-GPU-1/1/0")
}

// fakeKubelet answers List from memory; used inside a synctest bubble.
type fakeKubelet struct {
	mu    sync.Mutex
	err   error
	count int
}

func (f *fakeKubelet) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

func (f *fakeKubelet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeKubelet) List(context.Context, *podresources.ListPodResourcesRequest, ...grpc.CallOption) (*podresources.ListPodResourcesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	if f.err != nil {
		return nil, f.err
	}
	return list(pod("ns", fmt.Sprint("pod-", f.count), container("main", holds("nvidia.com/gpu", "GPU-0")))), nil
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

func polling(t *testing.T, test func(t *testing.T, o *Owners, kubelet *fakeKubelet, log *lockedLog)) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedLog
		o := NewOwners(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
		kubelet := &fakeKubelet{}
		owners, up := o.Owners()
		require.Nil(t, owners)
		require.False(t, up)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { o.poll(ctx, kubelet); close(done) }()
		synctest.Wait()
		test(t, o, kubelet, &log)
		cancel()
		<-done
	})
}

// pass lets fake time go by.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestTheLastAnswerIsKeptForThreeIntervals(t *testing.T) {
	polling(t, func(t *testing.T, o *Owners, kubelet *fakeKubelet, log *lockedLog) {
		owners, up := o.Owners()
		require.Equal(t, "pod-1", owners["GPU-0"][0].Pod)
		require.True(t, up)
		kubelet.fail(errors.New("connection refused"))
		pass(15 * time.Second)
		owners, up = o.Owners()
		require.Equal(t, "pod-1", owners["GPU-0"][0].Pod)
		require.False(t, up)
		pass(time.Second)
		owners, _ = o.Owners()
		require.Nil(t, owners, "absent, not stale")
		require.Equal(t, 1, strings.Count(log.String(), "connection refused"))
		kubelet.fail(nil)
		pass(5 * time.Second)
		owners, up = o.Owners()
		require.Len(t, owners, 1)
		require.True(t, up)
		require.Equal(t, 1, strings.Count(log.String(), "says again"))
	})
}

func TestAPokeAsksSooner(t *testing.T) {
	polling(t, func(t *testing.T, o *Owners, kubelet *fakeKubelet, _ *lockedLog) {
		require.Equal(t, 1, kubelet.asked())
		o.Poke()
		o.Poke()
		pass(settle - 1)
		require.Equal(t, 1, kubelet.asked())
		pass(1)
		require.Equal(t, 2, kubelet.asked())
		pass(5*time.Second - 1)
		require.Equal(t, 2, kubelet.asked())
		pass(1)
		require.Equal(t, 3, kubelet.asked())
		for range 100 { // poked faster than it settles
			o.Poke()
			pass(settle / 5)
		}
		require.GreaterOrEqual(t, kubelet.asked(), 3+15)
		require.LessOrEqual(t, kubelet.asked(), 3+25)
	})
}

// kubelet serves PodResources on a real socket.
type kubelet struct {
	podresources.UnimplementedPodResourcesListerServer
	pods  atomic.Pointer[podresources.ListPodResourcesResponse]
	conns atomic.Int32
}

func (k *kubelet) List(context.Context, *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	return k.pods.Load(), nil
}

// counted counts the connections that are accepted.
type counted struct {
	net.Listener
	n *atomic.Int32
}

func (c counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.n.Add(1)
	}
	return conn, err
}

// serve answers on path until the returned function is called, which removes the socket.
func (k *kubelet) serve(t *testing.T, path string) (stop func()) {
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	s := grpc.NewServer()
	podresources.RegisterPodResourcesListerServer(s, k)
	done := make(chan error, 1)
	go func() { done <- s.Serve(counted{l, &k.conns}) }()
	return func() {
		s.Stop()
		require.NoError(t, <-done)
	}
}

func TestOwnersOutliveAKubeletRestart(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := filepath.Join(t.TempDir(), "k.sock")
	o := NewOwners(Config{PodResourcesSocket: path, PodResourcesInterval: 10 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()

	holder := func() string {
		if owners, up := o.Owners(); up && len(owners["GPU-0"]) == 1 {
			return owners["GPU-0"][0].Pod
		}
		return ""
	}
	eventually := func(want string) {
		t.Helper()
		require.Eventually(t, func() bool { return holder() == want }, 20*time.Second, 5*time.Millisecond, "holder %s", want)
	}
	require.Empty(t, holder(), "the kubelet is not there yet")

	k := &kubelet{}
	k.pods.Store(list(pod("ns", "first", container("main", holds("nvidia.com/gpu", "GPU-0")))))
	stop := k.serve(t, path)
	eventually("first")
	k.pods.Store(list(pod("ns", "second", container("main", holds("nvidia.com/gpu", "GPU-0")))))
	eventually("second")
	require.EqualValues(t, 1, k.conns.Load(), "one connection is kept")

	stop()
	require.Eventually(t, func() bool { owners, up := o.Owners(); return !up && owners == nil }, 20*time.Second, 5*time.Millisecond)
	k.pods.Store(list(pod("ns", "third", container("main", holds("nvidia.com/gpu", "GPU-0")))))
	defer k.serve(t, path)()
	eventually("third")

	cancel()
	require.NoError(t, <-done)
}

func TestAnAnswerBeyondFourMiBIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k.sock")
	k := &kubelet{}
	var pods []*podresources.PodResources
	for i := range 50_000 {
		pods = append(pods, pod("namespace", fmt.Sprintf("a-pod-with-quite-a-long-name-%d", i), container("main", holds("nvidia.com/gpu", fmt.Sprintf("GPU-%d", i)))))
	}
	k.pods.Store(list(pods...))
	defer k.serve(t, path)()
	o := NewOwners(Config{PodResourcesSocket: path, PodResourcesInterval: time.Minute})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	require.Eventually(t, func() bool { owners, _ := o.Owners(); return len(owners) == 50_000 }, 20*time.Second, 10*time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}
