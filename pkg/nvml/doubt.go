package nvml

import (
	"errors"
	"time"
)

// One GPU in a bad state may answer what is meant for the whole driver ("uninitialized", "not loaded", "library
// and kernel driver do not fit"), while the others work. So such an answer is only a doubt, until a call that is
// no GPU's says the same, or nobody says otherwise. Until then the GPU is neither judged nor asked again: when the
// driver was away, it is well as soon as the driver is back.

// doubt puts an answer off, and asks whether the driver is there.
func (f *follower) doubt(s *slot, a answer) error {
	now := time.Now()
	s.doubted, s.doubtedAt = &a, now
	s.hung, s.deadline = false, now.Add(f.deadline)
	if f.nobodySaysOtherwise() {
		return errors.New(a.fault.explain())
	}
	select {
	case f.recount <- struct{}{}:
	default: // it is asked for
	}
	return nil
}

// nobodySaysOtherwise says that every GPU that answers answers for the whole driver.
func (f *follower) nobodySaysOtherwise() bool {
	doubts := 0
	for _, s := range f.slots {
		switch {
		case s.doubted != nil:
			doubts++
		case !s.hung:
			return false
		}
	}
	return doubts > 0
}

// believe takes the answers for the GPUs' own that were given before the driver was asked, which it answered.
func (f *follower) believe(asked time.Time) (urgent bool) {
	for i := range f.slots {
		if s := &f.slots[i]; s.doubted != nil && !asked.Before(s.doubtedAt) {
			a := *s.doubted
			s.doubted = nil
			urgent = f.accept(s, a) || urgent
		}
	}
	return urgent
}
