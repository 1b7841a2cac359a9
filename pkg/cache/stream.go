package cache

import (
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
	}
	timer := time.NewTimer(max(backoff(tries), min(model.RetryAfter(err), patience)))
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
