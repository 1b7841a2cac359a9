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

// queue is the free shares of one GPU or MIG instance, in order: they are as good as each other.
type queue struct {
	free []candidate
	near int // affinity to all that is picked from other GPUs
}

func (q *queue) item() *item { return q.free[0].item }

// came notes that a unit of d, which is nil when unknown, was picked.
func (q *queue) came(d *gpu.Device) {
	if own := q.item().device; own != d {
		q.near += affinity(own, d)
	}
}

// pick takes need of the candidates, which are known and more than that, one by one: each from the GPU or
// instance with the fewest shares in use, or with the most when packed; then likewise by the GPU that an
// instance is on; then the nearest to what is picked already; then the lowest. There may be thousands of
// shares, so it looks at what they are of.
func (u usage) pick(cs, picked []candidate, need int) []candidate {
	queues := queuesOf(cs)
	for i := range queues {
		for _, p := range picked {
			queues[i].came(p.device())
		}
	}
	taken := make([]candidate, 0, need)
	for range need {
		best := 0
		for i := range queues {
			if u.better(&queues[i], &queues[best]) {
				best = i
			}
		}
		c := queues[best].free[0]
		u.add(c.item, 1)
		taken = append(taken, c)
		for i := range queues {
			queues[i].came(c.device())
		}
		if queues[best].free = queues[best].free[1:]; len(queues[best].free) == 0 {
			queues = slices.Delete(queues, best, best+1)
		}
	}
	return taken
}

// queuesOf splits candidates in order by what they are of; shares of one thing stand together.
func queuesOf(cs []candidate) []queue {
	var queues []queue
	for from, i := 0, 1; i <= len(cs); i++ {
		if i == len(cs) || cs[i].item.uuid() != cs[from].item.uuid() {
			queues = append(queues, queue{free: cs[from:i]})
			from = i
		}
	}
	return queues
}

func (u usage) better(a, b *queue) bool {
	x, y := a.item(), b.item()
	load := cmp.Or(cmp.Compare(u.of[x.uuid()], u.of[y.uuid()]), cmp.Compare(u.of[x.Device], u.of[y.Device]))
	if load != 0 {
		return (load < 0) != u.packed
	}
	return a.near > b.near
}
