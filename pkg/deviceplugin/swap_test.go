package deviceplugin_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin"
	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin/kubelettest"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// serves waits until the kubelet asks p for the node's GPUs and has all eight from it.
func (n *node) serves(p *deviceplugin.Plugin) {
	n.t.Helper()
	require.Eventually(n.t, func() bool {
		e := p.Status().Endpoints
		return len(e) == 1 && n.kubelet.Serving("nvidia.com/gpu") == filepath.Base(e[0].Socket) && n.kubelet.State().Healthy() == 8
	}, deadline, time.Millisecond)
}

func TestAnUpgradeLeavesNoMomentWithoutDevices(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	for i := range 5 {
		newer, stopNew := n.upgrade()
		n.wait(func(s kubelettest.State) bool { return len(s.Registrations) == i+2 && s.Streams == 2 })
		n.stop()
		s := n.wait(func(s kubelettest.State) bool { return s.Streams == 1 })
		require.Equal(t, 8, s.Healthy())
		n.plugin, n.stop = newer, stopNew
	}
	require.Zero(t, n.kubelet.State().Gaps)
}

// A kubelet of 1.36 or older asks only the endpoint registered last: it must be the newer instance's.
func TestOfTwoInstancesTheNewerWinsWhenTheKubeletRestarts(t *testing.T) {
	t.Parallel()
	for range 5 {
		n := newNode(t, gputest.Node(8), resource.Config{})
		n.kubelet.OneEndpoint = true
		n.startKubelet()
		n.registered(1, 8)
		newer, _ := n.upgrade()
		n.wait(func(s kubelettest.State) bool { return s.Streams == 2 && s.Updates == 2 })
		for range 3 {
			n.restartKubelet()
			n.serves(newer)
		}
		before := len(n.kubelet.State().Registrations)
		require.LessOrEqual(t, before, 2+3*4, "they fight")
		n.stop()
		n.serves(newer)
		require.LessOrEqual(t, len(n.kubelet.State().Registrations), before+2)
	}
}

func TestTheOlderComesBackWhenTheNewerIsGone(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	_, stopNew := n.upgrade()
	n.wait(func(s kubelettest.State) bool { return s.Streams == 2 })
	n.kubelet.DropStreams()
	n.waitingFor("a newer instance has taken over")
	n.wait(func(s kubelettest.State) bool { return s.Streams == 1 && s.Healthy() == 8 })
	stopNew()
	n.wait(func(s kubelettest.State) bool { return s.Streams == 1 && s.Healthy() == 8 })
	require.Eventually(t, func() bool { return n.plugin.Status().Registered }, deadline, time.Millisecond)
}

// The older one had asked already when the newer appeared, and the kubelet answered it last.
func TestTheNewerRegistersAgainAfterAnOlderThatCameLater(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.serves(n.plugin)
	own := n.plugin.Status().Endpoints[0].Socket
	words := strings.Split(filepath.Base(own), "-")
	words[len(words)-2] = strings.Repeat("0", len(words[len(words)-2])) // born in 1970
	theirs := filepath.Join(filepath.Dir(own), strings.Join(words, "-"))
	older, err := net.Listen("unix", theirs)
	require.NoError(t, err)
	t.Cleanup(func() { _ = older.Close() })
	require.NoError(t, os.Chtimes(theirs, time.Now(), time.Now())) // as an instance does that has registered
	n.wait(func(s kubelettest.State) bool { return len(s.Registrations) == 2 })
	n.serves(n.plugin)
	require.NotEqual(t, own, n.plugin.Status().Endpoints[0].Socket)
}

func TestANewPolicyIsInForceAtOnceAndWhatItDoesNotOfferGoes(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	n.policies.Set(policy(t, resource.Config{Resource: "example.com/h100"}))
	s := n.wait(func(s kubelettest.State) bool { return len(s.Registrations) == 2 && s.Streams == 1 && s.Healthy() == 8 })
	require.Equal(t, s.Registrations[1:], n.sockets())
	require.Eventually(t, func() bool { return n.plugin.Status().Registered }, deadline, time.Millisecond)
	require.Equal(t, "example.com/h100", n.plugin.Status().Endpoints[0].Resource)

	// The same resource needs no new registration: the list says what has changed.
	n.policies.Set(policy(t, resource.Config{Resource: "example.com/h100", IDStrategy: resource.ByIndex}))
	n.restartKubelet()
	n.registered(3, 8)
}

func TestAnEditIsNotLostWhenASnapshotComesWithIt(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	n.snapshots.Set(gputest.Node(8))
	n.policies.Set(policy(t, resource.Config{Exclude: []string{"*"}}))
	require.Eventually(t, func() bool { return len(n.plugin.Status().Endpoints) == 0 }, deadline, time.Millisecond)
}

func TestNothingIsOfferedWhileSomebodyElseDoes(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	n.elsewhere.Set("DRA driver gpu.nvidia.com offers this node's GPUs")
	n.waitingFor("DRA driver gpu.nvidia.com offers this node's GPUs")
	n.wait(func(s kubelettest.State) bool { return s.Streams == 0 && s.Healthy() == 0 })
	require.Empty(t, n.sockets())
	n.restartKubelet()
	n.snapshots.Set(gputest.Node(8))
	require.Len(t, n.kubelet.State().Registrations, 1)
	n.elsewhere.Set("")
	n.registered(2, 8)
}

func TestAnAgentThatStartsDuringAReleaseAnswersTheKubelet(t *testing.T) {
	t.Parallel()
	released := gputest.Sick(gputest.Sick(gputest.Node(2), 0, gpu.Released), 1, gpu.Released)
	released.Driver = gpu.Driver{Error: "released by an operator"}
	n := newNode(t, released, resource.Config{})
	n.startKubelet()
	s := n.wait(func(s kubelettest.State) bool { return len(s.Devices) == 2 && s.Streams == 1 })
	require.Len(t, s.Registrations, 1)
	require.Zero(t, s.Healthy())
	n.snapshots.Set(gputest.Node(2))
	n.registered(1, 2)
}
