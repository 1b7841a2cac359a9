package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// diskEvery is how often the disk is looked at. It costs three system calls.
const diskEvery = 5 * time.Second

// The problems of a disk. Models that can be read stay Ready with the first two.
const (
	readOnlyDisk = "DiskReadOnly"
	fullDisk     = "DiskFull"
	failingDisk  = "DiskFailed"
)

// guard looks after the disk until ctx is done, and ends Run when it is gone: whoever opens the cache again then
// finds out whether it is back.
func (c *Cache) guard(ctx context.Context, end context.CancelCauseFunc) {
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		problem, gone := c.inspect()
		if gone != nil {
			end(gone)
			return
		}
		if c.sealed && problem.Reason != readOnlyDisk && problem.Reason != failingDisk {
			end(ErrWritable)
			return
		}
		c.noteDisk(problem)
		c.mu.Lock()
		c.setRight(time.Now())
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// inspect is what ails the disk now; gone is that it is not the one that was opened.
func (c *Cache) inspect() (problem model.Problem, gone error) {
	here, err := os.Stat(c.at.lock())
	opened, errOpened := c.lock.Stat()
	if err != nil || errOpened != nil || !os.SameFile(here, opened) {
		return problem, fmt.Errorf("the disk of the cache root %s is gone, or another: mount it back: %w", c.cfg.Root, errors.Join(err, errOpened))
	}
	// Opening for writing changes nothing and is what says so: ext4 since Linux 6.14 goes by itself into a state after
	// an error in which statfs(2) still calls it writable.
	switch err := writable(c.at.lock()); {
	case errors.Is(err, syscall.EROFS):
		return c.readOnlyProblem(), nil
	case errors.Is(err, syscall.EIO):
		return model.Problem{Reason: failingDisk, Message: fmt.Sprintf(
			"the disk of %s fails: see dmesg, repair and remount it", c.cfg.Root)}, nil
	}
	if _, free, err := durable.Space(c.cfg.Root); err == nil && free < minRangeSize {
		return model.Problem{Reason: fullDisk, Message: fmt.Sprintf(
			"the disk of %s is full, by others than the cache: make room on it", c.cfg.Root)}, nil
	}
	return problem, nil
}

func (c *Cache) readOnlyProblem() model.Problem {
	return model.Problem{Reason: readOnlyDisk, Message: fmt.Sprintf(
		"the disk of %s is read-only, as the kernel makes it after an error: what is here can be read, nothing can be pulled: see dmesg, repair and remount it", c.cfg.Root)}
}

// ErrWritable is the end of Run where the disk was read-only when the cache was opened, and is not any more: open it
// again, for that finishes what a crash left.
var ErrWritable = errors.New("the cache's disk can be written to again")

// mayWrite refuses what a person asks for while the disk is read-only. c.mu is held.
func (c *Cache) mayWrite() error {
	if c.ails.Reason != readOnlyDisk {
		return nil
	}
	return &model.Error{Reason: c.ails.Reason, Text: c.ails.Message}
}

// swept is the error of a step by which Open tidies up. What cannot be tidied up, because the disk is read-only, stays.
func (c *Cache) swept(err error) error {
	if c.sealed && errors.Is(err, syscall.EROFS) {
		return nil
	}
	return err
}

func writable(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// noteDisk publishes what ails the disk, and has what failed for it tried again at once when that has passed.
func (c *Cache) noteDisk(p model.Problem) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.ails
	if p == was {
		return
	}
	c.ails = p
	if p.Reason != "" {
		c.log.Error("the disk of the cache", "reason", p.Reason, "message", p.Message)
	} else {
		c.log.Info("the disk of the cache is well again", "was", was.Reason)
		for _, e := range c.models {
			if e.reason == was.Reason || e.reason == failingDisk || e.reason == "NoSpace" {
				e.retryAt, e.tries = time.Time{}, 0
			}
		}
	}
	c.changed()
}

// ofDisk gives errors of the disk a reason that a person can act on.
func ofDisk(err error) error {
	if err == nil || model.ReasonOf(err) != "Failed" {
		return err
	}
	for _, known := range []struct {
		is           syscall.Errno
		reason, text string
	}{
		{syscall.EROFS, readOnlyDisk, "the cache's disk is read-only"},
		{syscall.ENOSPC, "NoSpace", "the cache's disk is full"},
		{syscall.EDQUOT, "NoSpace", "the quota of the cache's disk is used up"},
		{syscall.EIO, failingDisk, "the cache's disk fails: see dmesg"},
		{syscall.ESTALE, failingDisk, "the cache's disk is gone"},
		{syscall.ENODEV, failingDisk, "the cache's disk is gone"},
	} {
		if errors.Is(err, known.is) {
			return &model.Error{Reason: known.reason, Err: err, Text: known.text}
		}
	}
	return err
}

// link gives a content another name.
func (c *Cache) link(from, to string) error {
	err := c.disk.Link(from, to)
	if errors.Is(err, syscall.EMLINK) {
		return &model.Error{Reason: "TooManyLinks", Final: true, Err: err, Text: "the filesystem has no further name for content that many " +
			"files share, most often empty ones (ext4 has 65,000, and a file of a model takes up to two): remove models that have " +
			"it, leave such files out, or give the cache an XFS disk"}
	}
	return err
}
