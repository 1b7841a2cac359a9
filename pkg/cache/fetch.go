package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/multibuffer"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	rangeTries = 5               // retries of one range without progress worth the name
	progress   = 64 << 10        // bytes that count as such
	bufferSize = 512 << 10       // of each stream: larger ones take memory and no less time
	fullSize   = 8               // streams that get such ones; those beyond, whose bytes come slowly, half of it
	hashLag    = 3               // ranges of a file that may wait to be hashed
	saveEvery  = 5               // ranges between journals, all files in progress together
	saveMost   = 7               // ranges that may wait for the next one; a kill costs up to twice as much
	saveAfter  = 5 * time.Second // between journals of a file that gets fewer bytes than that
	openFiles  = 8               // files of a model in progress: the hash of each is bound to one core
	plainFiles = 2               // of them in one stream each, which is not given up for another model's
	plainRange = -1              // claim: the whole file in one stream
	openRange  = -2              // claim: open the file and hash what is there
	smallRange = -3              // claim: a small file
)

// fetcher is a job while it runs. Its fields are guarded by mu from src's neighbours on.
type fetcher struct {
	*job
	src     Source
	ref     model.Ref
	streams *streams
	pace    *pace
	hashes  *multibuffer.Pool
	fetched *atomic.Int64
	cancel  context.CancelFunc

	large  []*slot        // not complete
	open   int            // files in progress
	plains int            // plain streams in progress
	beside sync.WaitGroup // what hashes and what saves
	smallFiles
	laps
}

// claim is something to do.
type claim struct {
	slot *slot
	i    int // which range, or what else
	ctx  context.Context
	lap  *lap // of a range
}

// run fetches and verifies what the job lacks. On return everything that came in is durable, whatever
// the error, so far as the disk does its part.
func (j *job) run(ctx context.Context, c *Cache, src Source, ref model.Ref) error {
	ended := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &fetcher{job: j, src: src, ref: ref, streams: c.streams, pace: c.pace, hashes: &c.hashes, fetched: &c.fetched, cancel: cancel}
	j.err, j.lane = nil, c.streams.lane(originOf(ref))
	todo := 1 // more than there is: for a second stream to where the first is slow
	for _, s := range j.slots {
		s.inflight = 0
		if !s.small {
			s.opening, s.plain, s.taken, s.stop = false, !s.pinned(), 0, nil // of a file that was wrong it is the last run's
		}
		switch {
		case s.sum != "":
		case s.small:
			f.waiting = append(f.waiting, s)
			todo++
		default:
			f.large = append(f.large, s)
			todo += len(s.have)
			s.claimed = make([]bool, len(s.have))
			for i := range s.have {
				s.claimed[i] = s.full(i)
			}
		}
	}
	f.allowance = max(hedgeRanges*j.plan.Step, j.fetch/hedgeShare)
	f.workers = min(todo, c.cfg.Streams)
	var group, keeper sync.WaitGroup
	for range f.workers {
		group.Go(func() { f.work(ctx) })
	}
	keeper.Go(func() {
		f.keep(ctx)
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.left > 0 && ended.Err() != nil {
			f.fail(ended, nil, nil) // nobody may be about to find that out
		}
	})
	group.Wait()
	cancel()
	keeper.Wait()
	f.beside.Wait()
	return errors.Join(j.err, f.settle(true), j.park())
}

// work does what there is to do until nothing is left or something failed.
func (f *fetcher) work(ctx context.Context) {
	for {
		c, ok := f.claim(ctx)
		if !ok {
			return
		}
		var err error
		switch c.i {
		case openRange:
			err = f.openFile(ctx, c.slot)
		case plainRange:
			err = f.fetchPlain(c.ctx, c.slot)
		case smallRange:
			err = f.fetchSmall(c.ctx, c.slot)
		default:
			err = f.fetchRange(c.ctx, c.lap)
		}
		f.release(ctx, c, err)
		if c.i == smallRange {
			if err := f.settle(false); err != nil {
				f.mu.Lock()
				f.fail(ctx, c.slot, err)
				f.mu.Unlock()
			}
		}
	}
}

// claim waits for the next thing to do. It returns false when all is done or something failed.
func (f *fetcher) claim(ctx context.Context) (claim, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.err == nil && f.left > 0 {
		// Small files wait for answers more than for bytes, large ones the other way round: so some of both.
		if len(f.waiting) > 0 && f.coming < (f.workers+1)/2 {
			return f.claimSmall(ctx), true
		}
		if c, ok := f.claimLarge(ctx); ok {
			return c, true
		}
		if len(f.waiting) > 0 {
			return f.claimSmall(ctx), true
		}
		if l := f.slowest(time.Now(), f.streams.idle(f.lane)); l != nil {
			l.slot.inflight++
			return claim{l.slot, l.i, l.ctx, l}, true
		}
		f.cond.Wait()
	}
	return claim{}, false
}

// claimLarge has files opened in order, up to openFiles of them; the next range is of the one with the
// fewest streams.
func (f *fetcher) claimLarge(ctx context.Context) (claim, bool) {
	var best *slot
	range_ := 0
	for _, s := range f.large[:min(len(f.large), openFiles)] {
		if !s.opening {
			s.opening = true
			s.inflight++
			return claim{slot: s, i: openRange, ctx: ctx}, true
		}
		if s.data == nil || s.behind() || best != nil && best.inflight <= s.inflight {
			continue
		}
		if i, ok := s.next(); ok && (i != plainRange || f.plains < plainFiles) {
			best, range_ = s, i
		}
	}
	if best == nil {
		return claim{}, false
	}
	if best.stop == nil {
		// A context per file: one that turns out to need a plain stream ends its other streams.
		best.start(ctx)
	}
	best.inflight++
	if range_ == plainRange {
		f.plains++
		return claim{slot: best, i: plainRange, ctx: best.ctx}, true
	}
	best.claimed[range_] = true
	l := f.begin(best, range_, time.Now())
	return claim{best, range_, l.ctx, l}, true
}

// pinned reports whether parts of s from several answers are sure to be of one content: each answer is of its version, or
// what they make together has a checksum.
func (s *slot) pinned() bool {
	return s.file.Check != "" || !unpinned(*s.file)
}

func (s *slot) start(ctx context.Context) { s.ctx, s.stop = context.WithCancel(ctx) }

// next is the next range of s to fetch. A plain stream waits until all others on the file have ended.
func (s *slot) next() (int, bool) {
	if s.plain {
		return plainRange, s.inflight == 0 && s.bytes() < s.file.Size
	}
	for i := s.taken; i < len(s.claimed); i++ {
		if !s.claimed[i] {
			s.taken = i
			return i, true
		}
	}
	return 0, false
}

// behind reports whether so much of s waits to be hashed that it may not become more: streams take the
// processors from who hashes, and what waits takes memory. f.mu is held.
func (s *slot) behind() bool { return s.contiguous()-s.Hashed >= hashLag*s.step }

// release notes how a claim went.
func (f *fetcher) release(ctx context.Context, c claim, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.cond.Broadcast()
	s := c.slot
	s.inflight--
	switch {
	case c.i == plainRange:
		f.plains--
	case c.i == smallRange:
		f.coming--
	case c.lap != nil:
		f.end(c.lap, err, time.Now())
	}
	switch {
	case err == nil, errors.Is(err, errLeft):
	case c.i >= 0 && s.plain:
		// One of the ranges that the plain stream takes the place of.
	case model.ReasonOf(err) == "RangeIgnored" && c.i >= 0 && len(s.have) > 1:
		s.plain = true
		s.stop()
		s.stop = nil
	default:
		f.fail(ctx, s, err)
	}
}

// fail ends the run, for what went wrong with s or because ctx is done. f.mu is held.
func (f *fetcher) fail(ctx context.Context, s *slot, err error) {
	switch {
	case f.err != nil:
	case ctx.Err() != nil:
		f.err = ctx.Err()
	default:
		f.err = fmt.Errorf("file %s: %w", s.file.Path, err)
	}
	f.cancel()
	f.cond.Broadcast()
}

func (f *fetcher) openFile(ctx context.Context, s *slot) error {
	data, err := f.disk.OpenFile(s.path(), 0o600)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s.data = data
	f.open++
	for _, along := range []func(*slot) error{f.follow, f.persist} {
		f.beside.Go(func() {
			if err := along(s); err != nil {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.fail(ctx, s, err)
			}
		})
	}
	return nil
}

// fetchPlain brings the file in one stream from its start, again from there after a failure.
func (f *fetcher) fetchPlain(ctx context.Context, s *slot) error {
	for tries := 0; ; tries++ {
		f.mu.Lock()
		for s.hashing || s.saving {
			f.cond.Wait()
		}
		f.got.Add(-s.bytes())
		s.reset()
		f.mu.Unlock()
		if err := f.disk.Remove(s.journal()); err != nil {
			return err
		}
		_, err := f.stream(ctx, s, 0, s.file.Size, true, func(p []byte, at int64) error {
			f.mu.Lock()
			f.await(s)
			f.mu.Unlock()
			if _, err := s.data.WriteAt(p, at); err != nil {
				return ours(err)
			}
			f.flush(s, 0, at, int64(len(p)), s.file.Size)
			f.note(s, at, int64(len(p)))
			return nil
		})
		if err == nil {
			return nil
		}
		if stop := f.pause(ctx, err, tries); stop != nil {
			return stop
		}
	}
}

// await holds back who is about to write to s while too much of it waits to be hashed or to be made durable: what is not
// hashed is memory of the node, and what is not durable a kill costs. f.mu is held.
func (f *fetcher) await(s *slot) {
	for f.err == nil && (s.unsaved >= f.share(saveMost*s.step) || s.behind()) {
		f.cond.Wait()
	}
}

// note counts n bytes that were written at off.
func (f *fetcher) note(s *slot, off, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n > 0 {
		i := int(off / s.step)
		start, size := s.span(i)
		part := min(n, start+size-off)
		// What does not continue its range does not count: the content before it was given up.
		if s.have[i] == off-start {
			s.have[i] += part
			s.unsaved += part
			f.got.Add(part)
		}
		off, n = off+part, n-part
	}
	if f.enough(s) || s.hashable(s.contiguous()) {
		f.cond.Broadcast()
	}
}

// flushStep is how much a stream writes before the kernel is told to begin with it. What is dirty is
// bounded by that, so that a memory limit of the agent's has pages to reclaim.
const flushStep = 4 << 20

// flush has what was written since the last multiple of flushStep from start on begun to be written to
// the disk, where n bytes at off complete one, or all size of them.
func (f *fetcher) flush(s *slot, start, off, n, size int64) {
	done := off + n - start
	if from := (off - start) / flushStep * flushStep; done == size || done >= from+flushStep {
		s.data.Flush(start+from, done-from)
	}
}

// enough reports whether so much of s is not saved that it should be. f.mu is held.
func (f *fetcher) enough(s *slot) bool {
	return s.unsaved > 0 && (s.due || s.unsaved >= f.share(saveEvery*s.step))
}

// share is the part of each file in progress. f.mu is held.
func (f *fetcher) share(n int64) int64 { return n / int64(max(1, f.open)) }

// finished takes a complete file off the list. f.mu is held.
func (f *fetcher) finished(s *slot) {
	f.large = slices.DeleteFunc(f.large, func(other *slot) bool { return other == s })
}
