package cache

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// streams shares the concurrent reads from origins among the models in progress, so that a slow origin
// holds back its own model and no other. A free one goes to the model that reads through the fewest. If
// none is free, the model that reads through the most gives one up to another that has at least two
// fewer: its range goes on where it was, with its next turn. A model keeps its last one, so there should
// be no more models in progress than streams.
type streams struct {
	mu      sync.Mutex
	free    int
	held    map[*job][]*turn
	waiting []*waiter // in the order in which they came
	leaving *turn     // asked to end, and has not yet: one at a time
	spare   [][]byte  // buffers of turns that are over, while there are others
}

// turn is the right to one stream, with its buffer.
type turn struct {
	of   *job
	buf  []byte
	firm bool // not given up for another: it would begin again at its start
	end  context.CancelCauseFunc
}

type waiter struct {
	turn
	dealt chan *turn
}

// errYield ends a stream for the sake of another model's.
var errYield = errors.New("another model's turn")

func newStreams(n int) *streams { return &streams{free: n, held: map[*job][]*turn{}} }

// take waits for a turn. The context that it returns ends with it, at latest when it is given back. A turn
// that is asked back before it was received fails with errYield, as it ends with that later.
func (s *streams) take(ctx context.Context, of *job, firm bool) (context.Context, *turn, error) {
	ctx, end := context.WithCancelCause(ctx)
	w := &waiter{turn: turn{of: of, firm: firm, end: end}, dealt: make(chan *turn, 1)}
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
	s.free++
	s.spare = append(s.spare, t.buf)
	s.deal()
	if len(s.held) == 0 {
		s.spare = nil
	}
}

// deal gives what is free to those who wait, or sees to it that something becomes free. s.mu is held.
func (s *streams) deal() {
	for len(s.waiting) > 0 {
		next := 0
		for i, w := range s.waiting {
			if len(s.held[w.of]) < len(s.held[s.waiting[next].of]) {
				next = i
			}
		}
		w := s.waiting[next]
		if s.free == 0 {
			s.ask(len(s.held[w.of]))
			return
		}
		s.free--
		s.waiting = slices.Delete(s.waiting, next, next+1)
		t := &w.turn
		if last := len(s.spare) - 1; last >= 0 {
			t.buf, s.spare = s.spare[last], s.spare[:last]
		} else {
			t.buf = make([]byte, bufferSize)
		}
		s.held[t.of] = append(s.held[t.of], t)
		w.dealt <- t
	}
}

// ask ends the newest turn of the model that has the most, for one that has so few. s.mu is held.
func (s *streams) ask(few int) {
	if s.leaving != nil {
		return
	}
	most := few + 1
	for _, turns := range s.held {
		at := len(turns) - 1
		for at >= 0 && turns[at].firm {
			at--
		}
		if at >= 0 && len(turns) > most {
			most, s.leaving = len(turns), turns[at]
		}
	}
	if s.leaving != nil {
		s.leaving.end(errYield)
	}
}
