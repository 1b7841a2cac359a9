package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

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
	case "Throttled":
		return nil // the lane is shut for as long as it takes
	}
	f.hitched(err)
	timer := time.NewTimer(max(backoff(tries), min(model.RetryAfter(err), patience)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// hitched notes why a stream ended whose bytes another is to bring.
func (f *fetcher) hitched(err error) {
	f.hitch.Store(&hitch{model.Printable(err.Error()), f.got.Load()})
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

const (
	stallAfter = 30 * time.Second
	// stallBytes is what has to come within stallAfter: about 1 KiB/s. What is slower holds a stream that
	// is better spent on a new try.
	stallBytes = 32 << 10
)

// stream gives n bytes from off to sink, buffer by buffer with their distance from off, through one stream. It
// returns how many came. The stream is given up when too little arrives within stallAfter; how long it takes
// in all does not matter, nor what sink takes. A firm one is not given up for another model's.
func (f *fetcher) stream(ctx context.Context, s *slot, off, n int64, firm bool, sink func(p []byte, at int64) error) (at int64, err error) {
	if err := f.pace.open(ctx); err != nil {
		return 0, err
	}
	ctx, t, err := f.streams.take(ctx, f.job, firm)
	if err != nil {
		return 0, err
	}
	defer f.streams.give(t)
	stalled := &model.Error{Reason: "Stalled", Text: fmt.Sprintf(
		"less than %d KiB from the origin in %s", stallBytes>>10, stallAfter)}
	timer := time.AfterFunc(stallAfter, func() { t.end(stalled) })
	defer timer.Stop()
	// because is why, as far as somebody decided it; what the origin did is told to its lane.
	because := func(err error) error {
		cause := context.Cause(ctx)
		if cause == nil || model.ReasonOf(err) == "Throttled" { // a complaint counts, whoever ended the stream meanwhile
			f.streams.failed(t.lane, err, t.began)
		} else {
			f.streams.failed(t.lane, cause, t.began)
		}
		return cmp.Or(cause, err)
	}
	body, err := f.src.Open(ctx, f.ref, *s.file, off, n)
	if err != nil {
		return 0, because(err)
	}
	defer body.Close()
	// No Read may wait for ever, whatever the source makes of its context.
	unblock := context.AfterFunc(ctx, func() { body.Close() })
	defer unblock()
	for lately := 0; at < n && err == nil; {
		fill, end := 0, int(min(int64(len(t.buf)), n-at))
		for fill < end && err == nil {
			var k int
			k, err = body.Read(t.buf[fill:end])
			if at == 0 && fill == 0 && k > 0 {
				f.streams.answered(t)
			}
			fill += k
			f.streams.moved(t, k)
			if lately += k; lately >= stallBytes {
				lately = 0
				timer.Reset(stallAfter)
			}
		}
		if fill == 0 {
			break
		}
		f.fetched.Add(int64(fill))
		timer.Stop() // the wait is ours now
		if err := f.pace.spend(ctx, fill); err != nil {
			return at, because(err)
		}
		if err := sink(t.buf[:fill], at); err != nil {
			return at, err
		}
		at += int64(fill)
		if at < n && !firm && f.pace.plan.paused(time.Now()) != "" {
			return at, errYield // no connection lasts until the window is over
		}
		timer.Reset(stallAfter)
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
