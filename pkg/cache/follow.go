package cache

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Two goroutines go along with each large file: one hashes what is contiguous, reading it back from the page cache just
// behind the writers, one makes durable what came and completes the file. Were they streams that do so in between, the
// range of such a one would stand still meanwhile, and all that the others bring would wait behind it in memory.

const hashStep = 4 << 20 // as much is hashed at a time

// hashable reports whether there is a step to hash, where s is contiguous up to end.
func (s *slot) hashable(end int64) bool {
	return end > s.Hashed && (end == s.file.Size || end-s.Hashed >= min(hashStep, s.step))
}

// follow hashes s to its end, or to where it is contiguous when the run ends.
func (f *fetcher) follow(s *slot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s.Hashed < s.file.Size {
		from, end := s.Hashed, s.contiguous()
		if end == from && f.err != nil {
			return nil
		}
		if !s.hashable(end) && f.err == nil {
			f.cond.Wait()
			continue
		}
		end = min(end, from+hashStep)
		hash, check := s.hash, s.check
		s.hashing = true
		f.mu.Unlock()
		err := f.hashes.Hash(s.data, from, end, hash, check)
		f.mu.Lock()
		s.hashing = false
		f.cond.Broadcast()
		if s.hash != hash {
			return nil // what was written is lost: see lost
		}
		if err == nil {
			err = s.keepHash(end)
		}
		if err != nil {
			s.unhash() // it may hold a part of what was read
			return ours(fmt.Errorf("%s: %w", s.path(), err))
		}
	}
	return nil
}

// persist saves s now and then, and completes it when all of it is hashed.
func (f *fetcher) persist(s *slot) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for err == nil {
		complete := s.Hashed == s.file.Size
		switch {
		case complete:
		case f.err != nil:
			return nil // park saves
		case !f.enough(s):
			f.cond.Wait()
			continue
		}
		saved, from := s.record(), s.dropped
		s.unsaved, s.due, s.saving = 0, false, true
		f.mu.Unlock()
		if complete {
			err = f.complete(s)
		} else if err = f.save(s, saved); err == nil {
			// Nobody reads it before the model is complete, and it would take the place of pages that somebody does read.
			// Pages that go at once are also the next to be written to, which costs a quarter of the first touch of a page
			// that a virtual machine had given away.
			s.data.Drop(from, saved.Hashed-from)
		}
		f.mu.Lock()
		s.saving = false
		f.cond.Broadcast()
		if complete {
			return err
		}
		s.dropped = saved.Hashed
	}
	return ours(fmt.Errorf("%s: %w", s.path(), err))
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
		f.mu.Lock()
		for _, s := range f.large[:min(len(f.large), openFiles)] {
			s.due = true
		}
		f.cond.Broadcast()
		f.mu.Unlock()
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
		errs = append(errs, j.save(s, s.record()), s.data.Close())
		s.data, s.stop = nil, nil
	}
	return errors.Join(errs...)
}

// save makes the data durable first and then the journal, whose content was fixed before.
func (j *job) save(s *slot, saved journal) error {
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
