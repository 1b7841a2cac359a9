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
	named  bool     // it has said who it is, in this session

	round    int       // of the last sample that was asked for
	asked    time.Time // of that sample
	wanted   bool      // another one is due, outside its turn
	pending  bool
	deadline time.Time // of the pending sample
	hung     bool      // the pending sample missed its deadline
	heard    bool      // it answered or missed its deadline at least once
	last     answer    // the last final one

	doubted   *answer // the last one, while it may be the driver's and not the GPU's: see doubt
	doubtedAt time.Time

	early []event // that came before it was known who sits here
}

const (
	// askGap is the least time between two samples outside a GPU's turn: a storm of XIDs asks no more often.
	askGap = 100 * time.Millisecond
	// maxEarly bounds slot.early.
	maxEarly = 64
)

// session runs one session: it starts a reader and a listener per GPU, and publishes what they say until
// ctx is done (nil) or the driver must be opened again (why).
func (m *Monitor) session(ctx context.Context, s session, count int, inv *inventory) error {
	f := &follower{Monitor: m, inv: inv, slots: make([]slot, count), recount: make(chan struct{}, 1)}
	quit := make(chan struct{})
	answers, notices := make(chan answer), make(chan notice)
	var callers sync.WaitGroup
	for i := range f.slots {
		r := newReader(i, s, m.host)
		f.slots[i].reader = r
		callers.Go(func() { r.run(quit, answers) })
		callers.Go(func() { listen(s, i, r.opened, quit, notices) })
	}
	callers.Go(func() { countGPUs(s, m.interval, f.recount, quit, notices) })

	err := f.loop(ctx, answers, notices)

	close(quit)
	gone := make(chan struct{})
	go func() {
		callers.Wait()
		s.Close() // only here: it must not run beside another call
		close(gone)
	}()
	left := time.NewTimer(parting)
	defer left.Stop()
	select {
	case <-gone:
	case <-left.C:
		m.log.Warn("a driver call is stuck; leaving it behind")
		if errors.Is(err, errReleased) {
			inv.released.done(errors.New("a driver call is stuck: the driver cannot be let go of; only the end of the agent's process, or a reboot, can help"))
			inv.released = nil
		}
	}
	return err
}

// follower is the state of the loop during one session.
type follower struct {
	*Monitor
	inv     *inventory
	slots   []slot
	recount chan struct{} // has the GPUs counted at once
	settled bool          // every slot was heard of: the inventory may be shown
	dirty   bool          // something is not published yet
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
		case call := <-f.wishes():
			call(f.inv)
			if f.inv.released != nil {
				err = errReleased
			}
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
		f.askWanted()
		late.Reset(f.untilLate())
	}
}

// wishes is where the wishes of others come from: nobody's, as long as the inventory may not be shown.
func (f *follower) wishes() <-chan func(*inventory) {
	if !f.settled {
		return nil
	}
	return f.calls
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
	now := time.Now()
	s.pending, s.hung, s.wanted, s.asked, s.deadline = true, false, false, now, now.Add(f.deadline)
	s.round++
	s.reader.ask <- struct{}{}
}

// askWanted asks those of whom something must be known before their turn.
func (f *follower) askWanted() {
	for i := range f.slots {
		if s := &f.slots[i]; s.wanted && !s.pending && time.Since(s.asked) >= askGap {
			f.ask(s)
		}
	}
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

// untilLate is the time to the nearest deadline, or to the next sample outside its turn.
func (f *follower) untilLate() time.Duration {
	next := f.interval
	for _, s := range f.slots {
		switch {
		case s.pending && !s.hung:
			next = min(next, time.Until(s.deadline))
		case s.wanted && !s.pending:
			next = min(next, askGap-time.Since(s.asked))
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
		if s.doubted != nil { // nobody else says that the driver is gone
			urgent = f.believe(s.doubtedAt) || urgent
			continue
		}
		s.hung, s.heard = true, true
		if s.gpu != nil {
			before := s.gpu.verdict()
			f.inv.hung(s.gpu, f.deadline, now)
			f.say(s.gpu, before)
		} else if f.settled {
			f.countUnidentified()
		}
		f.dirty, urgent = true, true
	}
	return urgent
}

// take takes over an answer.
func (f *follower) take(a answer) (urgent bool, err error) {
	s := &f.slots[a.index]
	if a.fault.driverGone() {
		return false, f.doubt(s, a)
	}
	return f.accept(s, a), nil
}

// accept takes over an answer that is the GPU's own.
func (f *follower) accept(s *slot, a answer) (urgent bool) {
	s.heard, f.dirty = true, true
	if a.identified {
		urgent = f.identify(s, a)
	}
	if !a.final {
		return urgent
	}
	late := s.hung
	s.pending, s.hung, s.last = false, false, a
	if late && a.fault == success {
		// Its readings are as old as the call was stuck. It stays hung until it answers in time.
		f.ask(s)
		return urgent
	}
	if s.gpu == nil {
		if f.settled {
			f.countUnidentified() // its answer may be another one
		}
		return urgent
	}
	before := s.gpu.verdict()
	changed := f.inv.read(s.gpu, a, s.round, time.Now())
	f.say(s.gpu, before)
	return urgent || changed
}

// identify notes who sits in a slot.
func (f *follower) identify(s *slot, a answer) (urgent bool) {
	s.named = true
	g := f.inv.byUUID(a.device)
	if urgent = !sameMIG(g.device, a.device); urgent {
		f.log.Info("MIG changed", "gpu", a.device.Index, "uuid", a.device.UUID,
			"was", describeMIG(g.device), "now", describeMIG(a.device))
	}
	g.device, g.binding = a.device, a.binding
	if s.gpu == g {
		return urgent
	}
	f.seat(s, g)
	if f.settled {
		f.reconcile()
	}
	return true
}

// seat notes that a GPU sits in a slot, and tells it what was heard of it before.
func (f *follower) seat(s *slot, g *tracked) {
	s.gpu = g
	for _, e := range s.early {
		f.event(s, e)
	}
	s.early = nil
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
	f.inv.present = f.present
	return true
}

// reconcile gives a slot that does not say who it is the GPU that was last seen there, and marks the GPUs
// that have no slot as lost.
func (f *follower) reconcile() {
	now := time.Now()
	bound := f.bound()
	f.recallUnseen(bound)
	for i := range f.slots {
		s := &f.slots[i]
		if s.gpu != nil {
			continue
		}
		g := f.inv.byIndex(i)
		switch {
		case g == nil || bound[g]:
			f.log.Warn("a GPU does not say who it is and is in no list", "gpu", i, "why", s.why())
			continue
		case s.hung:
			f.inv.hung(g, f.deadline, now)
		default:
			f.inv.read(g, s.last, s.round, now)
		}
		bound[g] = true
		f.seat(s, g)
	}
	f.countUnidentified()
	f.forgetGone(bound)
	for _, g := range f.inv.gpus {
		if !bound[g] {
			before := g.verdict()
			f.inv.unlisted(g, now)
			f.say(g, before)
		}
	}
}

// countUnidentified notes the GPUs that are in no list, and why.
func (f *follower) countUnidentified() {
	f.inv.unidentified = nil
	for i := range f.slots {
		if s := &f.slots[i]; s.gpu == nil {
			f.inv.unidentified = append(f.inv.unidentified, gpu.Unidentified{Index: i, Why: s.why()})
		}
	}
}

// why is the reason that a GPU gave no readings, for people.
func (s *slot) why() string {
	if s.hung {
		return "no answer in time"
	}
	return s.last.fault.explain()
}

// hear takes over what the listeners and the counter say.
func (f *follower) hear(n notice) (urgent bool, err error) {
	switch {
	case n.fault.driverGone():
		return false, errors.New(n.fault.explain())
	case n.event == nil && n.fault == success && n.count != len(f.slots):
		return false, fmt.Errorf("%w from %d to %d", errRescan, len(f.slots), n.count)
	case n.event == nil && n.fault == success:
		urgent = f.believe(n.asked)
		if f.settled && f.forgetGone(f.bound()) {
			f.dirty, urgent = true, true
		}
		return urgent, nil
	case n.event == nil:
		return false, nil
	}
	s := &f.slots[n.gpu]
	if s.gpu == nil {
		if len(s.early) < maxEarly {
			s.early = append(s.early, *n.event)
		}
		return false, nil
	}
	return f.event(s, *n.event), nil
}

// event judges an event of a GPU. A verdict is shown at once, but for an error that may yet turn out to have
// been contained: the driver says so within a moment, if it does.
func (f *follower) event(s *slot, e event) (urgent bool) {
	g, now := s.gpu, time.Now()
	before := g.verdict()
	f.dirty = true
	switch e.Kind {
	case eventXID:
		s.wanted = f.inv.countXID(g, e.Code, s.round+1, now) || s.wanted
	case eventUnavailable:
		f.inv.rules.unavailable(&g.state, f.inv.marks(g), now)
		s.wanted = true
	case eventRecoveryAction, eventMIGChange:
		s.wanted = true
	}
	f.say(g, before)
	if act, _ := f.inv.rules.xids.judge(e.Code); e.Kind == eventXID && act == untilContained {
		return false
	}
	return g.verdict() != before
}

// say tells a person when a GPU's health is no longer what it was.
func (f *follower) say(g *tracked, before gpu.Health) {
	now := g.verdict()
	switch {
	case now.Reason == before.Reason && now.Text == before.Text:
	case now.OK():
		f.log.Info("GPU healthy again", "gpu", g.device.Index, "uuid", g.device.UUID, "was", before.Reason, "evidence", g.state.evidence)
	default:
		f.log.Warn("GPU unhealthy", "gpu", g.device.Index, "uuid", g.device.UUID,
			"reason", now.Reason, "text", now.Text, "needs", now.Needs)
	}
}
