package deviceplugin_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin"
	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin/kubelettest"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// split is two GPUs, the second in MIG mode with one instance of the profile.
func split(profile string) *gpu.Snapshot {
	s := gputest.Node(2)
	d := &s.Devices[1]
	d.MIGEnabled = true
	d.Instances = []gpu.Instance{{UUID: gpu.UUID("MIG-" + profile), Profile: profile, GISlices: 1, CISlices: 1}}
	return s
}

func TestEachResourceIsRegisteredAndLeavesWhenGPUsAreSplitAnew(t *testing.T) {
	t.Parallel()
	n := newNode(t, split("1g.10gb"), resource.Config{MIGStrategy: resource.MIGMixed})
	n.startKubelet()
	n.wait(func(s kubelettest.State) bool { return s.Streams == 2 && s.Healthy() == 2 })
	require.NotEmpty(t, n.kubelet.Serving("nvidia.com/gpu"))
	answer, err := n.kubelet.Allocate(t.Context(), "nvidia.com/mig-1g.10gb", "MIG-1g.10gb")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"NVIDIA_VISIBLE_DEVICES": "MIG-1g.10gb"}, answer.GetEnvs())

	n.snapshots.Set(split("2g.20gb"))
	n.wait(func(s kubelettest.State) bool { return s.Streams == 3 && s.Devices["MIG-2g.20gb"] != nil })
	s := n.wait(func(s kubelettest.State) bool { return s.Streams == 2 })
	require.Nil(t, s.Devices["MIG-1g.10gb"], "the kubelet was told that none is left before the registration ended")
	require.Len(t, s.Registrations, 3, "the others stay as they are")
	require.Equal(t, 2, s.Healthy())
	require.Eventually(t, func() bool { return n.plugin.Status().Registered }, deadline, time.Millisecond)
	require.True(t, slices.ContainsFunc(n.plugin.Status().Endpoints, func(e deviceplugin.Endpoint) bool { return e.Resource == "nvidia.com/mig-2g.20gb" }))

	n.snapshots.Set(split("1g.10gb"))
	n.wait(func(s kubelettest.State) bool {
		return len(s.Registrations) == 4 && s.Devices["MIG-1g.10gb"] != nil && s.Healthy() == 2
	})
}

func TestWhyNothingIsOffered(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(1), resource.Config{Include: []string{"7"}})
	n.startKubelet()
	n.waitingFor("none of this node's GPUs is offered: include[0]: there is no GPU 7 on this node")
}

func TestGoingFromWholeGPUsToShares(t *testing.T) {
	t.Parallel()
	n := newNode(t, gputest.Node(8), resource.Config{})
	n.startKubelet()
	n.registered(1, 8)
	n.policies.Set(policy(t, resource.Config{TimeSlicing: &resource.Sharing{Resources: []resource.Shared{{Name: "nvidia.com/gpu", Replicas: 4}}}}))
	n.registered(1, 32)
	n.snapshots.Set(gputest.Sick(gputest.Node(8), 2, gpu.Lost))
	s := n.registered(1, 28)
	picked, err := n.kubelet.Prefer(t.Context(), "nvidia.com/gpu", slices.Collect(maps.Keys(s.Devices)), nil, 28)
	require.NoError(t, err)
	require.NotContains(t, picked, string(gputest.UUID(2))+"::0")
	n.policies.Set(policy(t, resource.Config{}))
	n.registered(1, 7)
}
