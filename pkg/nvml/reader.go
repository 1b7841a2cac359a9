package nvml

import (
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

	stats    *gpu.Stats // nil when the GPU could not be read
	taken    time.Time  // of stats
	failures []failure
	fault    code // why stats is nil; success on the first of two answers
}

type failure struct {
	op   op
	code code
}

// reader is the one goroutine that enters C for one GPU. The loop touches only ask.
type reader struct {
	index   int
	session session
	sysfs   string
	ask     chan struct{} // one slot: the loop never asks a reader that has not answered

	card        card
	device      gpu.Device
	unsupported map[op]bool // never asked again in this session
}

func newReader(index int, s session, sysfs string) *reader {
	return &reader{
		index: index, session: s, sysfs: sysfs,
		ask:         make(chan struct{}, 1),
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

// identify is asked on every sample: MIG mode and fabric membership change while the driver runs.
// Its answer is final when the GPU cannot be identified.
func (r *reader) identify() answer {
	a := answer{index: r.index}
	fail := func(c code) answer {
		r.drop()
		a.final, a.fault = true, c
		a.failures = []failure{{opIdentify, c}}
		return a
	}
	if r.card == nil {
		card, c := r.session.GPU(r.index)
		if c != success {
			return fail(c)
		}
		r.card = card
	}
	if c := r.card.Identify(&r.device); c != success {
		return fail(c)
	}
	if r.sysfs != "" {
		lookUpPCI(r.sysfs, &r.device)
	}
	a.identified, a.device = true, r.device
	return a
}

func (r *reader) sample(a answer) answer {
	a.final = true
	stats, answered := &gpu.Stats{}, 0
readings:
	for _, o := range ops {
		if r.unsupported[o] {
			continue
		}
		c := r.card.Read(o, stats)
		switch {
		case c == success:
			answered++
			continue
		case c.unsupported():
			r.unsupported[o] = true
			continue
		}
		a.failures = append(a.failures, failure{o, c})
		if c.gpuGone() || c.driverGone() {
			a.fault = c
			break readings
		}
	}
	if a.fault == success && answered == 0 && len(a.failures) > 0 {
		a.fault = a.failures[0].code
	}
	if a.fault != success {
		r.drop()
		return a
	}
	a.stats, a.taken = stats, time.Now()
	return a
}
