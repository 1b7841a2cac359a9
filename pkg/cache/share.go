package cache

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// streams shares the concurrent reads from origins among the models in progress, so that a slow origin
// holds back its own model and no other. A free one goes to the model that has none, and else to the one
// with the highest rank, and among equals to the one that reads through the fewest. If none is free, a model
// gives one up, its newest, to one of a higher rank, or to an equal that has at least two fewer: its range
// goes on where it was, with its next turn. A model keeps its last one, so there should be no more models in
// progress than streams. How many of them go to one origin is up to its lane, which is
// shared in the same way among the models from there.
type streams struct {
	mu      sync.Mutex
	most    int
	free    int
	lanes   map[string]*lane // by origin; as many as there ever were origins
	held    map[*job][]*turn
	waiting []*waiter // in the order in which they came
	leaving *turn     // asked to end, and has not yet: one at a time
	spare   [][]byte  // buffers of turns that are over, while there are others
}

// turn is the right to one stream, with its buffer.
type turn struct {
	of    *job
	lane  *lane
	buf   []byte
	firm  bool // not given up for another: it would begin again at its start
	began time.Time
	end   context.CancelCauseFunc
}

type waiter struct {
	turn
	dealt chan *turn
}

// rank is how urgent a model is. What a pod waits for goes before all else.
type rank struct {
	called   bool
	priority int
}

func (r rank) compare(o rank) int {
	if r.called != o.called {
		if r.called {
			return 1
		}
		return -1
	}
	return cmp.Compare(r.priority, o.priority)
}

// prefer sets the rank of a job, also while it runs.
func (s *streams) prefer(of *job, r rank) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if of.rank != r {
		of.rank = r
		s.deal()
	}
}

// errYield ends a stream for the sake of another model's.
var errYield = errors.New("another model's turn")

func newStreams(n int) *streams {
	return &streams{most: n, free: n, held: map[*job][]*turn{}, lanes: map[string]*lane{}}
}

// lane is the one to an origin.
func (s *streams) lane(origin string) *lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lanes[origin]
	if l == nil {
		l = newLane(s.most)
		s.lanes[origin] = l
	}
	return l
}

// take waits for a turn. The context that it returns ends with it, at latest when it is given back. A turn
// that is asked back before it was received fails with errYield, as it ends with that later.
func (s *streams) take(ctx context.Context, of *job, firm bool) (context.Context, *turn, error) {
	ctx, end := context.WithCancelCause(ctx)
	w := &waiter{turn: turn{of: of, lane: of.lane, firm: firm, end: end}, dealt: make(chan *turn, 1)}
	s.mu.Lock()
	s.waiting = append(s.waiting, w)
	s.deal()
	s.mu.Unlock()
	select {
	case t := <-w.dealt:
		return ctx, t, nil
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	end(nil)
	s.mu.Lock()
	at := slices.Index(s.waiting, w)
	if at >= 0 {
		s.waiting = slices.Delete(s.waiting, at, at+1)
	}
	s.mu.Unlock()
	if at < 0 {
		s.give(<-w.dealt)
	}
	return nil, nil, cause
}

// give ends a turn.
func (s *streams) give(t *turn) {
	t.end(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[t.of] = slices.DeleteFunc(s.held[t.of], func(other *turn) bool { return other == t })
	if len(s.held[t.of]) == 0 {
		delete(s.held, t.of)
	}
	if s.leaving == t {
		s.leaving = nil
	}
	t.lane.busy--
	s.free++
	s.spare = append(s.spare, t.buf)
	s.deal()
	if len(s.held) == 0 {
		s.spare = nil
	}
}

// deal gives what is free to those who wait, or sees to it that something becomes free. s.mu is held.
func (s *streams) deal() {
	now := time.Now()
	for s.free > 0 {
		next := -1
		for i, w := range s.waiting {
			if w.lane.open(now) && (next < 0 || s.sooner(w.of, s.waiting[next].of)) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		t := &s.waiting[next].turn
		dealt := s.waiting[next].dealt
		s.waiting = slices.Delete(s.waiting, next, next+1)
		s.free--
		t.lane.busy++
		t.began = now
		if last := len(s.spare) - 1; last >= 0 {
			t.buf, s.spare = s.spare[last], s.spare[:last]
		}
		need, least := min(bufferSize, t.of.largest), min(bufferSize/2, t.of.largest) // a model of small files needs small ones
		if s.most-s.free > fullSize {
			need = least
		}
		if int64(len(t.buf)) < least {
			t.buf = make([]byte, need)
		}
		s.held[t.of] = append(s.held[t.of], t)
		dealt <- t
	}
	for _, w := range s.waiting {
		if s.leaving == nil && w.lane.shut(now) == 0 {
			s.ask(w)
		}
	}
}

// sooner reports whether a free turn goes to a and not to b, which has waited longer. s.mu is held.
func (s *streams) sooner(a, b *job) bool {
	one, other := len(s.held[a]), len(s.held[b])
	if (one == 0) != (other == 0) {
		return one == 0
	}
	if by := a.rank.compare(b.rank); by != 0 {
		return by > 0
	}
	return one < other
}

// ask ends the newest turn of the model of the lowest rank that may give one up for w, of these the one that has the
// most, if that would help: a full lane needs one of its own. s.mu is held.
func (s *streams) ask(w *waiter) {
	mine := len(s.held[w.of])
	var from *job
	for of, turns := range s.held {
		if w.lane.busy >= w.lane.limit && of.lane != w.lane {
			continue
		}
		at := len(turns) - 1
		for at >= 0 && turns[at].firm {
			at--
		}
		lower := of.rank.compare(w.of.rank)
		switch {
		case at < 0, len(turns) == 1, of == w.of:
			continue
		case lower > 0 && mine > 0, lower == 0 && len(turns) < mine+2:
			continue
		}
		if from != nil {
			if by := of.rank.compare(from.rank); by > 0 || by == 0 && len(turns) <= len(s.held[from]) {
				continue
			}
		}
		from, s.leaving = of, turns[at]
	}
	if s.leaving != nil {
		s.leaving.end(errYield)
	}
}

// answered notes that the first byte of t's origin is here.
func (s *streams) answered(t *turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.lane.answered(time.Since(t.began))
}

// moved notes n bytes that came through t.
func (s *streams) moved(t *turn, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hungry := slices.ContainsFunc(s.waiting, func(w *waiter) bool { return w.lane == t.lane })
	if t.lane.moved(n, time.Now(), hungry) {
		s.deal()
	}
}

// failed notes that the origin failed t, or one that was asked without a turn, as of began.
func (s *streams) failed(l *lane, err error, began time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	l.failed(err, began, now)
	if wait := l.shut(now); wait > 0 {
		time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.deal()
		})
	}
}

// shut is until when nothing may be asked of an origin; zero where it may.
func (s *streams) shut(l *lane) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.shut(time.Now()) == 0 {
		return time.Time{}
	}
	return l.until
}

// idle reports whether another stream may begin through l and nobody waits for one.
func (s *streams) idle(l *lane) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.free > 0 && len(s.waiting) == 0 && l.open(time.Now())
}
