package cache

import (
	"fmt"
	"math"
	"path"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Threshold is what somebody else wants to be free of the filesystem, and begins to take away from pods where it is
// not: the cache stays a hundredth of the filesystem above it, for what others write meanwhile.
type Threshold struct {
	Why     string  // for people, such as "the kubelet evicts pods at nodefs.available<10%"
	Inodes  bool    // not bytes
	Percent float64 // of the filesystem; 0 where Amount says it
	Amount  int64   // bytes or inodes
}

func (t Threshold) of(all int64) int64 {
	if t.Percent > 0 {
		return int64(float64(all) * t.Percent / 100)
	}
	return t.Amount
}

// amount is of a filesystem, taken or free.
type amount struct{ bytes, files int64 }

// reasons are why not more of it may be taken, for people.
type reasons struct{ bytes, files string }

// floor is what is free of the filesystem, and what of that must stay so.
type floor struct {
	free, keep amount
	why        reasons
}

// floor looks at the filesystem, and at what others want of it.
func (c *Cache) floor() (f floor, err error) {
	all := amount{}
	if all.bytes, f.free.bytes, err = durable.Space(c.cfg.Root); err != nil {
		return f, err
	}
	if all.files, f.free.files, err = durable.Inodes(c.cfg.Root); err != nil {
		return f, err
	}
	if all.files == 0 {
		f.free.files = math.MaxInt64 / 2 // and no sum overflows
	}
	f.keep = amount{bytes: max(c.cfg.KeepFree, all.bytes/100*int64(c.cfg.KeepFreePercent)), files: all.files / 100}
	if f.keep.bytes > 0 {
		f.why.bytes = fmt.Sprintf("%s of the disk stay free by cache.keepFree", model.FormatBytes(f.keep.bytes))
	}
	f.why.files = fmt.Sprintf("%d inodes of the disk stay free, a hundredth", f.keep.files)
	for _, t := range c.cfg.Thresholds() {
		if t.Inodes {
			if keep := t.of(all.files) + all.files/100; all.files > 0 && keep > f.keep.files {
				f.keep.files, f.why.files = keep, fmt.Sprintf("%d inodes of the disk stay free, because %s", keep, t.Why)
			}
		} else if keep := t.of(all.bytes) + all.bytes/100; keep > f.keep.bytes {
			f.keep.bytes, f.why.bytes = keep, fmt.Sprintf("%s of the disk stay free, because %s", model.FormatBytes(keep), t.Why)
		}
	}
	return f, nil
}

// unmade is how many files j may still make: its contents, and the journals of large ones.
func (j *job) unmade() (n int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.slots {
		switch {
		case s.sum != "":
		case s.small:
			n++
		default:
			n += 2
		}
	}
	return n
}

// folders is how many directories j's model makes at most, where pods see it: by name, by revision and in the hub.
func (j *job) folders() int64 {
	seen := map[string]bool{}
	for _, f := range j.plan.Manifest.Files {
		for dir := path.Dir(f.Path); !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
		}
	}
	return 3 * int64(len(seen))
}
