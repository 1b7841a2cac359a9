package resource_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

func policy(t testing.TB, cfg resource.Config) resource.Policy {
	t.Helper()
	p, err := resource.NewPolicy(cfg)
	require.NoError(t, err)
	return p
}

func ids(of ...int) []resource.ID {
	var list []resource.ID
	for _, i := range of {
		list = append(list, resource.ID(gputest.UUID(i)))
	}
	return list
}

func TestParseIDKnowsGPUsInstancesAndTheirShares(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]gpu.UUID{
		"GPU-8c1f":     "GPU-8c1f",
		"GPU-8c1f::0":  "GPU-8c1f",
		"GPU-8c1f::12": "GPU-8c1f",
		"MIG-8c1f":     "MIG-8c1f",
		"MIG-8c1f::1":  "MIG-8c1f",
	} {
		id, err := resource.ParseID(in)
		require.NoError(t, err, in)
		require.Equal(t, resource.ID(in), id)
		require.Equal(t, want, id.Device(), in)
		require.Equal(t, strings.Contains(in, "::"), id.Shared(), in)
	}
	for _, in := range []string{
		"", "GPU-", "MIG-", "8c1f", "nvidia0", "nvidia0/gi1", "MIG-GPU-8c1f/1/0", "GPU-8c1f/1",
		"GPU-8c1f::", "GPU-8c1f::x", "GPU-8c1f::-1", "GPU-8c1f:1", "GPU-a,GPU-b", "GPU-a GPU-b",
	} {
		_, err := resource.ParseID(in)
		require.ErrorContains(t, err, "want", in)
	}
}

func TestPolicyRefusesWhatItWouldNotDo(t *testing.T) {
	t.Parallel()
	gpus := func(rules ...resource.Shared) resource.Config { return resource.Config{TimeSlicing: sliced(rules...)} }
	mps := sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2})
	for want, cfg := range map[string]resource.Config{
		`strategies[1]: "env" is unknown: use envvar, volume-mounts, cdi-annotations, cdi-cri`:                             {Strategies: []string{"envvar", "env"}},
		`idStrategy: "serial" is unknown: use uuid, index`:                                                                 {IDStrategy: "serial"},
		`migStrategy: "both" is unknown: use none, single, mixed`:                                                          {MIGStrategy: "both"},
		`sharing.allocation: "tight" is unknown: use distributed, packed`:                                                  {Allocation: "tight"},
		`resource: resource name "gpu": want <domain>/<name> with a name of at most 63 characters, such as nvidia.com/gpu`: {Resource: "gpu"},
		"resource: resource name \"nvidia.com/" + strings.Repeat("g", 64):                                                  {Resource: "nvidia.com/" + strings.Repeat("g", 64)},
		"resource: resource name \"" + strings.Repeat("d", 254):                                                            {Resource: strings.Repeat("d", 254) + "/gpu"},
		`devRoot: "dev": want an absolute path`:                                                                            {DevRoot: "dev"},
		`cdiKind: "gpu": want <vendor>/<class>`:                                                                            {CDIKind: "gpu"},
		`cdiAnnotationPrefix: "cdi.k8s.io": want <domain>/`:                                                                {CDIAnnotationPrefix: "cdi.k8s.io"},
		"passDeviceSpecs: device nodes are to be passed":                                                                   {PassDeviceSpecs: true},
		`resources.gpus[1].pattern: two names for what matches "*H100*": nvidia.com/b, and by resources.gpus[0] nvidia.com/a`: {
			GPUNames: []resource.Name{{"*H100*", "nvidia.com/a"}, {"*H100*", "nvidia.com/b"}},
		},
		"resources.mig[0].pattern: want a pattern":                                                {MIGNames: []resource.Name{{"", "nvidia.com/a"}}},
		`include[0]: "MIG-1" names no GPU`:                                                        {Include: []string{"MIG-1"}},
		`exclude[0]: "" names no GPU`:                                                             {Exclude: []string{""}},
		"imex.channelIDs: want [] or [0], got [1]":                                                {IMEXChannels: []int{1}, Exists: func(string) bool { return true }},
		"imex.required: required, but no channel":                                                 {IMEXRequired: true},
		"sharing: timeSlicing and mps are both":                                                   {TimeSlicing: mps, MPS: mps},
		"sharing.timeSlicing.resources: want at least one resource to share":                      gpus(),
		"sharing.timeSlicing.resources[0].replicas: want 2 or more, got 1":                        gpus(resource.Shared{Name: "nvidia.com/gpu", Replicas: 1}),
		"sharing.timeSlicing.resources[0].replicas: want at most 1000, got 1001":                  gpus(resource.Shared{Name: "nvidia.com/gpu", Replicas: 1001}),
		"sharing.timeSlicing.resources[0].replicas: want 2 or more, got 0":                        gpus(resource.Shared{Name: "nvidia.com/gpu"}),
		`sharing.timeSlicing.resources[0].name: resource name "": want`:                           gpus(resource.Shared{Replicas: 2}),
		`sharing.timeSlicing.resources[0].rename: resource name "x": want`:                        gpus(resource.Shared{Name: "nvidia.com/gpu", Rename: "x", Replicas: 2}),
		`sharing.timeSlicing.resources[0].devices[1]: "first": want an index`:                     gpus(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Devices: []string{"0:1", "first"}}),
		"sharing.timeSlicing.resources[1].devices: two rules for all GPUs of nvidia.com/gpu":      gpus(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2}, resource.Shared{Name: "nvidia.com/gpu", Replicas: 3, Count: 1}),
		"sharing.timeSlicing.resources[1].devices: two rules for the first GPU of nvidia.com/gpu": gpus(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Count: 1}, resource.Shared{Name: "nvidia.com/gpu", Replicas: 3, Count: 2}),
		"sharing.timeSlicing.resources[1].devices: two rules for GPU 3 of nvidia.com/gpu: it is shared by sharing.timeSlicing.resources[0] already": gpus(
			resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Devices: []string{"0", "3"}}, resource.Shared{Name: "nvidia.com/gpu", Rename: "nvidia.com/a", Replicas: 3, Devices: []string{"3"}}),
		"sharing.mps: MPS cannot share MIG instances":                                     {MIGStrategy: "mixed", MPS: mps},
		"sharing.mps.resources[0].replicas: an MPS server has at most 48 clients, got 49": {MPS: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 49})},
		`mpsRoot: "mps": want an absolute path`:                                           {MPSRoot: "mps", MPS: mps},
	} {
		_, err := resource.NewPolicy(cfg)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "\n", "one line each")
	}
	_, err := resource.NewPolicy(resource.Config{Resource: "gpu", IDStrategy: "serial"})
	var faults resource.Faults
	require.ErrorAs(t, err, &faults)
	require.Len(t, faults, 2)
	p := policy(t, resource.Config{Resource: strings.Repeat("d", 253) + "/" + strings.Repeat("g", 63)})
	require.Len(t, p.Resource(), 253+1+63)
	require.Equal(t, "nvidia.com/gpu", policy(t, resource.Config{}).Resource())
	require.Equal(t, "none", policy(t, resource.Config{}).MIGStrategy())
	require.Equal(t, resource.HostCDIKind, policy(t, resource.Config{}).Config().CDIKind)
}

func TestOffersAreAllWholeGPUsWithTheirHealth(t *testing.T) {
	t.Parallel()
	p := policy(t, resource.Config{})
	s := gputest.Sick(gputest.Node(4), 1, gpu.Lost)
	s.Devices[2].MIGEnabled = true
	s.Devices[3].NUMANode = -1
	require.Equal(t, []resource.Offer{{Resource: "nvidia.com/gpu", Units: []resource.Unit{
		{ID: ids(0)[0], Device: gputest.UUID(0), Healthy: true, NUMANode: 0},
		{ID: ids(1)[0], Device: gputest.UUID(1), Reason: "GPU is Lost", NUMANode: 0},
		{ID: ids(3)[0], Device: gputest.UUID(3), Healthy: true, NUMANode: -1},
	}}}, p.Offers(s))

	require.Empty(t, p.Offers(nil))
	require.Empty(t, p.Offers(&gpu.Snapshot{Driver: gpu.Driver{Loaded: true}}))
	s = gputest.Node(1)
	s.Devices[0].UUID = ""
	require.Empty(t, p.Offers(s), "a GPU without an identity")
}

func TestNoGPUIsHealthyWithoutADriver(t *testing.T) {
	t.Parallel()
	p := policy(t, resource.Config{})
	s := gputest.Node(1)
	s.Driver = gpu.Driver{Error: "libnvidia-ml.so.1 not found"}
	units := p.Offers(s)[0].Units
	require.False(t, units[0].Healthy)
	require.Equal(t, "driver not loaded: libnvidia-ml.so.1 not found", units[0].Reason)
	_, err := p.Edits(s, ids(0))
	require.ErrorContains(t, err, "libnvidia-ml.so.1 not found")
}

func TestWhichResourcesAreOurs(t *testing.T) {
	t.Parallel()
	p := policy(t, resource.Config{
		Resource: "acme.com/gpu", GPUNames: []resource.Name{{"*T4*", "small.io/t4"}},
		TimeSlicing: sliced(resource.Shared{Name: "acme.com/gpu", Rename: "slow.dev/gpu", Replicas: 2}),
	})
	for name, want := range map[string]bool{
		"nvidia.com/gpu.shared": true, "acme.com/other": true, "small.io/t4": true, "slow.dev/gpu": true,
		"amd.com/gpu": false, "acme.co/gpu": false, "": false,
	} {
		require.Equal(t, want, p.Ours(name), name)
	}
}
