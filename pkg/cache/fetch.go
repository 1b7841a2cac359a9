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
	stallAfter = 30 * time.Second
	rangeTries = 5        // retries of one range without progress worth the name
	progress   = 64 << 10 // bytes that count as such
	bufferSize = 1 << 20  // larger ones fall out of the CPU's cache
	saveEvery  = 8        // ranges of a file between journals: what a crash can cost, twice over at worst
	openFiles  = 8        // files of a model in progress: the hash of each is bound to one core
	plainRange = -1       // claim: the whole file in one stream
	openRange  = -2       // claim: open the file and hash what is there
)

// fetcher is a job while it runs.
type fetcher struct {
	*job
	src     Source
	ref     model.Ref
	streams chan struct{}
	fetched *atomic.Int64
	cancel  context.CancelFunc
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
		s.claimed, s.opening, s.plain, s.inflight = append([]bool(nil), s.done...), false, false, 0
		if s.sum == "" {
			n += max(1, len(s.done))
		}
	}
	var group sync.WaitGroup
	for range min(n, cap(c.streams)) {
		group.Go(func() { f.work(ctx) })
	}
	group.Wait()
	return errors.Join(j.err, j.park())
}

// work does what there is to do until nothing is left or something failed.
func (f *fetcher) work(ctx context.Context) {
	buf := make([]byte, bufferSize)
	for {
		s, i, fctx := f.claim(ctx)
		if s == nil {
			return
		}
		var err error
		switch i {
		case openRange:
			err = f.open(s)
		case plainRange:
			err = f.fetchPlain(fctx, s, buf)
		default:
			err = f.fetchRange(fctx, s, i, buf)
		}
		if err == nil {
			err = f.advance(s, buf)
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
			if i, ok := s.next(); ok {
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
		if range_ != plainRange {
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
	switch {
	case err == nil:
	case s.plain && i >= 0:
		// One of the ranges that the plain stream takes the place of.
	case model.ReasonOf(err) == "RangeIgnored" && i >= 0 && len(s.done) > 1:
		s.plain = true
		s.stop()
		s.stop = nil
	default:
		if f.err == nil {
			f.err = fmt.Errorf("file %s: %w", s.file.Path, err)
			if ctx.Err() != nil {
				f.err = ctx.Err()
			}
		}
		f.cancel()
	}
}

func (f *fetcher) open(s *slot) error {
	data, err := f.disk.OpenFile(s.path, 0o600)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s.data = data
	return nil
}

// fetchRange brings range i. It goes on where a stream broke off, and gives up after some tries that
// brought nothing.
func (f *fetcher) fetchRange(ctx context.Context, s *slot, i int, buf []byte) error {
	off, n := s.span(i)
	var at int64
	for tries := 0; ; tries++ {
		got, err := f.copy(ctx, s, off+at, n-at, buf, nil)
		at += got
		if err == nil {
			break
		}
		if got >= progress {
			tries = 0
		}
		if stop := f.pause(ctx, err, tries); stop != nil {
			f.got.Add(-at)
			return stop
		}
	}
	s.data.Flush(off, n)
	f.mu.Lock()
	defer f.mu.Unlock()
	s.done[i] = true
	s.unsaved += n
	return nil
}

// fetchPlain brings the file in one stream from its start, again from there after a failure.
func (f *fetcher) fetchPlain(ctx context.Context, s *slot, buf []byte) error {
	hashing := make([]byte, len(buf))
	for tries := 0; ; tries++ {
		if err := f.disk.Remove(s.journal()); err != nil {
			return err
		}
		f.mu.Lock()
		f.got.Add(-s.bytes())
		s.reset()
		f.mu.Unlock()
		got, err := f.copy(ctx, s, 0, s.file.Size, buf, func(end int64) error {
			f.mu.Lock()
			for i := range s.done {
				if off, n := s.span(i); !s.done[i] && off+n <= end {
					s.done[i] = true
					s.unsaved += n
				}
			}
			f.mu.Unlock()
			return f.advance(s, hashing)
		})
		if err == nil {
			return nil
		}
		f.mu.Lock()
		f.got.Add(s.bytes() - got) // what no range counts
		f.mu.Unlock()
		if stop := f.pause(ctx, err, tries); stop != nil {
			return stop
		}
	}
}
