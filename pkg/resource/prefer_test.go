package resource_test

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// onNodes is a node whose i-th GPU is on the i-th given NUMA node.
func onNodes(numa ...int) *gpu.Snapshot {
	s := gputest.Node(len(numa))
	for i, n := range numa {
		s.Devices[i].NUMANode = n
	}
	return s
}

func TestPrefer(t *testing.T) {
	t.Parallel()
	eight := onNodes(0, 0, 0, 0, 1, 1, 1, 1)
	stranger := resource.ID("GPU-unheard-of")
	for name, c := range map[string]struct {
		s                   *gpu.Snapshot
		available, required []resource.ID
		n                   int
		want                []resource.ID
	}{
		"one NUMA node for all":          {eight, ids(0, 4, 5, 6, 7), nil, 4, ids(4, 5, 6, 7)},
		"the tightest that fits":         {eight, ids(0, 1, 2, 3, 5, 6), nil, 2, ids(5, 6)},
		"ties go to the lowest":          {eight, ids(7, 6, 5, 4, 3, 2, 1, 0), nil, 2, ids(0, 1)},
		"required come first":            {eight, ids(0, 1, 2, 3, 4, 5), ids(5), 2, ids(5, 4)},
		"required from outside the list": {eight, ids(0, 4), ids(6), 2, ids(6, 4)},
		"all required, though too many":  {eight, ids(0, 1, 2), ids(0, 1, 2), 1, ids(0, 1, 2)},
		"fewest nodes, then fewest left": {onNodes(0, 0, 0, 1, 1, 1, 2, 2, 3), ids(0, 1, 2, 3, 4, 5, 6, 7, 8), nil, 4, ids(0, 1, 2, 8)},
		"healthy before near":            {gputest.Sick(eight, 0, gpu.Lost), ids(0, 1, 4), nil, 2, ids(1, 4)},
		"unhealthy before nothing":       {gputest.Sick(eight, 0, gpu.Lost), ids(0, 1), nil, 2, ids(1, 0)},
		"unknown last":                   {eight, []resource.ID{stranger, ids(3)[0]}, nil, 1, ids(3)},
		"unknown when needed":            {eight, []resource.ID{stranger, ids(3)[0]}, nil, 2, append(ids(3), stranger)},
		"fewer than asked for":           {eight, ids(2), nil, 3, ids(2)},
		"duplicates are one":             {eight, ids(2, 2, 1, 1), ids(1, 1), 2, ids(1, 2)},
		"none":                           {eight, ids(2), nil, 0, ids()},
		"less than none":                 {eight, ids(2), nil, -1, ids()},
		"no snapshot yet":                {nil, ids(2, 1), nil, 1, ids(1)},
	} {
		got := policy(t, resource.Config{}).Prefer(c.s, c.available, c.required, c.n)
		if len(c.want) == 0 {
			require.Empty(t, got, name)
			continue
		}
		require.Equal(t, c.want, got, name)
	}
}

// cost is what Prefer minimises, most important first: unhealthy units, NUMA nodes, units left over
// on those nodes.
func cost(s *gpu.Snapshot, available, picked []resource.ID) [3]int {
	var c [3]int
	nodes := map[int]bool{}
	for _, id := range picked {
		d := s.Device(id.Device())
		nodes[d.NUMANode] = true
		if !d.Health.OK() {
			c[0]++
		}
	}
	c[1] = len(nodes)
	for _, id := range available {
		if d := s.Device(id.Device()); nodes[d.NUMANode] && d.Health.OK() && !slices.Contains(picked, id) {
			c[2]++
		}
	}
	return c
}

func TestPreferIsAsGoodAsTryingAllSets(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	p := policy(t, resource.Config{})
	for range 3000 {
		total := 1 + rnd.IntN(9)
		numa := make([]int, total)
		for i := range numa {
			numa[i] = rnd.IntN(4) - 1
		}
		s := onNodes(numa...)
		for i := range total {
			if rnd.IntN(6) == 0 {
				s = gputest.Sick(s, i, gpu.Lost)
			}
		}
		var available, required []resource.ID
		for i := range total {
			available = append(available, ids(i)...)
		}
		rnd.Shuffle(total, func(i, j int) { available[i], available[j] = available[j], available[i] })
		required = slices.Clone(available[:rnd.IntN(min(total, 3))])
		n := len(required) + rnd.IntN(total-len(required)+1)

		got := p.Prefer(s, available, required, n)
		require.Len(t, got, n)
		for _, id := range required {
			require.Contains(t, got, id)
		}
		best := cost(s, available, got)
		for set := range 1 << total {
			var other []resource.ID
			for i, id := range available {
				if set&(1<<i) != 0 {
					other = append(other, id)
				}
			}
			if bits.OnesCount(uint(set)) != n || slices.ContainsFunc(required, func(id resource.ID) bool { return !slices.Contains(other, id) }) {
				continue
			}
			if c := cost(s, available, other); slices.Compare(c[:], best[:]) < 0 {
				t.Fatalf("numa %v required %v n %d: %v costs %v, but %v costs %v", numa, required, n, got, best, other, c)
			}
		}
		rnd.Shuffle(total, func(i, j int) { available[i], available[j] = available[j], available[i] })
		require.Equal(t, got, p.Prefer(s, available, required, n), "the order of what is available must not matter")
	}
}

func BenchmarkPrefer16(b *testing.B) {
	p := policy(b, resource.Config{})
	for name, s := range map[string]*gpu.Snapshot{
		"2nodes":  gputest.Node(16),
		"16nodes": onNodes(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
	} {
		var all []resource.ID
		for i := range s.Devices {
			all = append(all, ids(i)...)
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				p.Prefer(s, all, nil, 8)
			}
		})
	}
}
