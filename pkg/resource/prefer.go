package resource

import (
	"cmp"
	"math"
	"slices"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// How willingly a unit is taken.
const (
	healthy = iota
	unhealthy
	unknown // not in the snapshot
	tiers
)

type candidate struct {
	id    ID
	tier  int
	numa  int
	index int
}

// Prefer picks n of the available units, required ones included: healthy before unhealthy before
// unknown, then on the fewest NUMA nodes, then on the nodes with the fewest units left over, so that
// large groups stay whole for whoever needs them; ties go to the lower node and index. The answer
// depends on the sets alone, not on their order: the kubelet's comes at random.
//
// It never fails, because the kubelet rejects the pod when it does: it returns fewer than n where
// there are fewer, and all of required even where that is more.
func (p Policy) Prefer(s *gpu.Snapshot, available, required []ID, n int) []ID {
	all := candidates(s, available, required)
	picked := make([]ID, 0, len(all))
	nodes := map[int]bool{} // NUMA nodes already used
	take := func(cs []candidate) {
		for _, c := range cs {
			picked = append(picked, c.id)
			nodes[c.numa] = true
		}
	}
	var rest [tiers][]candidate
	for _, c := range all {
		if slices.Contains(required, c.id) {
			take([]candidate{c})
		} else {
			rest[c.tier] = append(rest[c.tier], c)
		}
	}
	for _, tier := range rest {
		if need := n - len(picked); need >= len(tier) {
			take(tier)
		} else if need > 0 {
			take(tightest(tier, nodes, need))
		}
	}
	return picked
}

// candidates are the distinct units of both lists in the order of their GPUs.
func candidates(s *gpu.Snapshot, available, required []ID) []candidate {
	var cs []candidate
	for _, id := range slices.Concat(available, required) {
		c := candidate{id: id, tier: unknown, numa: -1, index: math.MaxInt}
		if d := s.Device(id.Device()); d != nil {
			c.tier, c.numa, c.index = healthy, d.NUMANode, d.Index
			if unfit(s, d) != "" {
				c.tier = unhealthy
			}
		}
		cs = append(cs, c)
	}
	slices.SortFunc(cs, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.id, b.id))
	})
	return slices.Compact(cs)
}

// tightest picks need of the candidates, which are more than that, on the fewest NUMA nodes beyond
// the used ones and with the fewest candidates left over on the nodes picked.
func tightest(cs []candidate, used map[int]bool, need int) []candidate {
	size := map[int]int{}
	free := 0 // candidates that cost no further node
	for _, c := range cs {
		if used[c.numa] {
			free++
		} else {
			size[c.numa]++
		}
	}
	var order []int
	for node := range size {
		order = append(order, node)
	}
	slices.Sort(order)
	extra := fewest(order, size, need-free)

	var picked []candidate
	for _, c := range cs {
		if len(picked) < need && (used[c.numa] || slices.Contains(extra, c.numa)) {
			picked = append(picked, c)
		}
	}
	return picked
}

// fewest is the smallest set of nodes that together hold need units, and of these the one that holds
// the fewest. Exact, by dynamic programming over (number of nodes, units held), so that no topology
// makes it slow: NVIDIA's plugin enumerates partitions and takes seconds at 16 GPUs.
func fewest(nodes []int, size map[int]int, need int) []int {
	if need <= 0 {
		return nil
	}
	total := 0
	for _, node := range nodes {
		total += size[node]
	}
	// sets[k][u] is the first found set of k nodes that hold u units together; nil when there is none.
	sets := make([][][]int, len(nodes)+1)
	for k := range sets {
		sets[k] = make([][]int, total+1)
	}
	sets[0][0] = []int{}
	for i, node := range nodes {
		for k := i; k >= 0; k-- {
			for u := total - size[node]; u >= 0; u-- {
				if from, to := sets[k][u], &sets[k+1][u+size[node]]; from != nil && *to == nil {
					*to = append(slices.Clone(from), node)
				}
			}
		}
	}
	for _, held := range sets {
		for u := need; u <= total; u++ {
			if held[u] != nil {
				return held[u]
			}
		}
	}
	return nodes
}
