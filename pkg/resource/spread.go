package resource

import (
	"cmp"
	"slices"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// usage is how much of each GPU and of each MIG instance is in use, in units of the resource in question.
type usage struct {
	of     map[gpu.UUID]int
	packed bool
}

// usageOf counts what is offered and not free. All candidates are of one resource.
func usageOf(items []item, free []candidate) usage {
	use := usage{of: map[gpu.UUID]int{}}
	var resource string
	for _, c := range free {
		if c.item != nil {
			resource = c.item.resource
			break
		}
	}
	for i := range items {
		if items[i].resource == resource {
			use.add(&items[i], 1)
		}
	}
	for _, c := range free {
		if c.item != nil {
			use.add(c.item, -1)
		}
	}
	return use
}

func (u usage) add(it *item, n int) {
	u.of[it.Device] += n
	if it.instance != nil {
		u.of[it.instance.UUID] += n
	}
}

// pick takes need of the candidates, which are more than that, one by one: each from the GPU or instance
// with the fewest shares in use, or with the most when packed; then likewise by the GPU that an instance
// is on; then the nearest to what is picked already; then the lowest.
func (u usage) pick(cs, picked []candidate, need int) []candidate {
	cs, taken := slices.Clone(cs), slices.Clone(picked)
	for range need {
		best := 0
		for i := range cs {
			// Free shares of one thing stand together and are as good as each other.
			if i > 0 && sameThing(cs[i], cs[i-1]) {
				continue
			}
			if u.better(cs[i], cs[best], taken) {
				best = i
			}
		}
		if it := cs[best].item; it != nil {
			u.add(it, 1)
		}
		taken = append(taken, cs[best])
		cs = slices.Delete(cs, best, best+1)
	}
	return taken[len(picked):]
}

func sameThing(a, b candidate) bool {
	return a.item != nil && b.item != nil && a.item.uuid() == b.item.uuid()
}

func (u usage) better(a, b candidate, picked []candidate) bool {
	if a.item == nil || b.item == nil {
		return false // the order stands
	}
	load := cmp.Or(cmp.Compare(u.of[a.item.uuid()], u.of[b.item.uuid()]), cmp.Compare(u.of[a.item.Device], u.of[b.item.Device]))
	if load != 0 {
		return (load < 0) != u.packed
	}
	return nearness(a, picked) > nearness(b, picked)
}

func nearness(c candidate, picked []candidate) int {
	sum := 0
	for _, p := range picked {
		if p.device() != c.device() {
			sum += affinity(c.device(), p.device())
		}
	}
	return sum
}
