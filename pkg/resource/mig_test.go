package resource_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

func mig(i, j int) resource.ID {
	return resource.ID(fmt.Sprintf("MIG-00000000-0000-0000-0000-%04d%08d", i, j))
}

// split puts GPU i into MIG mode with an instance of each profile.
func split(s *gpu.Snapshot, i int, profiles ...string) *gpu.Snapshot {
	d := &s.Devices[i]
	d.MIGEnabled = true
	for j, profile := range profiles {
		in := gpu.Instance{UUID: gpu.UUID(mig(i, j)), Index: j, Profile: profile, GISlices: 1, CISlices: 1, GIMinor: 100*i + 10*j, CIMinor: 100*i + 10*j + 1}
		if strings.Contains(profile, "c.") {
			in.GISlices = 3
		}
		d.Instances = append(d.Instances, in)
	}
	return s
}

// splitNode is two GPUs that are split alike.
func splitNode(profiles ...string) *gpu.Snapshot {
	return split(split(gputest.Node(2), 0, profiles...), 1, profiles...)
}

// offered is the ids by resource name.
func offered(p resource.Policy, s *gpu.Snapshot) map[string][]resource.ID {
	all := map[string][]resource.ID{}
	for _, o := range p.Offers(s) {
		for _, u := range o.Units {
			all[o.Resource] = append(all[o.Resource], u.ID)
		}
	}
	return all
}

func TestMIGStrategies(t *testing.T) {
	t.Parallel()
	half := split(gputest.Node(2), 0, "1g.10gb", "1g.10gb+me", "1c.3g.40gb")
	lost := gputest.Sick(splitNode("1g.10gb"), 1, gpu.Lost)
	lost.Devices[1].Instances = nil
	unread := gputest.Sick(splitNode("1g.10gb"), 1, gpu.Hung)
	unread.Devices[1].MIGEnabled, unread.Devices[1].Instances = false, nil
	for name, c := range map[string]struct {
		cfg     resource.Config
		s       *gpu.Snapshot
		want    map[string][]resource.ID
		problem string
	}{
		"none": {
			resource.Config{}, half, map[string][]resource.ID{"nvidia.com/gpu": ids(1)},
			"GPU 0 is in MIG mode and is not offered: migStrategy is none",
		},
		"mixed, by NVIDIA's names": {
			resource.Config{MIGStrategy: "mixed"}, half,
			map[string][]resource.ID{"nvidia.com/gpu": ids(1), "nvidia.com/mig-1g.10gb": {mig(0, 0)}, "nvidia.com/mig-1g.10gb.me": {mig(0, 1)}},
			"instance 0:2 of GPU 0 (1c.3g.40gb) is not offered",
		},
		"mixed, by names of our own": {
			resource.Config{MIGStrategy: "mixed", MIGNames: []resource.Name{{"1c.*", "nvidia.com/slice"}, {"*+me", "nvidia.com/media"}}}, half,
			map[string][]resource.ID{"nvidia.com/gpu": ids(1), "nvidia.com/mig-1g.10gb": {mig(0, 0)}, "nvidia.com/media": {mig(0, 1)}, "nvidia.com/slice": {mig(0, 2)}}, "",
		},
		"mixed, one GPU empty": {
			resource.Config{MIGStrategy: "mixed"}, split(gputest.Node(2), 0), map[string][]resource.ID{"nvidia.com/gpu": ids(1)},
			"GPU 0 is in MIG mode and has no instance",
		},
		"single": {
			resource.Config{MIGStrategy: "single"}, splitNode("1g.10gb", "1g.10gb"),
			map[string][]resource.ID{"nvidia.com/gpu": {mig(0, 0), mig(0, 1), mig(1, 0), mig(1, 1)}}, "",
		},
		"single, no GPU in MIG mode": {resource.Config{MIGStrategy: "single"}, gputest.Node(2), map[string][]resource.ID{"nvidia.com/gpu": ids(0, 1)}, ""},
		"single, another profile on one": {
			resource.Config{MIGStrategy: "single"}, split(split(gputest.Node(2), 0, "1g.10gb"), 1, "1g.10gb", "2g.20gb"), nil,
			"migStrategy single: nothing is offered: instance 0:0 is 1g.10gb and instance 1:1 is 2g.20gb: want one profile on all",
		},
		"single, one whole":          {resource.Config{MIGStrategy: "single"}, half, nil, "want one profile"},
		"single, one whole, one not": {resource.Config{MIGStrategy: "single"}, split(gputest.Node(2), 1, "1g.10gb"), nil, "GPU 1 is in MIG mode and GPU 0 is not: want all or none"},
		"single, one empty":          {resource.Config{MIGStrategy: "single"}, split(split(gputest.Node(2), 0, "1g.10gb"), 1), nil, "GPU 1 is in MIG mode and has no instance"},
		"single, the odd one excluded": {
			resource.Config{MIGStrategy: "single", Exclude: []string{"1"}}, split(gputest.Node(2), 0, "1g.10gb"),
			map[string][]resource.ID{"nvidia.com/gpu": {mig(0, 0)}}, "",
		},
		"single, a sick GPU whose instances are gone": {resource.Config{MIGStrategy: "single"}, lost, map[string][]resource.ID{"nvidia.com/gpu": {mig(0, 0)}}, ""},
		"single, a sick GPU that was not read":        {resource.Config{MIGStrategy: "single"}, unread, map[string][]resource.ID{"nvidia.com/gpu": {mig(0, 0)}}, ""},
	} {
		p := policy(t, c.cfg)
		got := offered(p, c.s)
		if len(c.want) == 0 {
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

func TestAnInstanceIsAsHealthyAsItsGPU(t *testing.T) {
	t.Parallel()
	p := policy(t, resource.Config{MIGStrategy: "mixed"})
	units := p.Offers(gputest.Sick(splitNode("1g.10gb", "1g.10gb"), 1, gpu.XID))[0].Units
	require.Equal(t, resource.Unit{ID: mig(0, 0), Device: gputest.UUID(0), Instance: gpu.UUID(mig(0, 0)), Healthy: true, NUMANode: 0}, units[0])
	require.Equal(t, resource.Unit{ID: mig(1, 1), Device: gputest.UUID(1), Instance: gpu.UUID(mig(1, 1)), Reason: "GPU is XID", NUMANode: 1}, units[3])
	require.False(t, units[2].Healthy)
}

func TestNamesByModelAndSelection(t *testing.T) {
	t.Parallel()
	s := gputest.Node(4)
	s.Devices[2].Name, s.Devices[3].Name = "NVIDIA L40S", "NVIDIA T4"
	for name, c := range map[string]struct {
		cfg     resource.Config
		want    map[string][]resource.ID
		problem string
	}{
		"by model": {
			resource.Config{GPUNames: []resource.Name{{"*H100*", "nvidia.com/h100"}, {"NVIDIA T4", "acme.com/small"}}},
			map[string][]resource.ID{"nvidia.com/h100": ids(0, 1), "nvidia.com/gpu": ids(2), "acme.com/small": ids(3)}, "",
		},
		"the first pattern counts, and * catches the rest": {
			resource.Config{GPUNames: []resource.Name{{"*H100*", "nvidia.com/h100"}, {"*", "nvidia.com/other"}}},
			map[string][]resource.ID{"nvidia.com/h100": ids(0, 1), "nvidia.com/other": ids(2, 3)}, "",
		},
		"two names for one model": {
			resource.Config{GPUNames: []resource.Name{{"*H100*", "nvidia.com/h100"}, {"*HBM3", "nvidia.com/big"}}},
			map[string][]resource.ID{"nvidia.com/h100": ids(0, 1), "nvidia.com/gpu": ids(2, 3)},
			`resources.gpus[1]: two names for "NVIDIA H100 80GB HBM3": it goes by nvidia.com/h100 of resources.gpus[0], not by nvidia.com/big`,
		},
		"included": {
			resource.Config{Include: []string{"1", string(gputest.UUID(2)), "0000:0e:00.0"}},
			map[string][]resource.ID{"nvidia.com/gpu": ids(1, 2, 3)}, "",
		},
		"excluded wins":            {resource.Config{Include: []string{"*H100*"}, Exclude: []string{"00000000:0C:00.0"}}, map[string][]resource.ID{"nvidia.com/gpu": ids(0)}, ""},
		"a model that is not here": {resource.Config{Exclude: []string{"*V100*"}}, map[string][]resource.ID{"nvidia.com/gpu": ids(0, 1, 2, 3)}, ""},
		"nothing is left":          {resource.Config{Exclude: []string{"*"}}, map[string][]resource.ID{}, "include, exclude: they leave none of this node's GPUs to offer"},
		"an index that is not":     {resource.Config{Exclude: []string{"3", "07"}}, map[string][]resource.ID{"nvidia.com/gpu": ids(0, 1, 2)}, "exclude[1]: there is no GPU 07 on this node"},
	} {
		p := policy(t, c.cfg)
		require.Equal(t, c.want, offered(p, s), name)
		if problems := p.Problems(s); c.problem == "" {
			require.Empty(t, problems, name)
		} else {
			require.Equal(t, []string{c.problem}, problems, name)
		}
		seen := 0
		for _, units := range c.want {
			seen += len(units)
		}
		require.Len(t, p.Visible(s).Devices, seen, name)
	}
	require.Nil(t, policy(t, resource.Config{Exclude: []string{"1"}}).Visible(nil))
}

func TestNothingIsAskedOfANodeThatIsNotKnownYet(t *testing.T) {
	t.Parallel()
	p := policy(t, resource.Config{Include: []string{"9"}})
	require.Empty(t, p.Problems(nil))
	require.Empty(t, p.Problems(&gpu.Snapshot{}))
	require.Len(t, p.Problems(gputest.Node(1)), 2)
	require.False(t, slices.Contains(p.Problems(gputest.Node(1)), ""))
}
