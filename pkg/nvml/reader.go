package nvml

import (
	"slices"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// answer is what a reader tells the loop. A sample of a GPU that was just opened is two answers: first who
// it is, so that the inventory does not wait for slow readings, then the readings.
type answer struct {
	index int
	final bool // the reader may be asked again

	identified bool
	device     gpu.Device // when identified; Health, Stats and counts are the loop's
	binding    uint64     // see marks; 0 when unknown

	stats    *gpu.Stats // nil when the GPU could not be read
	taken    time.Time  // of stats
	failures []failure
	fault    code // why stats is nil; success on the first of two answers
}

type failure struct {
	op   op
	code code
}

// try asks for one reading, unless it is known to be unsupported or the GPU is gone, and notes what failed.
func (a *answer) try(o op, unsupported map[op]bool, read func() code) (ok bool) {
	if unsupported[o] || a.fault != success {
		return false
	}
	c := read()
	switch {
	case c == success:
		return true
	case c.unsupported():
		unsupported[o] = true
		return false
	}
	a.failures = append(a.failures, failure{o, c})
	if c.gpuGone() || c.driverGone() {
		a.fault = c
	}
	return false
}

// placeEvery is how often it is asked where a GPU sits. Links fail and come back while the driver runs; which
// GPUs are preferred together may lag behind that by this much.
const placeEvery = time.Minute

// host is where the kernel's view of the GPUs is looked up.
type host struct {
	sysfs  string // root of /sys; empty where there are no real PCI devices to look up
	procfs string // root of /proc; empty where there is no driver behind it
}

// reader is the one goroutine that enters C for one GPU. The loop touches only ask.
type reader struct {
	index   int
	session session
	host    host
	ask     chan struct{} // one slot: the loop never asks a reader that has not answered
	opened  chan struct{} // one slot: for the GPU's listener, after each time that it was opened

	card        card
	device      gpu.Device
	placed      time.Time      // when it was last asked where the GPU sits
	capMinors   map[string]int // of the GPU's capability nodes; nil before they were needed
	unsupported map[op]bool    // never asked again in this session, unless MIG changes
}

func newReader(index int, s session, h host) *reader {
	return &reader{
		index: index, session: s, host: h,
		ask:         make(chan struct{}, 1),
		opened:      make(chan struct{}, 1),
		device:      gpu.Device{Index: index, Minor: -1, NUMANode: -1},
		unsupported: map[op]bool{},
	}
}

// run answers each ask until quit is closed.
func (r *reader) run(quit <-chan struct{}, answers chan<- answer) {
	defer r.drop()
	send := func(a answer) {
		select {
		case answers <- a:
		case <-quit:
		}
	}
	for {
		select {
		case <-quit:
			return
		case <-r.ask:
		}
		opened := r.card == nil
		a := r.identify()
		if opened && !a.final {
			send(a)
		}
		if !a.final {
			a = r.sample(a)
		}
		send(a)
	}
}

// drop forgets the handle: after a reset or a rescan the old one is of no use.
func (r *reader) drop() {
	if r.card != nil {
		r.card.Close()
		r.card = nil
	}
}

// identify is asked on every sample: MIG and fabric membership change while the driver runs.
// Its answer is final when the GPU cannot be identified, or does not say how it is split.
func (r *reader) identify() answer {
	a := answer{index: r.index}
	fail := func(o op, c code) answer {
		r.drop()
		a.final, a.fault = true, c
		a.failures = append(a.failures, failure{o, c})
		return a
	}
	fresh := r.card == nil
	if fresh {
		card, c := r.session.GPU(r.index)
		if c != success {
			return fail(opIdentify, c)
		}
		r.card = card
	}
	if c := r.card.Identify(&r.device); c != success {
		return fail(opIdentify, c)
	}
	if fresh {
		select {
		case r.opened <- struct{}{}:
		default: // it has yet to take note of the time before
		}
	}
	if r.host.sysfs != "" {
		a.binding = bindingOf(r.host.sysfs, r.device.PCIBusID)
	}
	was := r.device.MIGEnabled
	c := r.partition()
	a.identified, a.device = true, r.device
	if c != success {
		return fail(opMIG, c)
	}
	if r.device.MIGEnabled != was {
		clear(r.unsupported)
		if !fresh {
			// The GPU was reset to change its mode: no handle of before counts.
			r.drop()
			return r.identify()
		}
	}
	if fresh || time.Since(r.placed) >= placeEvery {
		r.place(&a)
	}
	return a
}

// partition learns how the GPU is split. Instances come and go under the questions, so that a failure may
// be no more than one that has just gone: it is asked twice.
func (r *reader) partition() code {
	before := r.device.Instances
	c := r.card.Partition(&r.device)
	if c != success && !c.gpuGone() && !c.driverGone() {
		c = r.card.Partition(&r.device)
	}
	if c != success {
		return c
	}
	if !slices.EqualFunc(before, r.device.Instances, sameInstance) {
		for _, o := range instanceOps {
			delete(r.unsupported, ofInstance(o))
		}
	}
	if len(r.device.Instances) > 0 && r.host.procfs != "" {
		if r.capMinors == nil {
			r.capMinors = readCapMinors(r.host.procfs, r.device.Minor)
		}
		nameCapabilities(r.device.Instances, r.capMinors)
	}
	return success
}

// place learns where the GPU sits. That is worth having, not needed: what cannot be read is as it was.
func (r *reader) place(a *answer) {
	r.placed = time.Now()
	if r.host.sysfs != "" {
		lookUpPCI(r.host.sysfs, &r.device)
	}
	a.try(opLinks, r.unsupported, func() code { return r.card.Links(&r.device) })
	if a.fault != success {
		r.drop()
		a.final = true
	}
	a.device = r.device
}

func (r *reader) sample(a answer) answer {
	a.final = true
	stats, answered, before := &gpu.Stats{}, 0, len(a.failures)
	for _, o := range ops {
		if a.try(o, r.unsupported, func() code { return r.card.Read(o, stats) }) {
			answered++
		}
	}
	if a.fault == success && answered == 0 && len(a.failures) > before {
		a.fault = a.failures[before].code
	}
	r.sampleInstances(&a)
	if a.fault != success {
		r.drop()
		return a
	}
	a.stats, a.taken = stats, time.Now()
	return a
}

// sampleInstances reads each GPU instance once: its compute instances share its memory and its engines.
func (r *reader) sampleInstances(a *answer) {
	a.device.Instances = slices.Clone(a.device.Instances) // the loop may have the other
	read := map[int]*gpu.Stats{}
	for i := range a.device.Instances {
		in := &a.device.Instances[i]
		s, ok := read[in.GI]
		if !ok {
			s = &gpu.Stats{}
			read[in.GI] = s
			for _, o := range instanceOps {
				a.try(ofInstance(o), r.unsupported, func() code { return r.card.ReadInstance(*in, o, s) })
			}
		}
		in.Stats = s
	}
}
