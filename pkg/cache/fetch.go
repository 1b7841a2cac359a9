package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	stallAfter = 30 * time.Second
	rangeTries = 5         // retries of one range without progress worth the name
	progress   = 64 << 10  // bytes that count as such
	bufferSize = 1 << 20   // larger ones fall out of the CPU's cache
	saveEvery  = 128 << 20 // bytes of a file between journals: what a crash can cost, twice over at worst
	openFiles  = 8         // files of a model in progress: the hash of each is bound to one core
	plainRange = -1        // claim: the whole file in one stream
	openRange  = -2        // claim: open the file and hash what is there
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

// park saves and closes the files that are not complete.
func (j *job) park() error {
	var errs []error
	for _, s := range j.slots {
		if s.data == nil {
			continue
		}
		if s.stop != nil {
			s.stop()
		}
		errs = append(errs, j.save(s, s.record), s.data.Close())
		s.data, s.stop = nil, nil
	}
	return errors.Join(errs...)
}

// save makes the data durable first and then the journal, whose content was fixed before.
func (j *job) save(s *slot, record func() (journal, error)) error {
	saved, err := record()
	if err != nil {
		return err
	}
	if err := j.sync(s); err != nil {
		return err
	}
	return j.write(s, saved)
}

// sync makes a slot's data durable. After a failure the kernel may have dropped the pages and a second
// fdatasync would say nothing of it, so all of the content counts as lost.
func (j *job) sync(s *slot) error {
	err := s.data.Sync()
	if err != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.got.Add(-s.bytes())
		s.reset()
	}
	return err
}

func (j *job) write(s *slot, saved journal) error {
	return writeJSON(j.disk, s.journal(), saved, 0o600)
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
			f.err = fmt.Errorf("%s of %s: %w", s.file.Path, f.ref, err)
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

// pause waits before the next try, or says why there is none.
func (f *fetcher) pause(ctx context.Context, err error, tries int) error {
	var disk *diskError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &disk), model.IsFinal(err), tries >= rangeTries:
		return err
	}
	switch model.ReasonOf(err) {
	case "RangeIgnored", "Changed":
		return err
	}
	timer := time.NewTimer(backoff(tries))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// diskError is a failure on our side, which no other stream would mend.
type diskError struct{ err error }

func (e *diskError) Error() string { return e.err.Error() }
func (e *diskError) Unwrap() error { return e.err }

// ours wraps a failure of the disk.
func ours(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return &diskError{&model.Error{Reason: "NoSpace", Text: "the disk is full", Err: err}}
	}
	return &diskError{&model.Error{Reason: "DiskFailed", Text: "the cache's disk failed", Err: err}}
}

// copy writes n bytes from off to their place, through one stream. It returns how many came. The stream
// is given up when no byte arrives for stallAfter; how long it takes in all does not matter.
func (f *fetcher) copy(ctx context.Context, s *slot, off, n int64, buf []byte, wrote func(end int64) error) (int64, error) {
	select {
	case f.streams <- struct{}{}:
		defer func() { <-f.streams }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	stalled := &model.Error{Reason: "Stalled", Text: fmt.Sprintf("no byte from the origin for %s", stallAfter)}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(stallAfter, func() { cancel(stalled) })
	defer timer.Stop()
	because := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	body, err := f.src.Open(ctx, f.ref, s.file, off, n)
	if err != nil {
		return 0, because(err)
	}
	defer body.Close()
	// No Read may wait for ever, whatever the source makes of its context.
	unblock := context.AfterFunc(ctx, func() { body.Close() })
	defer unblock()
	var at int64
	for at < n {
		fill, end := 0, int(min(int64(len(buf)), n-at))
		for fill < end && err == nil {
			var k int
			k, err = body.Read(buf[fill:end])
			if k > 0 {
				timer.Reset(stallAfter)
				fill += k
			}
		}
		if fill > 0 {
			if _, err := s.data.WriteAt(buf[:fill], off+at); err != nil {
				return at, ours(err)
			}
			at += int64(fill)
			f.got.Add(int64(fill))
			f.fetched.Add(int64(fill))
			if wrote != nil {
				timer.Stop() // the wait is ours now
				if err := wrote(off + at); err != nil {
					return at, err
				}
				timer.Reset(stallAfter)
			}
		}
		if err != nil {
			break
		}
	}
	switch {
	case at == n:
		return at, nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return at, &model.Error{Reason: "Truncated",
			Text: fmt.Sprintf("the origin's answer ended %d bytes short of %d", n-at, n)}
	}
	return at, because(err)
}

// advance hashes what is contiguous, reading it back from the page cache just behind the writers, saves
// the journal now and then, and completes the slot after its last byte. One caller at a time does so, for
// all; the others go on fetching.
func (f *fetcher) advance(s *slot, buf []byte) error {
	f.mu.Lock()
	if s.hashing || s.sum != "" {
		f.mu.Unlock()
		return nil
	}
	s.hashing = true
	err := f.follow(s, buf)
	complete := err == nil && s.hashed == s.file.Size
	if !complete {
		s.hashing = false
	}
	f.mu.Unlock()
	if complete {
		err = f.complete(s)
		f.mu.Lock()
		s.hashing = false
		f.mu.Unlock()
	}
	return err
}

// follow hashes and saves until there is nothing more to. It is called and returns with f.mu held, so
// that no range can be finished between its last look and the caller's giving back of the token.
func (f *fetcher) follow(s *slot, buf []byte) error {
	for {
		from, end := s.hashed, min(s.contiguous(), s.hashed+saveEvery)
		var saved journal
		var err error
		save := s.unsaved >= saveEvery && end == from
		switch {
		case save:
			s.unsaved = 0
			saved, err = s.record()
		case end == from:
			return nil
		}
		if err != nil {
			return err
		}
		f.mu.Unlock()
		if save {
			err = f.save(s, func() (journal, error) { return saved, nil })
		} else {
			var n int64
			n, err = io.CopyBuffer(struct{ io.Writer }{s.hash}, io.NewSectionReader(s.data, from, end-from), buf)
			if err == nil && n != end-from {
				err = io.ErrUnexpectedEOF
			}
		}
		f.mu.Lock()
		if err != nil {
			if !save {
				s.hash, s.hashed = sha256.New(), 0 // it may hold a part of what was read
			}
			return ours(fmt.Errorf("%s: %w", s.path, err))
		}
		if !save {
			s.hashed = end
		}
	}
}

// complete verifies a slot whose bytes are all hashed.
func (f *fetcher) complete(s *slot) error {
	sum := model.Digest(hex.EncodeToString(s.hash.Sum(nil)))
	if s.file.Digest != "" && sum != s.file.Digest {
		f.mu.Lock()
		f.got.Add(-s.bytes())
		s.reset()
		s.data.Close()
		s.data = nil
		f.mu.Unlock()
		return errors.Join(&model.Error{Reason: "WrongDigest", Final: true,
			Text: fmt.Sprintf("the origin sent sha256 %s instead of %s: mend the file there or the digest", sum, s.file.Digest)},
			f.disk.Remove(s.journal()), f.disk.Remove(s.path))
	}
	if err := f.sync(s); err != nil {
		return ours(err)
	}
	if err := s.data.Chmod(0o444); err != nil {
		return ours(err)
	}
	if err := f.write(s, journal{Sum: sum}); err != nil {
		return ours(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.cond.Broadcast()
	err := s.data.Close()
	s.data, s.sum = nil, sum
	f.left--
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
	return err
}
