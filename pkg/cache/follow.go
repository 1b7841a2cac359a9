package cache

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// hashBuffer is for reading back: the pages are there, and each file in progress has one of its own.
const hashBuffer = 128 << 10

// advance hashes what is contiguous, reading it back from the page cache just behind the writers, saves
// the journal now and then, and completes the slot after its last byte. One caller at a time does so, for
// all; the others go on fetching.
func (f *fetcher) advance(s *slot) error {
	f.mu.Lock()
	if s.hashing || s.sum != "" {
		f.mu.Unlock()
		return nil
	}
	s.hashing = true
	err := f.follow(s, make([]byte, min(hashBuffer, max(1, s.file.Size))))
	complete := err == nil && s.hashed == s.file.Size
	if !complete {
		s.hashing = false
		f.cond.Broadcast()
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
		from, end := s.hashed, min(s.contiguous(), s.hashed+s.step)
		var saved journal
		var err error
		dropped := s.dropped
		// Hash first, so that what is done is not hashed again after a restart, unless hashing falls behind.
		save := f.enough(s) && (end == from || s.unsaved >= f.bound(s)*3/2)
		switch {
		case save:
			s.unsaved, s.due = 0, false
			f.cond.Broadcast()
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
			n, err = io.CopyBuffer(s.hashes(), io.NewSectionReader(s.data, from, end-from), buf)
			if err == nil && n != end-from {
				err = io.ErrUnexpectedEOF
			}
			if err == nil {
				// Not what was hashed just now: the disk has had no time for it.
				err = f.settleRange(s, dropped, from)
			}
		}
		f.mu.Lock()
		if err != nil {
			if !save {
				s.unhash() // it may hold a part of what was read
			}
			return ours(fmt.Errorf("%s: %w", s.path(), err))
		}
		if !save {
			s.dropped, s.hashed = from, end
			f.cond.Broadcast()
		}
	}
}

// settleRange gives back the memory of what is hashed: nobody reads it before the model is complete, and it
// would take the place of pages that somebody does read. Pages that go at once are also the next to be
// written to, which costs a quarter of the first touch of a page that a virtual machine had given away.
func (j *job) settleRange(s *slot, from, to int64) error {
	return j.lost(s, s.data.Settle(from, to-from))
}

// hashes is what the content is written to. It hides all but Write, so that the caller's buffer is used.
func (s *slot) hashes() io.Writer {
	if s.check == nil {
		return struct{ io.Writer }{s.hash}
	}
	return io.MultiWriter(s.hash, s.check)
}

// wrong says what is wrong with the content of s, all of which is hashed to sum; "" where nothing is.
func (s *slot) wrong(sum model.Digest) string {
	switch {
	case s.file.Digest != "" && sum != s.file.Digest:
		return fmt.Sprintf("the origin sent sha256 %s instead of %s: mend the file there or the digest", sum, s.file.Digest)
	case s.check != nil && !s.file.Check.Matches(s.check):
		return fmt.Sprintf("what the origin sent is not of %s, as it says it is: mend the file there", s.file.Check)
	}
	return ""
}

// complete verifies a slot whose bytes are all hashed.
func (f *fetcher) complete(s *slot) error {
	sum := model.Digest(hex.EncodeToString(s.hash.Sum(nil)))
	if text := s.wrong(sum); text != "" {
		f.mu.Lock()
		f.got.Add(-s.bytes())
		s.reset()
		s.data.Close()
		s.data = nil
		f.open--
		f.finished(s)
		f.mu.Unlock()
		return errors.Join(wrongContent(s, sum, text),
			f.disk.Remove(s.journal()), f.disk.Remove(s.path()))
	}
	if err := f.sync(s); err != nil {
		return ours(err)
	}
	s.data.Drop(0, s.file.Size)
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
	f.open--
	f.finished(s)
	f.left--
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
	return err
}

// keep has everything saved now and then, however slowly it comes, and second streams considered, until ctx
// is done.
func (f *fetcher) keep(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for saved := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		f.cond.Broadcast() // whoever is idle looks for a slow range
		if time.Since(saved) < saveAfter {
			continue
		}
		saved = time.Now()
		if err := f.settle(true); err != nil {
			f.mu.Lock()
			f.fail(ctx, f.slots[0], err)
			f.mu.Unlock()
			return
		}
		var due []*slot
		f.mu.Lock()
		for _, s := range f.large[:min(len(f.large), openFiles)] {
			if s.data != nil && s.unsaved > 0 {
				s.due = true
				due = append(due, s)
			}
		}
		f.mu.Unlock()
		for _, s := range due {
			if err := f.advance(s); err != nil {
				f.mu.Lock()
				f.fail(ctx, s, err)
				f.mu.Unlock()
				return
			}
		}
	}
}

// park saves and closes the files that are not complete.
func (j *job) park() error {
	var errs []error
	for _, s := range j.slots {
		if s.small || s.data == nil {
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

// sync makes a slot's data durable.
func (j *job) sync(s *slot) error { return j.lost(s, s.data.Sync()) }

// lost notes that err is of a write that failed. The kernel may have dropped the pages, and a second
// fdatasync would say nothing of it, so all of the content counts as lost.
func (j *job) lost(s *slot, err error) error {
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
