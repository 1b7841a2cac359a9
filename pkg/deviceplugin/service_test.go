package deviceplugin

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// recorded is a stream whose other side keeps what it gets: unhealthy devices in each list.
type recorded struct {
	grpc.ServerStream
	ctx       context.Context
	unhealthy []int
	devices   []int
}

func (r *recorded) Context() context.Context { return r.ctx }

func (r *recorded) Send(list *api.ListAndWatchResponse) error {
	n := 0
	for _, d := range list.GetDevices() {
		if d.GetHealth() == api.Unhealthy {
			n++
		}
	}
	r.unhealthy = append(r.unhealthy, n)
	r.devices = append(r.devices, len(list.GetDevices()))
	return nil
}

func TestAListIsSentWhenTheKubeletWouldSeeADifference(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		policy, err := resource.NewPolicy(resource.Config{})
		require.NoError(t, err)
		var policies watch.Value[resource.Policy]
		policies.Set(policy)
		var snapshots watch.Value[*gpu.Snapshot]
		snapshots.Set(gputest.Node(8))
		s := &service{plugin: New(Config{}, &policies, &snapshots), resource: "nvidia.com/gpu"}
		ctx, cancel := context.WithCancel(t.Context())
		stream := &recorded{ctx: ctx}
		done := make(chan error, 1)
		go func() { done <- s.ListAndWatch(&api.Empty{}, stream) }()
		synctest.Wait()
		require.Equal(t, []int{0}, stream.unhealthy)

		later := *gputest.Node(8)
		later.Time = later.Time.Add(time.Second)
		for _, step := range []struct {
			what string
			s    *gpu.Snapshot
			want []int
		}{
			{"readings only", &later, []int{0}},
			{"a GPU is lost", gputest.Sick(gputest.Node(8), 3, gpu.Lost), []int{0, 1}},
			{"for another reason", gputest.Sick(gputest.Node(8), 3, gpu.Hung), []int{0, 1}},
			{"another one instead", gputest.Sick(gputest.Node(8), 4, gpu.Hung), []int{0, 1, 1}},
			{"all are well", gputest.Node(8), []int{0, 1, 1, 0}},
			{"the driver is unloaded", &gpu.Snapshot{Devices: gputest.Node(8).Devices}, []int{0, 1, 1, 0, 8}},
		} {
			snapshots.Set(step.s)
			synctest.Wait()
			require.Equal(t, step.want, stream.unhealthy, step.what)
		}

		cancel()
		require.NoError(t, <-done)
		require.Equal(t, []int{8, 8, 8, 8, 8}, stream.devices, "nothing is sent on the way out")
	})
}

func TestEveryEditIsInTheAnswer(t *testing.T) {
	t.Parallel()
	got := answer(resource.Edits{
		Env:         map[string]string{"NVIDIA_VISIBLE_DEVICES": "GPU-1"},
		Annotations: map[string]string{"cdi.k8s.io/nvidia-device-plugin_1": "nvidia.com/gpu=GPU-1"},
		Mounts: []resource.Mount{
			{HostPath: "/dev/null", ContainerPath: "/var/run/nvidia-container-devices/GPU-1"},
			{HostPath: "/cache/models", ContainerPath: "/models", ReadOnly: true},
		},
		CDIDevices:  []string{"nvidia.com/gpu=GPU-1"},
		DeviceNodes: []resource.DeviceNode{{HostPath: "/host/dev/nvidia0", ContainerPath: "/dev/nvidia0", Permissions: "rw"}},
	})
	require.Equal(t, &api.ContainerAllocateResponse{
		Envs:        map[string]string{"NVIDIA_VISIBLE_DEVICES": "GPU-1"},
		Annotations: map[string]string{"cdi.k8s.io/nvidia-device-plugin_1": "nvidia.com/gpu=GPU-1"},
		Mounts: []*api.Mount{
			{HostPath: "/dev/null", ContainerPath: "/var/run/nvidia-container-devices/GPU-1"},
			{HostPath: "/cache/models", ContainerPath: "/models", ReadOnly: true},
		},
		CdiDevices: []*api.CDIDevice{{Name: "nvidia.com/gpu=GPU-1"}},
		Devices:    []*api.DeviceSpec{{HostPath: "/host/dev/nvidia0", ContainerPath: "/dev/nvidia0", Permissions: "rw"}},
	}, got)
}
