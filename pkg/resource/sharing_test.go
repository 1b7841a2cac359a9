package resource_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

func sliced(rules ...resource.Shared) *resource.Sharing { return &resource.Sharing{Resources: rules} }

func TestShares(t *testing.T) {
	t.Parallel()
	s := gputest.Node(3)
	mixed := split(gputest.Node(2), 1, "1g.10gb", "1g.10gb")
	rename := func(s *resource.Sharing) *resource.Sharing { s.RenameByDefault = true; return s }
	for name, c := range map[string]struct {
		cfg     resource.Config
		s       *gpu.Snapshot
		want    map[string][]resource.ID
		problem string
	}{
		"all": {
			resource.Config{TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2})}, s,
			map[string][]resource.ID{"nvidia.com/gpu": shares([]int{0, 1, 2}, 2)}, "",
		},
		"renamed by default": {
			resource.Config{TimeSlicing: rename(sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2}))}, s,
			map[string][]resource.ID{"nvidia.com/gpu.shared": shares([]int{0, 1, 2}, 2)}, "",
		},
		"some, by a name of their own": {
			resource.Config{TimeSlicing: rename(sliced(resource.Shared{Name: "nvidia.com/gpu", Rename: "nvidia.com/slow", Replicas: 3, Devices: []string{"2", string(gputest.UUID(0))}}))}, s,
			map[string][]resource.ID{"nvidia.com/gpu": ids(1), "nvidia.com/slow": shares([]int{0, 2}, 3)}, "",
		},
		"the first of them, by the same name": {
			resource.Config{TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Count: 1})}, s,
			map[string][]resource.ID{"nvidia.com/gpu": append(shares([]int{0}, 2), ids(1, 2)...)}, "",
		},
		"two rules for different GPUs": {
			resource.Config{TimeSlicing: sliced(
				resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Devices: []string{"0"}},
				resource.Shared{Name: "nvidia.com/gpu", Replicas: 4, Devices: []string{"1"}, Rename: "nvidia.com/quarter"})}, s,
			map[string][]resource.ID{"nvidia.com/gpu": append(shares([]int{0}, 2), ids(2)...), "nvidia.com/quarter": shares([]int{1}, 4)}, "",
		},
		"two rules for one GPU": {
			resource.Config{TimeSlicing: sliced(
				resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Devices: []string{"0"}},
				resource.Shared{Name: "nvidia.com/gpu", Replicas: 4, Devices: []string{string(gputest.UUID(0))}})}, s,
			map[string][]resource.ID{"nvidia.com/gpu": append(shares([]int{0}, 2), ids(1, 2)...)},
			"sharing.timeSlicing.resources[1].devices: two rules for GPU 0: it is shared by sharing.timeSlicing.resources[0]",
		},
		"a GPU that is not there": {
			resource.Config{TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Devices: []string{"1", "7"}})}, s,
			map[string][]resource.ID{"nvidia.com/gpu": {ids(0)[0], share(1, 0), share(1, 1), ids(2)[0]}},
			"sharing.timeSlicing.resources[0].devices[1]: there is no GPU 7 to share on this node",
		},
		"an instance that is not there": {
			resource.Config{MIGStrategy: "mixed", TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/mig-1g.10gb", Replicas: 2, Devices: []string{"1:5"}})}, mixed,
			map[string][]resource.ID{"nvidia.com/gpu": ids(0), "nvidia.com/mig-1g.10gb": {mig(1, 0), mig(1, 1)}},
			"there is no MIG instance 1:5 to share on this node",
		},
		"more than there are": {
			resource.Config{TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Count: 4})}, s,
			map[string][]resource.ID{"nvidia.com/gpu": shares([]int{0, 1, 2}, 2)}, "want 4 of nvidia.com/gpu, but this node has 3: all are shared",
		},
		"a resource that is not there": {
			resource.Config{TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/gpus", Replicas: 2})}, s,
			map[string][]resource.ID{"nvidia.com/gpu": ids(0, 1, 2)}, "resources[0].name: nothing on this node is offered as nvidia.com/gpus",
		},
		"a GPU of another name": {
			resource.Config{
				GPUNames:    []resource.Name{{"*", "nvidia.com/h100"}},
				TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Devices: []string{"0"}}),
			}, s,
			map[string][]resource.ID{"nvidia.com/h100": ids(0, 1, 2)}, "GPU 0 is offered as nvidia.com/h100, not as nvidia.com/gpu",
		},
		"MIG instances by index and UUID": {
			resource.Config{MIGStrategy: "mixed", TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/mig-1g.10gb", Replicas: 2, Devices: []string{"1:1", string(mig(1, 1))}})}, mixed,
			map[string][]resource.ID{"nvidia.com/gpu": ids(0), "nvidia.com/mig-1g.10gb": {mig(1, 0), mig(1, 1) + "::0", mig(1, 1) + "::1"}}, "",
		},
		"MPS": {
			resource.Config{MPS: rename(sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Devices: []string{"2"}}))}, s,
			map[string][]resource.ID{"nvidia.com/gpu": ids(0, 1), "nvidia.com/gpu.shared": shares([]int{2}, 2)}, "",
		},
		"MPS of MIG instances": {
			resource.Config{MIGStrategy: "single", MPS: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 2})}, split(gputest.Node(1), 0, "1g.10gb"),
			nil, "sharing.mps.resources[0]: GPU 0:0 is not offered: MPS cannot share a MIG instance",
		},
	} {
		p := policy(t, c.cfg)
		got := offered(p, c.s)
		if c.want == nil {
			require.Empty(t, got, name)
		} else {
			require.Equal(t, c.want, got, name)
		}
		if problems := p.Problems(c.s); c.problem == "" {
			require.Empty(t, problems, name)
		} else {
			require.Len(t, problems, 1, name)
			require.Contains(t, problems[0], c.problem, name)
		}
	}
}

func TestAllSharesOfASickGPUAreSickAndNoOthers(t *testing.T) {
	t.Parallel()
	p := policy(t, resource.Config{TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 4})})
	sick := 0
	for _, u := range p.Offers(gputest.Sick(gputest.Node(8), 3, gpu.XID))[0].Units {
		require.Equal(t, u.Device != gputest.UUID(3), u.Healthy, u.ID)
		if !u.Healthy {
			require.Equal(t, "GPU is XID", u.Reason)
			sick++
		}
	}
	require.Equal(t, 4, sick)
}

func TestAnOfferSaysHowItIsShared(t *testing.T) {
	t.Parallel()
	s := gputest.Node(2)
	rule := resource.Shared{Name: "nvidia.com/gpu", Replicas: 2, Devices: []string{"0"}}
	plain := policy(t, resource.Config{TimeSlicing: sliced(rule)}).Offers(s)
	require.Len(t, plain, 1)
	require.Equal(t, "time-slicing", plain[0].Sharing)
	require.False(t, plain[0].Renamed)

	rule.Rename = "nvidia.com/half"
	offers := policy(t, resource.Config{MPS: sliced(rule)}).Offers(s)
	require.Len(t, offers, 2)
	require.Empty(t, offers[0].Sharing)
	require.Equal(t, "mps", offers[1].Sharing)
	require.True(t, offers[1].Renamed)
}

func TestWhatAnMPSDaemonIsTold(t *testing.T) {
	t.Parallel()
	s := gputest.Sick(gputest.Node(3), 2, gpu.Lost)
	p := policy(t, resource.Config{MPSRoot: "/run/mps", MPS: &resource.Sharing{RenameByDefault: true, Resources: []resource.Shared{
		{Name: "nvidia.com/gpu", Replicas: 4, Devices: []string{"1", "2"}},
	}}})
	require.Equal(t, []resource.MPS{{
		Resource: "nvidia.com/gpu.shared", PipeDir: "/run/mps/nvidia.com/gpu.shared/pipe", LogDir: "/run/mps/nvidia.com/gpu.shared/log", ShmDir: "/run/mps/shm",
		Devices: []resource.MPSDevice{
			{UUID: gputest.UUID(1), Index: 1, Replicas: 4, MemoryLimit: 20 << 30, Healthy: true},
			{UUID: gputest.UUID(2), Index: 2, Replicas: 4, MemoryLimit: 20 << 30},
		},
	}}, p.MPS(s))
	require.Empty(t, policy(t, resource.Config{TimeSlicing: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 4})}).MPS(s))
	require.Empty(t, p.MPS(nil))

	old := gputest.Node(2)
	old.Devices[0].ComputeMajor = 6
	many := policy(t, resource.Config{MPS: sliced(resource.Shared{Name: "nvidia.com/gpu", Replicas: 17})})
	require.Len(t, many.MPS(old)[0].Devices, 1)
	require.Equal(t, []string{"sharing.mps.resources[0]: GPU 0 is not offered: an MPS server on a GPU older than Volta has at most 16 clients, not 17"}, many.Problems(old))
}
