package resource_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

func TestEdits(t *testing.T) {
	t.Parallel()
	u := func(i int) string { return string(gputest.UUID(i)) }
	present := func(path string) bool { return path != "/host/dev/nvidia-modeset" && path != "/dev/nvidia-modeset" }
	node := func(host, name string) resource.DeviceNode {
		return resource.DeviceNode{HostPath: host + name, ContainerPath: "/dev/" + name, Permissions: "rw"}
	}
	null := func(name string) resource.Mount {
		return resource.Mount{HostPath: "/dev/null", ContainerPath: "/var/run/nvidia-container-devices/" + name}
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
			cfg:  resource.Config{TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 3, Devices: []string{"1"}})},
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
		"volume-mounts, which decide over the variable": {
			cfg: resource.Config{Strategies: []string{resource.EnvVar, resource.VolumeMounts}},
			ids: ids(1, 0),
			want: resource.Edits{
				Env:    map[string]string{"NVIDIA_VISIBLE_DEVICES": "/var/run/nvidia-container-devices"},
				Mounts: []resource.Mount{null(u(0)), null(u(1))},
			},
		},
		"cdi-annotations": {
			cfg:  resource.Config{Strategies: []string{resource.CDIAnnotations}, IDStrategy: resource.ByIndex},
			ids:  ids(0, 2),
			want: resource.Edits{Annotations: map[string]string{"cdi.k8s.io/nvidia-device-plugin_6e5eed1f-4e63-bf09-7035-672e0f05fead": "nvidia.com/gpu=0,nvidia.com/gpu=2"}},
		},
		"cdi-annotations by another prefix, and no device nodes with CDI alone": {
			cfg: resource.Config{
				Strategies: []string{resource.CDIAnnotations, resource.CDICRI}, IDStrategy: resource.ByIndex, CDIAnnotationPrefix: "cdi.example.com/",
				PassDeviceSpecs: true, Exists: present,
			},
			ids: ids(0, 2),
			want: resource.Edits{
				Annotations: map[string]string{"cdi.example.com/nvidia-device-plugin_6e5eed1f-4e63-bf09-7035-672e0f05fead": "nvidia.com/gpu=0,nvidia.com/gpu=2"},
				CDIDevices:  []string{"nvidia.com/gpu=0", "nvidia.com/gpu=2"},
			},
		},
		"IMEX, GDRCopy, GDS and MOFED in every strategy": {
			cfg: resource.Config{
				Strategies: []string{resource.EnvVar, resource.VolumeMounts, resource.CDICRI}, IDStrategy: resource.ByIndex, CDIKind: resource.OwnCDIKind,
				PassDeviceSpecs: true, IMEXChannels: []int{0}, IMEXRequired: true, GDRCopy: true, GDS: true, MOFED: true,
				Exists: func(p string) bool { return p == "/dev/nvidiactl" || p == "/dev/nvidia-caps-imex-channels/channel0" },
			},
			ids: ids(1),
			want: resource.Edits{
				Env: map[string]string{
					"NVIDIA_VISIBLE_DEVICES": "/var/run/nvidia-container-devices", "NVIDIA_IMEX_CHANNELS": "0",
					"NVIDIA_GDRCOPY": "enabled", "NVIDIA_GDS": "enabled", "NVIDIA_MOFED": "enabled",
				},
				Mounts: []resource.Mount{null("1"), null("imex/0")},
				CDIDevices: []string{
					"k8s.device-plugin.nvidia.com/gpu=1", "k8s.device-plugin.nvidia.com/imex-channel=0", "k8s.device-plugin.nvidia.com/gdrcopy=all",
					"k8s.device-plugin.nvidia.com/gds=all", "k8s.device-plugin.nvidia.com/mofed=all",
				},
				DeviceNodes: []resource.DeviceNode{node("/dev/", "nvidiactl"), node("/dev/", "nvidia11"), node("/dev/", "nvidia-caps-imex-channels/channel0")},
			},
		},
		"an IMEX channel that is not there and not required": {
			cfg:  resource.Config{IMEXChannels: []int{0}, Exists: func(string) bool { return false }},
			ids:  ids(1),
			want: resource.Edits{Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": u(1)}},
		},
		"the models, beside what every strategy gives": {
			cfg: resource.Config{
				Strategies: []string{resource.EnvVar, resource.VolumeMounts, resource.CDICRI}, IDStrategy: resource.ByIndex,
				Models: "/var/lib/gpu-agent/models",
			},
			ids: ids(1, 2),
			want: resource.Edits{
				Env:        map[string]string{"NVIDIA_VISIBLE_DEVICES": "/var/run/nvidia-container-devices", "MODEL_CACHE_DIR": "/models"},
				Mounts:     []resource.Mount{null("1"), null("2"), {HostPath: "/var/lib/gpu-agent/models", ContainerPath: "/models", ReadOnly: true}},
				CDIDevices: []string{"nvidia.com/gpu=1", "nvidia.com/gpu=2"},
			},
		},
		"the models elsewhere, with CDI alone": {
			cfg: resource.Config{Strategies: []string{resource.CDICRI}, Models: "/mnt/ssd/models", ModelsPath: "/mnt/models"},
			ids: ids(1),
			want: resource.Edits{
				Env:        map[string]string{"MODEL_CACHE_DIR": "/mnt/models"},
				Mounts:     []resource.Mount{{HostPath: "/mnt/ssd/models", ContainerPath: "/mnt/models", ReadOnly: true}},
				CDIDevices: []string{"nvidia.com/gpu=" + u(1)},
			},
		},
		"MPS": {
			cfg: resource.Config{MPS: &resource.Sharing{RenameByDefault: true, Resources: []resource.Shared{{Name: "nvidia.com/gpu", Replicas: 2}}}},
			ids: []resource.ID{share(1, 1)},
			want: resource.Edits{
				Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": u(1), "CUDA_MPS_PIPE_DIRECTORY": "/mps/nvidia.com/gpu.shared/pipe"},
				Mounts: []resource.Mount{
					{HostPath: "/run/nvidia/mps/nvidia.com/gpu.shared/pipe", ContainerPath: "/mps/nvidia.com/gpu.shared/pipe"},
					{HostPath: "/run/nvidia/mps/shm", ContainerPath: "/dev/shm"},
				},
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

func TestEditsOfInstances(t *testing.T) {
	t.Parallel()
	s := splitNode("1g.10gb", "1g.10gb")
	for i := range s.Devices {
		s.Devices[i].Minor = 4 + i
	}
	request := []resource.ID{mig(1, 1), mig(0, 1), mig(0, 0)}
	got, err := policy(t, resource.Config{
		MIGStrategy: "mixed", Strategies: []string{"envvar", "cdi-cri"}, IDStrategy: "index", PassDeviceSpecs: true,
		Exists: func(string) bool { return false },
	}).Edits(s, request)
	require.NoError(t, err)
	require.Equal(t, "0:0,0:1,1:1", got.Env["NVIDIA_VISIBLE_DEVICES"])
	require.Equal(t, []string{"nvidia.com/gpu=0:0", "nvidia.com/gpu=0:1", "nvidia.com/gpu=1:1"}, got.CDIDevices)
	var nodes []string
	for _, n := range got.DeviceNodes {
		require.Equal(t, n.HostPath, n.ContainerPath)
		nodes = append(nodes, n.HostPath)
	}
	require.Equal(t, []string{
		"/dev/nvidia4", "/dev/nvidia-caps/nvidia-cap0", "/dev/nvidia-caps/nvidia-cap1", "/dev/nvidia-caps/nvidia-cap10", "/dev/nvidia-caps/nvidia-cap11",
		"/dev/nvidia5", "/dev/nvidia-caps/nvidia-cap110", "/dev/nvidia-caps/nvidia-cap111",
	}, nodes)

	got, err = policy(t, resource.Config{MIGStrategy: "single"}).Edits(s, request)
	require.NoError(t, err)
	require.Equal(t, string(mig(0, 0)+","+mig(0, 1)+","+mig(1, 1)), got.Env["NVIDIA_VISIBLE_DEVICES"])

	s.Devices[0].Instances[0].CIMinor = -1
	_, err = policy(t, resource.Config{MIGStrategy: "mixed", PassDeviceSpecs: true, Exists: func(string) bool { return false }}).Edits(s, request)
	require.ErrorContains(t, err, "the minor number of its capability is unknown")
}

func TestOneShareIsAllThatAContainerGetsWhereThatIsAsked(t *testing.T) {
	t.Parallel()
	s := gputest.Node(2)
	rule := resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Devices: []string{"0"}}
	p := policy(t, resource.Config{TimeSlicing: &resource.Sharing{FailRequestsGreaterThanOne: true, Resources: []resource.Shared{rule}}})
	_, err := p.Edits(s, []resource.ID{share(0, 0), share(0, 1)})
	require.EqualError(t, err, `invalid allocation request for "nvidia.com/gpu": invalid request: maximum request size for shared resources is 1; found 2`)
	_, err = p.Edits(s, []resource.ID{share(0, 0)})
	require.NoError(t, err)
	_, err = policy(t, resource.Config{TimeSlicing: sliced(rule)}).Edits(s, []resource.ID{share(0, 0), share(0, 1)})
	require.NoError(t, err)
	_, err = p.Edits(s, ids(0))
	require.ErrorContains(t, err, "is not offered", "it is offered in shares only")
	_, err = p.Edits(s, []resource.ID{share(0, 2)})
	require.ErrorContains(t, err, "is not offered")
}

func TestAShareAmongWholeGPUsBringsItsMPSDaemon(t *testing.T) {
	t.Parallel()
	p := policy(t, resource.Config{MPS: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Devices: []string{"1"}})})
	e, err := p.Edits(gputest.Node(2), []resource.ID{ids(0)[0], share(1, 0)})
	require.NoError(t, err)
	require.Equal(t, "/mps/nvidia.com/gpu/pipe", e.Env["CUDA_MPS_PIPE_DIRECTORY"])
}

func TestNoGPUIsGivenOutWithoutARequiredIMEXChannel(t *testing.T) {
	t.Parallel()
	there := false
	p := policy(t, resource.Config{IMEXChannels: []int{0}, IMEXRequired: true, Exists: func(string) bool { return there }})
	s := gputest.Node(1)
	const why = "IMEX channel 0 is required, but there is no /dev/nvidia-caps-imex-channels/channel0"
	require.Equal(t, why, p.Offers(s)[0].Units[0].Reason)
	require.Equal(t, map[gpu.UUID]string{gputest.UUID(0): why}, p.Missing(s))
	require.Empty(t, p.Missing(&gpu.Snapshot{Devices: s.Devices}), "without a driver there is a better reason")
	_, err := p.Edits(s, ids(0))
	require.ErrorContains(t, err, why)
	there = true
	require.Empty(t, p.Missing(s))
	require.True(t, p.Offers(s)[0].Units[0].Healthy)

	optional := policy(t, resource.Config{IMEXChannels: []int{0}, Exists: func(string) bool { return false }})
	require.True(t, optional.Offers(s)[0].Units[0].Healthy)
	require.Equal(t, []string{"imex.channelIDs: there is no /dev/nvidia-caps-imex-channels/channel0: pods start without IMEX channel 0"}, optional.Problems(s))
}
