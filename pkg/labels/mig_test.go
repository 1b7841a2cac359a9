package labels

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// split puts GPU i of the node into MIG mode with one instance of each profile.
func split(s *gpu.Snapshot, i int, profiles ...string) *gpu.Snapshot {
	d := &s.Devices[i]
	d.MIGEnabled = true
	for j, profile := range profiles {
		in := gpu.Instance{
			UUID: gpu.UUID(fmt.Sprintf("MIG-%d-%d", i, j)), Index: j, Profile: profile, Memory: 9984 << 20, Multiprocessors: 16, GISlices: 1, CISlices: 1,
			Engines: gpu.Engines{Copy: 1, Decoder: 2, JPEG: 3, OFA: 4},
		}
		if strings.HasPrefix(profile, "3g") {
			in.Memory, in.Multiprocessors, in.GISlices, in.CISlices = 40448<<20, 60, 3, 3
		}
		d.Instances = append(d.Instances, in)
	}
	return s
}

// under is the labels of GPUs and of their instances, without the common prefix.
func under(l map[string]string) map[string]string {
	out := map[string]string{}
	for key, value := range l {
		name, ok := strings.CutPrefix(key, nvidiaPrefix)
		if ok && (strings.HasPrefix(name, "gpu.") || strings.HasPrefix(name, "mig-") || name == "mig.strategy" || name == "mps.capable") {
			out[name] = value
		}
	}
	for _, always := range []string{"gpu.family", "gpu.compute.major", "gpu.compute.minor", "gpu.machine", "gpu.mode", "gpu.clique"} {
		delete(out, always)
	}
	return out
}

const h100Name = "NVIDIA-H100-80GB-HBM3"

// The values are those of GFD's own tests, mig-strategy_test.go of version 0.20, for this hardware.
func TestMIGLabelsAreThoseOfGFD(t *testing.T) {
	t.Parallel()
	instance := func(name, product, count, replicas, strategy string) map[string]string {
		l := map[string]string{}
		for suffix, value := range map[string]string{
			"product": product, "count": count, "replicas": replicas, "sharing-strategy": strategy, "memory": "9984", "multiprocessors": "16",
			"slices.gi": "1", "slices.ci": "1", "engines.copy": "1", "engines.decoder": "2", "engines.encoder": "0", "engines.jpeg": "3", "engines.ofa": "4",
		} {
			l[name+"."+suffix] = value
		}
		return l
	}
	with := func(sets ...map[string]string) map[string]string {
		all := map[string]string{"mps.capable": "false"}
		for _, set := range sets {
			maps.Copy(all, set)
		}
		return all
	}
	whole := func(product, count, replicas, strategy string) map[string]string {
		return map[string]string{"gpu.product": product, "gpu.count": count, "gpu.replicas": replicas, "gpu.sharing-strategy": strategy, "gpu.memory": "81920"}
	}
	single, mixed := map[string]string{"mig.strategy": "single"}, map[string]string{"mig.strategy": "mixed"}
	invalid := map[string]string{
		"gpu.product": h100Name + "-MIG-INVALID", "gpu.count": "0", "gpu.replicas": "0", "gpu.sharing-strategy": "", "gpu.memory": "0",
	}
	three := map[string]string{"mig-3g.40gb.memory": "40448", "mig-3g.40gb.multiprocessors": "60", "mig-3g.40gb.slices.gi": "3", "mig-3g.40gb.slices.ci": "3"}
	for name, c := range map[string]struct {
		cfg  resource.Config
		s    *gpu.Snapshot
		want map[string]string
	}{
		"none, one split":          {resource.Config{}, split(gputest.Node(2), 1, "1g.10gb"), with(whole(h100Name, "2", "1", "none"))},
		"none, all split":          {resource.Config{TimeSlicing: shared("nvidia.com/gpu", 2)}, split(gputest.Node(1), 0, "1g.10gb"), with(whole(h100Name, "1", "0", "none"))},
		"none, one split, sharing": {resource.Config{TimeSlicing: shared("nvidia.com/gpu", 2)}, split(gputest.Node(2), 1), with(whole(h100Name+"-SHARED", "2", "2", "time-slicing"))},
		"single": {
			resource.Config{MIGStrategy: "single"}, split(split(gputest.Node(2), 0, "1g.10gb", "1g.10gb"), 1, "1g.10gb"),
			with(single, instance("gpu", h100Name+"-MIG-1g.10gb", "3", "1", "none")),
		},
		"single, shared": {
			resource.Config{MIGStrategy: "single", TimeSlicing: shared("nvidia.com/gpu", 3)}, split(gputest.Node(1), 0, "1g.10gb+me"),
			with(single, instance("gpu", h100Name+"-MIG-1g.10gb.me-SHARED", "1", "3", "time-slicing")),
		},
		"single, two profiles":       {resource.Config{MIGStrategy: "single"}, split(gputest.Node(1), 0, "1g.10gb", "3g.40gb"), with(single, invalid)},
		"single, one GPU whole":      {resource.Config{MIGStrategy: "single"}, split(gputest.Node(2), 0, "1g.10gb"), with(single, invalid)},
		"single, one GPU empty":      {resource.Config{MIGStrategy: "single"}, split(split(gputest.Node(2), 0, "1g.10gb"), 1), with(single, invalid)},
		"single, that one excluded":  {resource.Config{MIGStrategy: "single", Exclude: []string{"1"}}, split(gputest.Node(2), 0, "1g.10gb"), with(single, instance("gpu", h100Name+"-MIG-1g.10gb", "1", "1", "none"))},
		"single, no GPU in MIG mode": {resource.Config{MIGStrategy: "single"}, gputest.Node(2), with(single, whole(h100Name, "2", "1", "none"))},
		"mixed": {
			resource.Config{MIGStrategy: "mixed"}, split(gputest.Node(2), 0, "1g.10gb", "1g.10gb+me", "1g.10gb", "3g.40gb"),
			with(mixed, whole(h100Name, "2", "1", "none"),
				instance("mig-1g.10gb", h100Name+"-MIG-1g.10gb", "2", "1", "none"), instance("mig-1g.10gb.me", h100Name+"-MIG-1g.10gb.me", "1", "1", "none"),
				instance("mig-3g.40gb", h100Name+"-MIG-3g.40gb", "1", "1", "none"), three),
		},
		"mixed, instances shared and renamed": {
			resource.Config{MIGStrategy: "mixed", TimeSlicing: &resource.Sharing{RenameByDefault: true, Resources: []resource.Shared{{Name: "nvidia.com/mig-1g.10gb", Replicas: 5}}}},
			split(gputest.Node(1), 0, "1g.10gb"),
			with(mixed, whole(h100Name, "1", "0", "none"), instance("mig-1g.10gb", h100Name+"-MIG-1g.10gb", "1", "5", "time-slicing")),
		},
		"MPS": {
			resource.Config{MPS: shared("nvidia.com/gpu", 2)}, gputest.Node(2),
			with(whole(h100Name+"-SHARED", "2", "2", "mps"), map[string]string{"mps.capable": "true"}),
		},
		"MPS beside a split GPU": {
			resource.Config{MPS: shared("nvidia.com/gpu", 2)}, split(gputest.Node(2), 0, "1g.10gb"), with(whole(h100Name+"-SHARED", "2", "2", "mps")),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := For(of(t, c.cfg, c.s))
			require.Equal(t, c.want, under(got))
			requireValid(t, got)
			rnd := rand.New(rand.NewPCG(1, 2))
			for range 5 {
				rnd.Shuffle(len(c.s.Devices), func(i, j int) { c.s.Devices[i], c.s.Devices[j] = c.s.Devices[j], c.s.Devices[i] })
				require.Equal(t, got, For(of(t, c.cfg, c.s)), "the order of GPUs must not matter")
			}
		})
	}
}

func TestWhatTheDriverDoesNotSayOfAnInstanceIsAbsent(t *testing.T) {
	t.Parallel()
	s := split(gputest.Node(1), 0, "1g.10gb")
	s.Devices[0].Instances[0].Memory, s.Devices[0].Instances[0].Multiprocessors = 0, 0
	got := under(For(of(t, resource.Config{MIGStrategy: "single"}, s)))
	require.Equal(t, []string{"gpu.count", "gpu.product", "gpu.replicas", "gpu.sharing-strategy", "mig.strategy", "mps.capable"}, slices.Sorted(maps.Keys(got)))
}

func TestGPUsThatAreLeftOutAreInNoLabel(t *testing.T) {
	t.Parallel()
	got := For(of(t, resource.Config{Exclude: []string{"0", "1"}}, gputest.Node(8)))
	require.Equal(t, "6", got["nvidia.com/gpu.count"])
	require.Equal(t, "6", got["gpu-agent.dev/gpu.healthy"])
	require.NotContains(t, For(of(t, resource.Config{Exclude: []string{"*"}}, gputest.Node(8))), "nvidia.com/gpu.count")
}
