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
	for name, c := range map[string]struct {
		cfg  resource.Config
		want string
	}{
		"strategy to come":   {resource.Config{Strategies: []string{"envvar", "volume-mounts"}}, `"volume-mounts" is not there yet`},
		"strategy to come 2": {resource.Config{Strategies: []string{"cdi-annotations"}}, `"cdi-annotations" is not there yet`},
		"unknown strategy":   {resource.Config{Strategies: []string{"env"}}, `"env" is unknown: use "envvar"`},
		"id strategy":        {resource.Config{IDStrategy: "serial"}, `"serial" is unknown: use "uuid"`},
		"no domain":          {resource.Config{Resource: "gpu"}, "want <domain>/<name>"},
		"long name":          {resource.Config{Resource: "nvidia.com/" + strings.Repeat("g", 64)}, "at most 63"},
		"relative devices":   {resource.Config{DevRoot: "dev"}, "absolute"},
		"CDI kind":           {resource.Config{CDIKind: "gpu"}, "want <vendor>/<class>"},
		"blind device list":  {resource.Config{PassDeviceSpecs: true}, "which of them exist"},
	} {
		_, err := resource.NewPolicy(c.cfg)
		require.ErrorContains(t, err, c.want, name)
	}
	p := policy(t, resource.Config{Resource: "nvidia.com/" + strings.Repeat("g", 63)})
	require.Len(t, p.Resource(), 74)
	require.Equal(t, "nvidia.com/gpu", policy(t, resource.Config{}).Resource())
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

func TestEdits(t *testing.T) {
	t.Parallel()
	u := func(i int) string { return string(gputest.UUID(i)) }
	present := func(path string) bool { return path != "/host/dev/nvidia-modeset" && path != "/dev/nvidia-modeset" }
	node := func(host, name string) resource.DeviceNode {
		return resource.DeviceNode{HostPath: host + name, ContainerPath: "/dev/" + name, Permissions: "rw"}
	}
	for name, c := range map[string]struct {
		cfg  resource.Config
		ids  []resource.ID
		want resource.Edits
	}{
		"envvar, in the order of indexes": {
			ids:  ids(3, 1),
			want: resource.Edits{Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": u(1) + "," + u(3)}},
		},
		"shares of one GPU name it once": {
			ids:  []resource.ID{ids(1)[0] + "::2", ids(1)[0] + "::0", ids(0)[0]},
			want: resource.Edits{Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": u(0) + "," + u(1)}},
		},
		"envvar by index": {
			cfg:  resource.Config{IDStrategy: resource.ByIndex},
			ids:  ids(2, 0),
			want: resource.Edits{Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": "0,2"}},
		},
		"cdi-cri alone sets no environment": {
			cfg:  resource.Config{Strategies: []string{resource.CDICRI}},
			ids:  ids(1, 0),
			want: resource.Edits{CDIDevices: []string{"nvidia.com/gpu=" + u(0), "nvidia.com/gpu=" + u(1)}},
		},
		"both, another kind": {
			cfg: resource.Config{Strategies: []string{resource.CDICRI, resource.EnvVar}, CDIKind: "k8s.device-plugin.nvidia.com/gpu", IDStrategy: resource.ByIndex},
			ids: ids(1),
			want: resource.Edits{
				Env:        map[string]string{"NVIDIA_VISIBLE_DEVICES": "1"},
				CDIDevices: []string{"k8s.device-plugin.nvidia.com/gpu=1"},
			},
		},
		"device nodes that exist": {
			cfg: resource.Config{PassDeviceSpecs: true, Exists: present},
			ids: ids(2),
			want: resource.Edits{
				Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": u(2)},
				DeviceNodes: []resource.DeviceNode{
					node("/dev/", "nvidiactl"), node("/dev/", "nvidia-uvm"), node("/dev/", "nvidia-uvm-tools"), node("/dev/", "nvidia12"),
				},
			},
		},
		"device nodes of another root": {
			cfg: resource.Config{PassDeviceSpecs: true, DevRoot: "/host/dev", Exists: func(p string) bool { return p == "/host/dev/nvidiactl" }},
			ids: ids(0),
			want: resource.Edits{
				Env:         map[string]string{"NVIDIA_VISIBLE_DEVICES": u(0)},
				DeviceNodes: []resource.DeviceNode{node("/host/dev/", "nvidiactl"), node("/host/dev/", "nvidia10")},
			},
		},
	} {
		s := gputest.Node(4)
		for i := range s.Devices {
			s.Devices[i].Minor = 10 + i // not the index: it is not on real nodes either
		}
		got, err := policy(t, c.cfg).Edits(s, c.ids)
		require.NoError(t, err, name)
		require.Equal(t, c.want, got, name)
	}
}

func TestEditsOfWhatMustNotBeUsedAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	p := policy(t, resource.Config{PassDeviceSpecs: true, Exists: func(string) bool { return true }})
	s := gputest.Sick(gputest.Node(4), 1, gpu.XID)
	s.Devices[2].MIGEnabled = true
	s.Devices[3].Minor = -1
	for id, want := range map[resource.ID]string{
		ids(1)[0]: "is unhealthy: GPU is XID",
		ids(2)[0]: "is not offered",
		ids(3)[0]: "minor number is unknown",
		ids(9)[0]: "is not offered on this node",
		"":        "is not offered",
	} {
		_, err := p.Edits(s, []resource.ID{ids(0)[0], id})
		require.ErrorContains(t, err, want)
	}
	_, err := p.Edits(nil, ids(0))
	require.ErrorContains(t, err, "is not offered")
}
