package nvml

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// slot is one index of a session. Owned by the loop.
type slot struct {
	reader *reader
	gpu    *tracked // nil until somebody is known to sit there

	pending  bool
	deadline time.Time // of the pending sample
	hung     bool      // the pending sample missed its deadline
	heard    bool      // it answered or missed its deadline at least once
	last     answer    // the last final one
}

// follow runs one session: it starts a reader per GPU and the listener, and publishes what they say until
// ctx is done (nil) or the driver must be opened again (why).
func (m *Monitor) follow(ctx context.Context, s session, count int, inv *inventory) error {
	f := &follower{Monitor: m, inv: inv, slots: make([]slot, count)}
	quit := make(chan struct{})
	answers, notices := make(chan answer), make(chan notice)
	var readers, listeners sync.WaitGroup
	for i := range f.slots {
		r := newReader(i, s, m.host)
		f.slots[i].reader = r
		readers.Go(func() { r.run(quit, answers) })
	}
	f.listen = func() { listeners.Go(func() { listen(s, m.interval, quit, notices) }) }

	err := f.loop(ctx, answers, notices)

	close(quit)
	gone := make(chan struct{})
	go func() {
		readers.Wait()
		listeners.Wait()
		s.Close() // only here: it must not run beside another call
		close(gone)
	}()
	left := time.NewTimer(parting)
	defer left.Stop()
	select {
	case <-gone:
	case <-left.C:
		m.log.Warn("a driver call is stuck; leaving it behind")
	}
	return err
}

// follower is the state of the loop during one session.
type follower struct {
	*Monitor
	inv     *inventory
	slots   []slot
	listen  func() // starts the listener
	settled bool   // every slot was heard of: the inventory may be shown
	dirty   bool   // something is not published yet
}

func (f *follower) loop(ctx context.Context, answers <-chan answer, notices <-chan notice) error {
	tick := time.NewTicker(f.interval)
	defer tick.Stop()
	late := time.NewTimer(f.deadline)
	defer late.Stop()
	flush := time.NewTimer(settle)
	defer flush.Stop()

	f.askAll()
	f.settle()
	for {
		wasDirty, urgent := f.dirty, false
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f.askAll()
		case <-late.C:
			urgent = f.expire()
		case a := <-answers:
			urgent, err = f.take(a)
			urgent = urgent || f.idle() // the round is complete
		case n := <-notices:
			urgent, err = f.hear(n)
		case <-flush.C:
			urgent = f.dirty
		}
		if err != nil {
			return err
		}
		if f.settle() || f.settled && f.dirty && urgent {
			f.publish(f.inv)
			f.dirty = false
		}
		if f.dirty && !wasDirty {
			flush.Reset(settle)
		}
		late.Reset(f.untilLate())
	}
}

// askAll asks every GPU that is not busy.
func (f *follower) askAll() {
	for i := range f.slots {
		if !f.slots[i].pending {
			f.ask(&f.slots[i])
		}
	}
}

func (f *follower) ask(s *slot) {
	s.pending, s.hung, s.deadline = true, false, time.Now().Add(f.deadline)
	s.reader.ask <- struct{}{}
}

// idle says that no answer is due: all there is to know is known.
func (f *follower) idle() bool {
	for _, s := range f.slots {
		if s.pending && !s.hung {
			return false
		}
	}
	return true
}

// untilLate is the time to the nearest deadline.
func (f *follower) untilLate() time.Duration {
	next := f.interval
	for _, s := range f.slots {
		if s.pending && !s.hung {
			next = min(next, time.Until(s.deadline))
		}
	}
	return max(next, 0)
}

// expire gives up waiting for the answers that are late.
func (f *follower) expire() (urgent bool) {
	now := time.Now()
	for i := range f.slots {
		s := &f.slots[i]
		if !s.pending || s.hung || now.Before(s.deadline) {
			continue
		}
		s.hung, s.heard = true, true
		if s.gpu != nil {
			before := s.gpu.health()
			s.gpu.hung(f.deadline, now)
			f.say(s.gpu, before)
		}
		f.dirty, urgent = true, true
	}
	return urgent
}

// take takes over an answer.
func (f *follower) take(a answer) (urgent bool, err error) {
	if a.fault.driverGone() {
		return false, errors.New(a.fault.explain())
	}
	s := &f.slots[a.index]
	s.heard, f.dirty = true, true
	if a.identified {
		urgent = f.identify(s, a)
	}
	if !a.final {
		return urgent, nil
	}
	late := s.hung
	s.pending, s.hung, s.last = false, false, a
	if late && a.fault == success {
		// Its readings are as old as the call was stuck. It stays hung until it answers in time.
		f.ask(s)
		return urgent, nil
	}
	if s.gpu == nil {
		return urgent, nil
	}
	before := s.gpu.health()
	changed := s.gpu.read(a, time.Now())
	f.say(s.gpu, before)
	return urgent || changed, nil
}

// identify notes who sits in a slot.
func (f *follower) identify(s *slot, a answer) (urgent bool) {
	g := f.inv.byUUID(a.device)
	g.device = a.device
	if s.gpu == g {
		return false
	}
	s.gpu = g
	if f.settled {
		f.reconcile()
	}
	return true
}

// settle shows the inventory once every slot was heard of, not before: the kubelet must not see three GPUs,
// then five, then eight. It reports whether that has just happened.
func (f *follower) settle() bool {
	if f.settled {
		return false
	}
	for _, s := range f.slots {
		if !s.heard {
			return false
		}
	}
	f.settled = true
	f.reconcile()
	f.listen()
	return true
}

// reconcile gives a slot that does not say who it is the GPU that was last seen there, and marks the GPUs
// that have no slot as lost.
func (f *follower) reconcile() {
	now := time.Now()
	bound := map[*tracked]bool{}
	for _, s := range f.slots {
		bound[s.gpu] = true
	}
	f.inv.unidentified = 0
	for i := range f.slots {
		s := &f.slots[i]
		if s.gpu != nil {
			continue
		}
		g := f.inv.byIndex(i)
		switch {
		case g == nil || bound[g]:
			f.inv.unidentified++
			why := "no answer in time"
			if !s.hung {
				why = s.last.fault.explain()
			}
			f.log.Warn("a GPU does not say who it is and is in no list", "gpu", i, "why", why)
			continue
		case s.hung:
			g.hung(f.deadline, now)
		default:
			g.read(s.last, now)
		}
		s.gpu, bound[g] = g, true
	}
	for _, g := range f.inv.gpus {
		if !bound[g] {
			before := g.health()
			g.unlisted(now)
			f.say(g, before)
		}
	}
}

// hear takes over what the listener says.
func (f *follower) hear(n notice) (urgent bool, err error) {
	switch {
	case n.fault.driverGone():
		return false, errors.New(n.fault.explain())
	case n.xid == nil && n.fault == success && n.count != len(f.slots):
		return false, fmt.Errorf("%w from %d to %d", errRescan, len(f.slots), n.count)
	case n.xid == nil:
		return false, nil
	}
	i := n.xid.GPU
	if i < 0 || i >= len(f.slots) || f.slots[i].gpu == nil {
		f.log.Warn("XID of no known GPU", "xid", n.xid.Code)
		return false, nil
	}
	g := f.slots[i].gpu
	before := g.health()
	f.dirty = true
	urgent = g.countXID(n.xid.Code, time.Now())
	f.say(g, before)
	return urgent, nil
}

// say tells a person when a GPU's health is no longer what it was.
func (f *follower) say(g *tracked, before gpu.Health) {
	now := g.health()
	switch {
	case now.Reason == before.Reason && now.Text == before.Text:
	case now.OK():
		f.log.Info("GPU healthy again", "gpu", g.device.Index, "uuid", g.device.UUID, "was", before.Reason)
	default:
		f.log.Warn("GPU unhealthy", "gpu", g.device.Index, "uuid", g.device.UUID,
			"reason", now.Reason, "text", now.Text, "needs", now.Needs)
	}
}
