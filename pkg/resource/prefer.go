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
	unknown // not offered
	tiers
)

type candidate struct {
	id    ID
	tier  int
	order int   // by GPU, instance and share; the last of all when unknown
	item  *item // nil when unknown
}

func (c candidate) device() *gpu.Device {
	if c.item == nil {
		return nil
	}
	return c.item.device
}

// Prefer picks n of the available units, required ones included: healthy before unhealthy before
// unknown. Of whole GPUs it picks the set whose pairs have the highest sum of affinities, and of those
// sets the one that leaves the highest sum to whoever comes next, so that large groups stay whole; ties
// go to the lower index. Shares and MIG instances it picks one by one, as Config.Allocation says. The
// answer depends on the sets alone, not on their order: the kubelet's comes at random.
//
// It never fails, because the kubelet rejects the pod when it does: it returns fewer than n where
// there are fewer, and all of required even where that is more.
func (p Policy) Prefer(s *gpu.Snapshot, available, required []ID, n int) []ID {
	items, _ := p.items(s)
	all := candidates(items, available, required)
	var picked []candidate
	var rest [tiers][]candidate
	split := false
	must := make(map[ID]bool, len(required))
	for _, id := range required {
		must[id] = true
	}
	for _, c := range all {
		split = split || c.item != nil && (c.item.kind != "" || c.item.instance != nil)
		if must[c.id] {
			picked = append(picked, c)
		} else {
			rest[c.tier] = append(rest[c.tier], c)
		}
	}
	var use usage
	if split {
		use = usageOf(items, slices.Concat(rest[:]...))
		use.packed = p.cfg.Allocation == Packed
	}
	for i, tier := range rest {
		switch need := n - len(picked); {
		case need <= 0:
		case need >= len(tier):
			picked = append(picked, tier...)
		case i == unknown: // as good as each other, and as many as whoever asks likes: nothing to search for
			picked = append(picked, tier[:need]...)
		case split:
			picked = append(picked, use.pick(tier, picked, need)...)
		default:
			picked = append(picked, closest(tier, picked, need)...)
		}
	}
	ids := make([]ID, len(picked))
	for i, c := range picked {
		ids[i] = c.id
	}
	return ids
}

// candidates are the distinct units of both lists in the order of what is offered.
func candidates(items []item, available, required []ID) []candidate {
	place := make(map[ID]int, len(items))
	for i := range items {
		place[items[i].ID] = i
	}
	var cs []candidate
	for _, id := range slices.Concat(available, required) {
		c := candidate{id: id, tier: unknown, order: math.MaxInt}
		if i, known := place[id]; known {
			c.tier, c.order, c.item = healthy, i, &items[i]
			if !c.item.Healthy {
				c.tier = unhealthy
			}
		}
		cs = append(cs, c)
	}
	slices.SortFunc(cs, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.id, b.id))
	})
	return slices.Compact(cs)
}

// manySets bounds the search that looks at every set. Half of 16 GPUs are 12,870 sets; NVIDIA's plugin
// looks at every partition instead, and takes seconds there.
const manySets = 20000

// closest picks need of the candidates, which are more than that: exactly the best set as Prefer
// defines it, or where there are more than manySets of them, one that no exchange of a single GPU makes
// better.
func closest(cs, picked []candidate, need int) []candidate {
	s := newSearch(cs, picked, need)
	if sets(len(cs), need) <= manySets {
		s.all(0, 0, 0)
	} else {
		s.climb()
	}
	out := make([]candidate, need)
	for i, c := range s.best {
		out[i] = cs[c]
	}
	return out
}

// sets is how many sets of k of n there are, or more than manySets.
func sets(n, k int) int {
	k = min(k, n-k)
	count := 1
	for i := range k {
		if count = count * (n - i) / (i + 1); count > manySets {
			break
		}
	}
	return count
}

// search is for the best set of some candidates, which go by their place in a list. The sum of the
// affinities in what is taken is "in"; that of what the others have among them, less a constant, "left".
type search struct {
	score [][]int // of each pair
	taken []int   // of each with all that is picked already
	left  []int   // of each with all other candidates: what taking it costs whoever comes next
	need  int

	chosen           []int
	gain             [][]int // by how many are chosen: what each candidate adds to "in"
	best             []int
	bestIn, bestLeft int
}

func newSearch(cs, picked []candidate, need int) *search {
	s := &search{taken: make([]int, len(cs)), left: make([]int, len(cs)), need: need}
	for i, c := range cs {
		s.score = append(s.score, make([]int, len(cs)))
		for j := range i {
			w := affinity(c.device(), cs[j].device())
			s.score[i][j], s.score[j][i] = w, w
			s.left[i] += w
			s.left[j] += w
		}
		for _, p := range picked {
			s.taken[i] += affinity(c.device(), p.device())
		}
	}
	s.gain = append(s.gain, s.taken)
	for range need {
		s.gain = append(s.gain, make([]int, len(cs)))
	}
	return s
}

// all tries every set that goes on from the chosen ones with candidates from next on. Sets come in the
// order of their indexes, so the first of equals is the lowest.
func (s *search) all(next, in, left int) {
	depth := len(s.chosen)
	if depth == s.need {
		s.offer(in, left)
		return
	}
	for c := next; c <= len(s.taken)-(s.need-depth); c++ {
		dIn, dLeft := s.choose(c)
		s.all(c+1, in+dIn, left+dLeft)
		s.chosen = s.chosen[:depth]
	}
}

// choose adds c to the chosen, and says what "in" and "left" become more by. A pair of two chosen ones was
// taken off "left" twice.
func (s *search) choose(c int) (in, left int) {
	depth := len(s.chosen)
	in = s.gain[depth][c]
	if s.chosen = append(s.chosen, c); len(s.chosen) < s.need {
		row, before, after := s.score[c], s.gain[depth], s.gain[depth+1]
		for i := c + 1; i < len(row); i++ { // the chosen come in order
			after[i] = before[i] + row[i]
		}
	}
	return in, in - s.taken[c] - s.left[c]
}

func (s *search) offer(in, left int) {
	if s.best == nil || in > s.bestIn || in == s.bestIn && left > s.bestLeft {
		s.best, s.bestIn, s.bestLeft = append(s.best[:0], s.chosen...), in, left
	}
}

// climb starts from the lowest indexes and exchanges single candidates as long as that helps; each
// exchange is strictly better, so it ends.
func (s *search) climb() {
	set := make([]int, s.need)
	for i := range set {
		set[i] = i
	}
	s.weigh(set)
	for better := true; better; {
		better = false
		base := slices.Clone(s.best)
		for i := range base {
			for c := range s.taken {
				if slices.Contains(base, c) {
					continue
				}
				try := slices.Clone(base)
				try[i] = c
				slices.Sort(try)
				in, left := s.bestIn, s.bestLeft
				s.weigh(try)
				better = better || s.bestIn != in || s.bestLeft != left
			}
		}
	}
}

// weigh tries one set, which is in order.
func (s *search) weigh(set []int) {
	s.chosen = s.chosen[:0]
	in, left := 0, 0
	for _, c := range set {
		dIn, dLeft := s.choose(c)
		in, left = in+dIn, left+dLeft
	}
	s.offer(in, left)
}
