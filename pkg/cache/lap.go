package cache

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	hedgeAfter  = 2 * time.Second // a stream is not called slow before
	hedgeSilent = 5 * time.Second // and one without a byte for so long is, whatever the others do
	hedgeLeast  = 64 << 10        // bytes that a second stream is worth
	hedgeRanges = 2               // what second streams are allowed: so many ranges,
	hedgeShare  = 50              // or, where that is more, this part of all that the job fetches
)

// errLeft is the end of one of two streams on a range: the other goes on.
var errLeft = errors.New("left to the other stream")

// laps are the ranges on their way, and how fast they come.
type laps struct {
	running   []*lap
	bytes     int64         // that ended laps brought
	took      time.Duration // all ended laps together
	hedged    int64         // bytes that second streams were opened for
	allowance int64         // of hedged
}

// lap is one range on its way: through one stream or, where streams are idle and that one is slow,
// through a second one as well, which begins where the first is. Who is ahead writes: bytes that count are
// hashed, and never written again, so a stream that lies cannot undo what another one brought.
type lap struct {
	slot    *slot
	i       int
	ctx     context.Context
	stop    context.CancelFunc
	writing sync.Mutex // held while bytes are written and counted

	// Guarded by the job's mutex:
	streams int
	second  bool      // had a second stream: there is no third
	done    bool      // all of it is written
	resting bool      // between two tries: an origin that fails is not asked in another way
	began   time.Time // with from bytes of it there
	from    int64
	last    time.Time // bytes came
}

// begin makes the lap of a range. f.mu is held.
func (f *fetcher) begin(s *slot, i int, now time.Time) *lap {
	l := &lap{slot: s, i: i, streams: 1, began: now, from: s.have[i], last: now}
	l.ctx, l.stop = context.WithCancel(s.ctx)
	f.running = append(f.running, l)
	return l
}

// end notes that one of a lap's streams has ended. f.mu is held.
func (f *fetcher) end(l *lap, err error, now time.Time) {
	if !errors.Is(err, errLeft) {
		l.streams--
	}
	if l.streams > 0 {
		return
	}
	l.stop()
	f.running = slices.DeleteFunc(f.running, func(other *lap) bool { return other == l })
	if err == nil && !l.second {
		_, n := l.slot.span(l.i)
		f.bytes += n - l.from
		f.took += now.Sub(l.began)
	}
}

// slowest returns the lap that a second stream helps most, with that stream counted, or nil where none is
// worth it. idle says that there is a stream nobody else has use for. f.mu is held.
func (f *fetcher) slowest(now time.Time, idle bool) *lap {
	var worst *lap
	var most float64
	for _, l := range f.running {
		_, n := l.slot.span(l.i)
		left, ran := n-l.slot.have[l.i], now.Sub(l.began)
		if !idle || l.second || l.done || l.resting || left < hedgeLeast || ran < hedgeAfter || f.hedged+left > f.allowance {
			continue
		}
		needs := float64(left) / max(float64(n-left-l.from), 1) * ran.Seconds()
		usual := needs
		if f.bytes > 0 {
			usual = float64(left) / float64(f.bytes) * f.took.Seconds()
		}
		if now.Sub(l.last) < hedgeSilent && needs < 2*usual+1 || needs <= most {
			continue
		}
		worst, most = l, needs
	}
	if worst != nil {
		_, n := worst.slot.span(worst.i)
		worst.second = true
		worst.streams++
		f.hedged += n - worst.slot.have[worst.i]
	}
	return worst
}

// fetchRange brings what a range lacks. It goes on where a stream broke off, and gives up after some
// tries that brought nothing, or at once where another stream is on it.
func (f *fetcher) fetchRange(ctx context.Context, l *lap) error {
	s := l.slot
	off, n := s.span(l.i)
	for tries := 0; ; {
		f.mu.Lock()
		at, done := s.have[l.i], l.done
		f.mu.Unlock()
		if done {
			return nil // have[i] need not say so any more: the file may be complete, and found wrong
		}
		var failed error // on our side, whatever becomes of the range
		got, err := f.stream(ctx, s, off+at, n-at, false, func(p []byte, from int64) error {
			failed = f.put(l, p, at+from)
			return failed
		})
		if failed != nil {
			return failed
		}
		f.mu.Lock()
		done = l.done
		left := !done && err != nil && l.streams > 1
		if left {
			l.streams--
		}
		f.mu.Unlock()
		switch {
		case done:
			l.stop() // the other stream's
			return nil
		case left:
			if ctx.Err() == nil && !errors.Is(err, errYield) {
				f.hitched(err)
			}
			return errLeft
		case err == nil, errors.Is(err, errYield):
			continue // the file is still open: it lacks what this range lacks
		}
		if got >= progress {
			tries = 0
		}
		f.rest(l, true)
		stop := f.pause(ctx, err, tries)
		f.rest(l, false)
		if stop != nil {
			return stop
		}
		tries++
	}
}

func (f *fetcher) rest(l *lap, now bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.resting, l.last = now, time.Now()
}

// put writes what p, which belongs at at of its range, adds to what is there.
func (f *fetcher) put(l *lap, p []byte, at int64) error {
	s := l.slot
	l.writing.Lock()
	defer l.writing.Unlock()
	f.mu.Lock()
	f.await(s)
	have, done := s.have[l.i], l.done
	f.mu.Unlock()
	if done || have < at || at+int64(len(p)) <= have {
		return nil // the other stream was faster, or what was there is given up
	}
	p, at = p[have-at:], have
	off, n := s.span(l.i)
	if _, err := s.data.WriteAt(p, off+at); err != nil {
		return ours(err)
	}
	f.flush(s, off, off+at, int64(len(p)), n) // before it counts: the file may be complete then, and closed
	f.mu.Lock()
	l.last = time.Now()
	l.done = at+int64(len(p)) == n
	f.mu.Unlock()
	f.note(s, off+at, int64(len(p)))
	return nil
}
