package deviceplugin_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// listen opens the kubelet's socket for somebody who is no kubelet.
func (n *node) listen() net.Listener {
	n.t.Helper()
	l, err := net.Listen("unix", filepath.Join(n.dir, "kubelet.sock"))
	require.NoError(n.t, err)
	return l
}

func TestAKubeletThatTalksNonsenseIsAskedSlowlyAndOutlived(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"nothing":      "",
		"another page": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"noise":        strings.Repeat("\x00\xff\x7f", 4096),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, nil, resource.Config{})
			l := n.listen()
			var asked atomic.Int32
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					asked.Add(1)
					_, _ = conn.Write([]byte(answer))
					_ = conn.Close()
				}
			}()
			began := time.Now()
			n.snapshots.Set(gputest.Node(8))
			n.waitingFor("register nvidia.com/gpu")
			require.Eventually(t, func() bool { return asked.Load() >= 3 }, deadline, time.Millisecond)
			require.Less(t, int(asked.Load()), 10+10*int(time.Since(began)/time.Second+1), "a busy loop")
			require.NoError(t, l.Close())
			<-ended
			n.startKubelet()
			n.registered(1, 8)
		})
	}
}

// yesman accepts every registration and does nothing about it, or refuses each.
type yesman struct {
	api.UnimplementedRegistrationServer
	refuse error
	asked  atomic.Int32
}

func (y *yesman) Register(context.Context, *api.RegisterRequest) (*api.Empty, error) {
	y.asked.Add(1)
	return &api.Empty{}, y.refuse
}

func TestAKubeletThatAcceptsAndDoesNothingOrRefuses(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]error{"accepts": nil, "refuses": errors.New("resource name is \x00 not valid")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, nil, resource.Config{})
			y := &yesman{refuse: refuse}
			server := grpc.NewServer()
			api.RegisterRegistrationServer(server, y)
			l := n.listen()
			ended := make(chan error, 1)
			go func() { ended <- server.Serve(l) }()
			n.snapshots.Set(gputest.Node(8))
			require.Eventually(t, func() bool { return y.asked.Load() > 0 }, deadline, time.Millisecond)
			if refuse != nil {
				n.waitingFor("is \x00 not valid")
				require.Empty(t, n.sockets(), "a socket for nobody")
			}
			server.Stop()
			require.NoError(t, <-ended)
			n.startKubelet()
			n.registered(1, 8)
		})
	}
}

// An error here would have the kubelet reject the pod, and its controller make another, thousands of times.
func TestNoRequestForAPreferenceIsAnError(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	snapshots := []*gpu.Snapshot{
		nil, {}, gputest.Node(8), gputest.Node(0), gputest.Sick(gputest.Node(8), 1, gpu.Lost),
		{Devices: gputest.Node(8).Devices}, {Driver: gpu.Driver{Loaded: true}, Devices: make([]gpu.Device, 3)},
	}
	words := []string{"", "::", "::1", "GPU-gone", "GPU-gone::9", "\x00", strings.Repeat("x", 1000)}
	for i := range 8 {
		words = append(words, string(gputest.UUID(i)), string(gputest.UUID(i))+"::"+string(rune('0'+i)))
	}
	random := rand.New(rand.NewPCG(1, 2))
	pick := func() []string {
		list := make([]string, random.IntN(20))
		for i := range list {
			list[i] = words[random.IntN(len(words))]
		}
		return list
	}
	for i := range 500 {
		n.snapshots.Set(snapshots[i%len(snapshots)])
		_, err := n.kubelet.Prefer(t.Context(), "nvidia.com/gpu", pick(), pick(), random.IntN(40)-10)
		require.NoError(t, err)
	}
}
