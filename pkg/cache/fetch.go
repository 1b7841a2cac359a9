package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	rangeTries = 5               // retries of one range without progress worth the name
	progress   = 64 << 10        // bytes that count as such
	bufferSize = 512 << 10       // of each stream: larger ones take memory and no less time, smaller ones take a quarter more CPU
	saveEvery  = 4               // ranges between journals, all files in progress together; a kill costs up to four times as much
	saveAfter  = 5 * time.Second // between journals of a file that gets fewer bytes than that
	openFiles  = 8               // files of a model in progress: the hash of each is bound to one core
	plainFiles = 2               // of them in one stream each, which is not given up for another model's
	plainRange = -1              // claim: the whole file in one stream
	openRange  = -2              // claim: open the file and hash what is there
)

// fetcher is a job while it runs.
type fetcher struct {
	*job
	src     Source
	ref     model.Ref
	streams *streams
	fetched *atomic.Int64
	cancel  context.CancelFunc

	open   int // files in progress; guarded by mu
	plains int // plain streams in progress; guarded by mu
}

// run fetches and verifies what the job lacks. On return everything that came in is durable, whatever
// the error, so far as the disk does its part.
func (j *job) run(ctx context.Context, c *Cache, src Source, ref model.Ref) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &fetcher{job: j, src: src, ref: ref, streams: c.streams, fetched: &c.fetched, cancel: cancel}
	j.err = nil
	n := 0
	for _, s := range j.slots {
		s.claimed, s.opening, s.plain, s.inflight = make([]bool, len(s.have)), false, false, 0
		for i := range s.have {
			s.claimed[i] = s.full(i)
		}
		if s.sum == "" {
			n += max(1, len(s.have))
		}
	}
	var group, keeper sync.WaitGroup
	for range min(n, c.cfg.Streams) {
		group.Go(func() { f.work(ctx) })
	}
	keeper.Go(func() { f.keep(ctx) })
	group.Wait()
	cancel()
	keeper.Wait()
	return errors.Join(j.err, j.park())
}

// work does what there is to do until nothing is left or something failed.
func (f *fetcher) work(ctx context.Context) {
	for {
		s, i, fctx := f.claim(ctx)
		if s == nil {
			return
		}
		var err error
		switch i {
		case openRange:
			err = f.openFile(s)
		case plainRange:
			err = f.fetchPlain(fctx, s)
		default:
			err = f.fetchRange(fctx, s, i)
		}
		if err == nil {
			err = f.advance(s)
		}
		f.release(ctx, s, i, err)
	}
}

// claim waits for the next thing to do: files are opened in order, up to openFiles of them, and the
// next range is of the one with the fewest streams. It returns nil when all is done or something failed.
func (f *fetcher) claim(ctx context.Context) (*slot, int, context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.err == nil && f.left > 0 {
		var best *slot
		range_, seen := 0, 0
		for _, s := range f.slots {
			if s.sum != "" {
				continue
			}
			if seen++; seen > openFiles {
				break
			}
			if !s.opening {
				s.opening = true
				s.inflight++
				return s, openRange, ctx
			}
			if s.data == nil || best != nil && best.inflight <= s.inflight {
				continue
			}
			if i, ok := s.next(); ok && (i != plainRange || f.plains < plainFiles) {
				best, range_ = s, i
			}
		}
		if best == nil {
			f.cond.Wait()
			continue
		}
		if best.stop == nil {
			// A context per file: one that turns out to need a plain stream ends its other streams.
			best.start(ctx)
		}
		best.inflight++
		if range_ == plainRange {
			f.plains++
		} else {
			best.claimed[range_] = true
		}
		return best, range_, best.ctx
	}
	return nil, 0, nil
}

func (s *slot) start(ctx context.Context) { s.ctx, s.stop = context.WithCancel(ctx) }

// next is the next range of s to fetch. A plain stream waits until all others on the file have ended.
func (s *slot) next() (int, bool) {
	if s.plain {
		return plainRange, s.inflight == 0
	}
	for i, taken := range s.claimed {
		if !taken {
			return i, true
		}
	}
	return 0, false
}

// release notes how a claim went.
func (f *fetcher) release(ctx context.Context, s *slot, i int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.cond.Broadcast()
	s.inflight--
	if i == plainRange {
		f.plains--
	}
	switch {
	case err == nil:
	case s.plain && i >= 0:
		// One of the ranges that the plain stream takes the place of.
	case model.ReasonOf(err) == "RangeIgnored" && i >= 0 && len(s.have) > 1:
		s.plain = true
		s.stop()
		s.stop = nil
	default:
		f.fail(ctx, s, err)
	}
}

// fail ends the run. f.mu is held.
func (f *fetcher) fail(ctx context.Context, s *slot, err error) {
	if f.err == nil {
		f.err = fmt.Errorf("file %s: %w", s.file.Path, err)
		if ctx.Err() != nil {
			f.err = ctx.Err()
		}
	}
	f.cancel()
	f.cond.Broadcast()
}

func (f *fetcher) openFile(s *slot) error {
	data, err := f.disk.OpenFile(s.path, 0o600)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s.data = data
	f.open++
	return nil
}

// fetchRange brings what range i lacks. It goes on where a stream broke off, and gives up after some
// tries that brought nothing.
func (f *fetcher) fetchRange(ctx context.Context, s *slot, i int) error {
	off, n := s.span(i)
	for tries := 0; ; {
		f.mu.Lock()
		at := s.have[i]
		f.mu.Unlock()
		got, err := f.copy(ctx, s, off+at, n-at, false)
		if err == nil {
			return nil // have[i] need not say so any more: the file may be complete, and found wrong
		}
		if errors.Is(err, errYield) {
			continue // the file is still open: it lacks what this range lacks
		}
		if got >= progress {
			tries = 0
		}
		if stop := f.pause(ctx, err, tries); stop != nil {
			return stop
		}
		tries++
	}
}

// fetchPlain brings the file in one stream from its start, again from there after a failure.
func (f *fetcher) fetchPlain(ctx context.Context, s *slot) error {
	for tries := 0; ; tries++ {
		if err := f.disk.Remove(s.journal()); err != nil {
			return err
		}
		f.mu.Lock()
		f.got.Add(-s.bytes())
		s.reset()
		f.mu.Unlock()
		_, err := f.copy(ctx, s, 0, s.file.Size, true)
		if err == nil {
			return nil
		}
		if stop := f.pause(ctx, err, tries); stop != nil {
			return stop
		}
	}
}

// note counts n bytes that were written at off, and reports whether it is time to save. What does not
// continue its range does not count: the content before it was given up.
func (f *fetcher) note(s *slot, off, n int64) (save bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n > 0 {
		i := int(off / s.step)
		start, size := s.span(i)
		part := min(n, start+size-off)
		if s.have[i] == off-start {
			s.have[i] += part
			s.unsaved += part
			f.got.Add(part)
		}
		off, n = off+part, n-part
	}
	return f.enough(s)
}

// enough reports whether so much of s is not saved that it should be. f.mu is held.
func (f *fetcher) enough(s *slot) bool {
	return s.unsaved > 0 && (s.due || s.unsaved >= f.bound(s))
}

// bound is how many bytes of s may be unsaved before it is time to save. f.mu is held.
func (f *fetcher) bound(s *slot) int64 { return saveEvery * s.step / int64(max(1, f.open)) }
