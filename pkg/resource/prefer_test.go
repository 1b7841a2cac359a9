package resource_test

import (
	"fmt"
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

// linked is a node with the given NVLinks between GPUs, each {a, b, how many}.
func linked(s *gpu.Snapshot, links ...[3]int) *gpu.Snapshot {
	for _, l := range links {
		a, b := &s.Devices[l[0]], &s.Devices[l[1]]
		a.NVLinks = append(a.NVLinks, gpu.NVLink{Remote: b.PCIBusID, Count: l[2]})
		b.NVLinks = append(b.NVLinks, gpu.NVLink{Remote: a.PCIBusID, Count: l[2]})
	}
	return s
}

func TestAffinity(t *testing.T) {
	t.Parallel()
	// Two GPUs of one switch, one more below another switch of the same port, one on another port of the
	// bridge, one on another bridge of the node, and one on the other node.
	s := onNodes(0, 0, 0, 0, 0, 1)
	paths := [][]string{
		{"pci0000:00", "0000:00:01.0", "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"},
		{"pci0000:00", "0000:00:01.0", "0000:01:00.0", "0000:02:01.0", "0000:04:00.0"},
		{"pci0000:00", "0000:00:01.0", "0000:01:00.0", "0000:02:02.0", "0000:05:00.0", "0000:06:00.0", "0000:07:00.0"},
		{"pci0000:00", "0000:00:02.0", "0000:08:00.0"},
		{"pci0000:40", "0000:40:01.0", "0000:41:00.0"},
		{"pci0000:80", "0000:80:01.0", "0000:81:00.0"},
	}
	for i, p := range paths {
		s.Devices[i].PCIPath = p
	}
	for to, want := range map[int]int{1: 50, 2: 40, 3: 30, 4: 20, 5: 10} {
		require.Equal(t, want, resource.Affinity(&s.Devices[0], &s.Devices[to]), to)
		require.Equal(t, want, resource.Affinity(&s.Devices[to], &s.Devices[0]), to)
	}
	board := onNodes(0, 0)
	board.Devices[0].PCIPath, board.Devices[1].PCIPath = []string{"pci0000:00", "0000:00:01.0", "0000:01:00.0"}, []string{"pci0000:00", "0000:00:01.0", "0000:01:00.1"}
	require.Equal(t, 60, resource.Affinity(&board.Devices[0], &board.Devices[1]))

	bare := onNodes(0, 0, 1, -1, -1)
	require.Equal(t, 20, resource.Affinity(&bare.Devices[0], &bare.Devices[1]), "NUMA nodes alone")
	require.Equal(t, 10, resource.Affinity(&bare.Devices[0], &bare.Devices[2]))
	require.Equal(t, 20, resource.Affinity(&bare.Devices[3], &bare.Devices[4]))
	require.Zero(t, resource.Affinity(&bare.Devices[0], nil))

	mesh := linked(onNodes(0, 1), [3]int{0, 1, 4})
	require.Equal(t, 410, resource.Affinity(&mesh.Devices[0], &mesh.Devices[1]))
	mesh.Devices[1].NVLinks = nil
	require.Equal(t, 410, resource.Affinity(&mesh.Devices[1], &mesh.Devices[0]), "reported by one side only")

	hgx := onNodes(0, 1, 1)
	for i := range 2 {
		hgx.Devices[i].NVLinks = []gpu.NVLink{{Remote: "", Count: 18 - i}}
	}
	require.Equal(t, 1710, resource.Affinity(&hgx.Devices[0], &hgx.Devices[1]), "through NVSwitches")
	require.Equal(t, 20, resource.Affinity(&hgx.Devices[1], &hgx.Devices[2]), "not linked to the switches")
}

func TestPrefer(t *testing.T) {
	t.Parallel()
	eight := onNodes(0, 0, 0, 0, 1, 1, 1, 1)
	pairs := linked(onNodes(0, 0, 0, 0, 1, 1, 1, 1), [3]int{0, 5, 2}, [3]int{1, 2, 1})
	stranger := resource.ID("GPU-unheard-of")
	for name, c := range map[string]struct {
		s                   *gpu.Snapshot
		available, required []resource.ID
		n                   int
		want                []resource.ID
	}{
		"one NUMA node for all":          {eight, ids(0, 4, 5, 6, 7), nil, 4, ids(4, 5, 6, 7)},
		"the tightest that fits":         {eight, ids(0, 1, 2, 3, 5, 6), nil, 2, ids(5, 6)},
		"one, from the smaller group":    {eight, ids(0, 1, 2, 3, 5, 6), nil, 1, ids(5)},
		"ties go to the lowest":          {eight, ids(7, 6, 5, 4, 3, 2, 1, 0), nil, 2, ids(0, 1)},
		"required come first":            {eight, ids(0, 1, 2, 3, 4, 5), ids(5), 2, ids(5, 4)},
		"required from outside the list": {eight, ids(0, 4), ids(6), 2, ids(6, 4)},
		"all required, though too many":  {eight, ids(0, 1, 2), ids(0, 1, 2), 1, ids(0, 1, 2)},
		"most pairs, then fewest left":   {onNodes(0, 0, 0, 1, 1, 1, 2, 2, 3), ids(0, 1, 2, 3, 4, 5, 6, 7, 8), nil, 4, ids(0, 1, 2, 8)},
		"NVLinks before NUMA nodes":      {pairs, ids(0, 1, 2, 3, 4, 5, 6, 7), nil, 2, ids(0, 5)},
		"more links before fewer":        {pairs, ids(1, 2, 3, 4, 6, 7), nil, 2, ids(1, 2)},
		"one that is linked to no other": {pairs, ids(0, 1, 2, 3, 4, 5, 6, 7), nil, 1, ids(3)},
		"linked to what is required":     {pairs, ids(0, 1, 2, 3, 4, 5, 6, 7), ids(5), 2, ids(5, 0)},
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

// anyNode is a made-up node: NUMA nodes, PCIe trees, NVLinks in pairs or to switches, a sick GPU here
// and there. Some are as regular as real ones are, so that there are ties.
func anyNode(rnd *rand.Rand, total int) *gpu.Snapshot {
	s := gputest.Node(total)
	for i := range s.Devices {
		d := &s.Devices[i]
		d.NUMANode = i*2/total - rnd.IntN(2)*rnd.IntN(2)
		if rnd.IntN(3) > 0 {
			d.PCIPath = []string{fmt.Sprintf("pci0000:%02x", i/8), fmt.Sprintf("0000:%02x:01.0", i/4), "0000:01:00.0", fmt.Sprintf("0000:02:%02x.0", i%(1+rnd.IntN(4))), fmt.Sprintf("0000:%02x:00.0", i)}
		}
		if rnd.IntN(4) == 0 {
			d.NVLinks = []gpu.NVLink{{Remote: "", Count: 18}}
		}
		if rnd.IntN(8) == 0 {
			d.Health = gpu.Health{Reason: gpu.Lost}
		}
	}
	for range rnd.IntN(2 * total) {
		if a, b := rnd.IntN(total), rnd.IntN(total); a != b {
			linked(s, [3]int{a, b, 1 + rnd.IntN(3)})
		}
	}
	return s
}

// worth is what Prefer maximises, most important first: healthy units, the affinities of the pairs
// taken, those of the healthy pairs left.
func worth(s *gpu.Snapshot, set uint) [3]int {
	var w [3]int
	for i := range s.Devices {
		a := &s.Devices[i]
		in := set&(1<<i) != 0
		if in && a.Health.OK() {
			w[0]++
		}
		for j := range i {
			switch b := &s.Devices[j]; {
			case in && set&(1<<j) != 0:
				w[1] += resource.Affinity(a, b)
			case !in && set&(1<<j) == 0 && a.Health.OK() && b.Health.OK():
				w[2] += resource.Affinity(a, b)
			}
		}
	}
	return w
}

func setOf(s *gpu.Snapshot, picked []resource.ID) (set uint) {
	for _, id := range picked {
		set |= 1 << s.Device(id.Device()).Index
	}
	return set
}

func TestPreferIsAsGoodAsTryingAllSets(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	p := policy(t, resource.Config{})
	for round := range 400 {
		total := 1 + rnd.IntN(10)
		if round%40 == 0 {
			total = 16
		}
		s := anyNode(rnd, total)
		var available []resource.ID
		for i := range total {
			available = append(available, ids(i)...)
		}
		rnd.Shuffle(total, func(i, j int) { available[i], available[j] = available[j], available[i] })
		required := slices.Clone(available[:rnd.IntN(min(total, 3))])
		n := len(required) + rnd.IntN(total-len(required)+1)

		got := p.Prefer(s, available, required, n)
		require.Len(t, got, n)
		must, best := setOf(s, required), worth(s, setOf(s, got))
		require.Equal(t, must, must&setOf(s, got), "required are there")
		for set := range uint(1) << total {
			if bits.OnesCount(set) != n || set&must != must {
				continue
			}
			// Where healthy ones do not suffice, what is left is sick: nobody is to be left a good group.
			w := worth(s, set)
			if best[0] < n-bits.OnesCount(must) {
				w[2], best[2] = 0, 0
			}
			if slices.Compare(w[:], best[:]) > 0 {
				t.Fatalf("round %d: n %d of %d, required %b: %b is worth %v, but %b is worth %v", round, n, total, must, setOf(s, got), best, set, w)
			}
		}
		rnd.Shuffle(total, func(i, j int) { available[i], available[j] = available[j], available[i] })
		require.Equal(t, got, p.Prefer(s, available, required, n), "the order of what is available must not matter")
	}
}

func TestBeyondSixteenGPUsNoExchangeOfOneIsBetter(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 4))
	p := policy(t, resource.Config{})
	for range 5 {
		s := anyNode(rnd, 32)
		var available []resource.ID
		for i := range s.Devices {
			s.Devices[i].Health = gpu.Health{}
			available = append(available, ids(i)...)
		}
		got := p.Prefer(s, available, nil, 16)
		require.Len(t, got, 16)
		set := setOf(s, got)
		best := worth(s, set)
		for i := range 32 {
			for j := range 32 {
				if set&(1<<i) != 0 && set&(1<<j) == 0 {
					w := worth(s, set&^(1<<i)|1<<j)
					require.LessOrEqual(t, slices.Compare(w[:], best[:]), 0)
				}
			}
		}
	}
}

func shares(gpus []int, per int) []resource.ID {
	var list []resource.ID
	for _, i := range gpus {
		for n := range per {
			list = append(list, resource.ID(fmt.Sprintf("%s::%d", gputest.UUID(i), n)))
		}
	}
	return list
}

func share(i, n int) resource.ID { return resource.ID(fmt.Sprintf("%s::%d", gputest.UUID(i), n)) }

func TestPreferSpreadsOrPacksShares(t *testing.T) {
	t.Parallel()
	s := onNodes(0, 0, 1, 1)
	sliced := func(allocation string) resource.Policy {
		return policy(t, resource.Config{Allocation: allocation, TimeSlicing: &resource.Sharing{
			Resources: []resource.Shared{{Name: "nvidia.com/gpu", Replicas: 12}},
		}})
	}
	free := shares([]int{0, 1, 2, 3}, 12)
	without := func(gone ...resource.ID) []resource.ID {
		return slices.DeleteFunc(slices.Clone(free), func(id resource.ID) bool { return slices.Contains(gone, id) })
	}
	for name, c := range map[string]struct {
		allocation          string
		s                   *gpu.Snapshot
		available, required []resource.ID
		n                   int
		want                []resource.ID
	}{
		"the fewest in use":                    {"", s, without(share(0, 0), share(1, 5), share(3, 1)), nil, 1, []resource.ID{share(2, 0)}},
		"each from another GPU, near first":    {"", s, without(share(0, 0)), nil, 3, []resource.ID{share(1, 0), share(2, 0), share(3, 0)}},
		"shares by number, not by letter":      {"", s, []resource.ID{share(1, 10), share(1, 2)}, nil, 1, []resource.ID{share(1, 2)}},
		"the most in use":                      {resource.Packed, s, without(share(2, 0)), nil, 2, []resource.ID{share(2, 1), share(2, 2)}},
		"on with the next when full":           {resource.Packed, s, append(shares([]int{0, 1}, 12), share(2, 3)), nil, 3, []resource.ID{share(2, 3), share(0, 0), share(0, 1)}},
		"required counts as in use":            {"", s, free, []resource.ID{share(0, 4)}, 2, []resource.ID{share(0, 4), share(1, 0)}},
		"never a sick GPU's while one is left": {"", gputest.Sick(s, 3, gpu.Lost), append(shares([]int{3}, 12), share(0, 11)), nil, 1, []resource.ID{share(0, 11)}},
		"and then a sick one's":                {"", gputest.Sick(s, 3, gpu.Lost), append(shares([]int{3}, 12), share(0, 11)), nil, 2, []resource.ID{share(0, 11), share(3, 0)}},
	} {
		got := sliced(c.allocation).Prefer(c.s, c.available, c.required, c.n)
		require.Equal(t, c.want, got, name)
		slices.Reverse(c.available)
		require.Equal(t, c.want, sliced(c.allocation).Prefer(c.s, c.available, c.required, c.n), name)
	}
}

// Not parallel: it counts allocations.
func TestPreferCostsLittleHoweverLongTheLists(t *testing.T) {
	var strangers []resource.ID
	for i := range 4000 {
		strangers = append(strangers, resource.ID(fmt.Sprintf("GPU-unheard-of-%04d", i)))
	}
	sliced := resource.Config{TimeSlicing: &resource.Sharing{Resources: []resource.Shared{{Name: "nvidia.com/gpu", Replicas: 1000}}}}
	all := shares([]int{0, 1, 2, 3, 4, 5, 6, 7}, 1000)
	for name, c := range map[string]struct {
		cfg       resource.Config
		available []resource.ID
		first     resource.ID
		most      float64 // allocations
	}{
		"unknown":                  {resource.Config{}, strangers, strangers[0], 200},
		"unknown, of a split node": {sliced, strangers, strangers[0], 3 * 8000},
		"shares":                   {sliced, all, share(0, 0), 3 * 8000},
	} {
		p, s := policy(t, c.cfg), gputest.Node(8)
		var got []resource.ID
		n := len(c.available) / 2
		require.LessOrEqual(t, testing.AllocsPerRun(1, func() { got = p.Prefer(s, c.available, nil, n) }), c.most, name)
		require.Len(t, got, n, name)
		require.Equal(t, c.first, got[0], name)
	}
}

func TestPreferSpreadsInstancesOverGPUs(t *testing.T) {
	t.Parallel()
	s := splitNode("1g.10gb", "1g.10gb", "1g.10gb")
	p := policy(t, resource.Config{MIGStrategy: resource.MIGMixed})
	available := []resource.ID{mig(0, 1), mig(0, 2), mig(1, 0), mig(1, 1), mig(1, 2)} // mig(0, 0) is in use
	require.Equal(t, []resource.ID{mig(1, 0), mig(0, 1)}, p.Prefer(s, available, nil, 2))
	packed := policy(t, resource.Config{MIGStrategy: resource.MIGMixed, Allocation: resource.Packed})
	require.Equal(t, []resource.ID{mig(0, 1), mig(0, 2)}, packed.Prefer(s, available, nil, 2))
}

func BenchmarkPrefer16(b *testing.B) {
	whole := policy(b, resource.Config{})
	sliced := policy(b, resource.Config{TimeSlicing: &resource.Sharing{Resources: []resource.Shared{{Name: "nvidia.com/gpu", Replicas: 10}}}})
	var all []resource.ID
	for i := range 16 {
		all = append(all, ids(i)...)
	}
	mesh := gputest.Node(16)
	for i := range 16 {
		for j := range i {
			linked(mesh, [3]int{i, j, 1 + (i+j)%3})
		}
	}
	for name, c := range map[string]struct {
		p         resource.Policy
		s         *gpu.Snapshot
		available []resource.ID
	}{
		"2nodes":   {whole, gputest.Node(16), all},
		"16nodes":  {whole, onNodes(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), all},
		"mesh":     {whole, mesh, all},
		"10shares": {sliced, mesh, shares([]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, 10)},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c.p.Prefer(c.s, c.available, nil, 8)
			}
		})
	}
}
