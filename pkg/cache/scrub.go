package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Scrub is how the content is read again to find what the disk has lost. The zero Scrub does not.
type Scrub struct {
	Every time.Duration // from the beginning of one pass to that of the next
	Rate  int64         // bytes a second, at most; 0 means DefaultScrubRate
}

// DefaultScrubRate reads a terabyte in four hours and takes a few hundredths of a core for sha256.
const DefaultScrubRate = 64 << 20

const (
	scrubChunk = 1 << 20
	// scrubWait is the least that is worth a wait: a timer may be a millisecond late, and there may be 100,000 small files.
	scrubWait = 10 * time.Millisecond
	// scrubNote is how much of a pass a restart may lose.
	scrubNote = time.Minute
)

// scrubbing is how far the scrub has come: store/scrub.json.
type scrubbing struct {
	Began time.Time    `json:"began"`          // of the pass in progress, or else of the last
	After model.Digest `json:"after,omitzero"` // the last content that the pass in progress is through with
	Done  bool         `json:"done"`           // no pass is in progress
	Ended time.Time    `json:"ended,omitzero"` // of the last pass that came to its end
}

// scrub reads all content again, pass after pass, until ctx is done. What it reads it reads from the disk,
// past the page cache, where hot weights are and stay: a bit that flipped on the disk under a page that is still
// good is found, and before the page is given up. What it finds is withdrawn and fetched again, as Verify does it.
func (c *Cache) scrub(ctx context.Context) {
	if c.cfg.Scrub.Every <= 0 {
		return
	}
	var s scrubbing
	if err := readJSON(c.at.scrub(), &s); err != nil || s.Began.After(time.Now()) { // none yet, or the clock was set back
		s = scrubbing{Began: time.Now().UTC(), Done: true, Ended: past(s.Ended, time.Now()).UTC()} // all that comes in is verified as it comes
		c.noteScrub(s)
	}
	c.mu.Lock()
	c.scrubbed.Ended = s.Ended
	c.publish()
	c.mu.Unlock()
	for ctx.Err() == nil {
		if s.Done {
			if !sleep(ctx, time.Until(past(s.Began, time.Now()).Add(c.cfg.Scrub.Every))) {
				return
			}
			s = scrubbing{Began: time.Now().UTC(), Ended: s.Ended}
			c.noteScrub(s)
		}
		if !c.pass(ctx, &s) {
			return
		}
	}
}

func (c *Cache) noteScrub(s scrubbing) {
	if err := writeJSON(c.disk, c.at.scrub(), s, 0o600); err != nil {
		c.log.Warn("how far the scrub has come is not kept", "err", err)
	}
}

// sleep reports whether d went by before ctx was done.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(max(0, d))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// pass reads what comes after s.After, in the order of the digests. It reports whether it came to the end.
func (c *Cache) pass(ctx context.Context, s *scrubbing) bool {
	c.mu.Lock()
	var todo []model.Digest
	for d := range c.blobs {
		if d > s.After {
			todo = append(todo, d)
		}
	}
	c.mu.Unlock()
	slices.Sort(todo)
	damaged, noted, shown := 0, time.Now(), time.Now()
	for _, d := range todo {
		if !c.sound(ctx, d) {
			damaged++
		}
		if ctx.Err() != nil {
			c.noteScrub(*s)
			return false
		}
		if time.Since(shown) > usesEvery {
			shown = time.Now()
			c.mu.Lock()
			c.publish()
			c.mu.Unlock()
		}
		if s.After = d; time.Since(noted) > scrubNote {
			noted = time.Now()
			c.noteScrub(*s)
		}
	}
	s.After, s.Done, s.Ended = "", true, time.Now().UTC()
	c.noteScrub(*s)
	c.log.Info("all content was read again", "files", len(todo), "damaged", damaged, "since", s.Began)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scrubbed.Ended = s.Ended
	c.publish()
	return true
}

// sound reads one content and reports whether it is what its name says. What is not, twice, is withdrawn.
func (c *Cache) sound(ctx context.Context, d model.Digest) bool {
	for range 2 { // once may be the memory
		sum, err := c.readSlowly(ctx, d)
		switch {
		case ctx.Err() != nil, errors.Is(err, fs.ErrNotExist):
			return true
		case err != nil && !errors.Is(err, syscall.EIO):
			c.log.Error("the scrub cannot read a file", "digest", d, "err", err)
			return true
		case err == nil && sum == d:
			return true
		}
	}
	c.mu.Lock()
	_, here := c.blobs[d]
	if here {
		c.scrubbed.Damaged++
		c.failures["Damaged"]++
	}
	c.mu.Unlock()
	if !here {
		return true // it went meanwhile, perhaps to make way
	}
	c.log.Error("content is damaged on disk", "digest", d)
	if err := c.condemn(ctx, map[model.Digest]bool{d: true}); err != nil {
		c.log.Error("damaged content is still there", "digest", d, "err", err)
	}
	return false
}

// readSlowly is the sha256 of what the disk has of a blob.
func (c *Cache) readSlowly(ctx context.Context, d model.Digest) (model.Digest, error) {
	f, err := openCold(c.at.blob(d), true)
	if err != nil {
		return "", err
	}
	defer f.close()
	h := sha256.New()
	for off := int64(0); ; {
		part, err := f.read(off)
		h.Write(part)
		off += int64(len(part))
		if errors.Is(err, io.EOF) {
			return model.Digest(hex.EncodeToString(h.Sum(nil))), nil
		}
		if err != nil {
			return "", err
		}
		c.mu.Lock()
		c.scrubbed.Bytes += int64(len(part))
		c.mu.Unlock()
		c.owed += time.Duration(int64(time.Second) * int64(len(part)) / c.cfg.Scrub.Rate)
		if c.owed < scrubWait {
			continue
		}
		if !sleep(ctx, c.owed) {
			return "", ctx.Err()
		}
		c.owed = 0
	}
}

func (l layout) scrub() string { return filepath.Join(l.store(), "scrub.json") }
