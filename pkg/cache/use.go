package cache

import (
	"context"
	"io/fs"
	"os"
	"strings"
	"time"
)

const (
	usesEvery  = 10 * time.Second // between looks at what was opened
	rearmAfter = time.Minute      // a model that was opened is not watched for so long: one look a minute is enough
	noteEvery  = time.Hour        // between writes of a model's last use
)

// opens tells which models had a file opened. Nothing in it waits. It is used by one goroutine.
type opens interface {
	// watch has the directories of a model watched, until a file in one of them is opened or they are gone.
	watch(name string, dirs ...string) error
	// opened names the models that had a file opened since the last call.
	opened() ([]string, error)
	close() error
}

// uses keeps the models' last use true, as far as opens can tell.
type uses struct {
	c       *Cache
	opens   opens
	watched map[string]watched
	looked  time.Time // when opens was asked last
	said    error     // the failure that was logged last
}

// watched is a visible model as it was when it was last watched.
type watched struct {
	record *record
	again  time.Time // when to watch it again, after a use; zero while it is watched
	// snapshot is its directory in the hub as it was then: the repository is made anew when a model of it changes.
	snapshot fs.FileInfo
}

// moved reports whether the directory in the hub is another one by now.
func (u *uses) moved(w watched) bool {
	if w.record.Hub.Repo == "" {
		return false
	}
	now, err := os.Lstat(u.c.at.snapshot(w.record))
	return err == nil && (w.snapshot == nil || !os.SameFile(now, w.snapshot))
}

// observe watches the visible models and notes their uses until ctx is done.
func (c *Cache) observe(ctx context.Context) {
	in, err := c.cfg.opens()
	if err != nil {
		c.log.Warn("uses of models are not seen: eviction goes by when they were published", "err", err)
		return
	}
	u := &uses{c: c, opens: in, watched: map[string]watched{}}
	tick := time.NewTicker(usesEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		u.look()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	u.look()
	c.flushUses(0)
	if err := in.close(); err != nil {
		c.log.Warn("stop watching the models", "err", err)
	}
}

// look notes what was opened, and watches what is not watched yet.
func (u *uses) look() {
	now := time.Now()
	names, err := u.opens.opened()
	u.c.mu.Lock()
	for _, name := range names {
		of, revision, old := strings.Cut(name, "@")
		e := u.c.models[of]
		w, ok := u.watched[name]
		if e == nil || !ok || e.verifying > 0 || !e.verified.Before(u.looked) {
			delete(u.watched, name) // watched again below, if it is there
			continue
		}
		if !old {
			e.used = now
		} else {
			if e.usedOld == nil {
				e.usedOld = map[string]time.Time{}
			}
			e.usedOld[revision] = now
		}
		w.again = now.Add(rearmAfter)
		u.watched[name] = w
	}
	u.looked = now
	visible := map[string]*record{}
	for name, e := range u.c.models {
		if e.visible != nil && !e.removing {
			visible[name] = e.visible
		}
		for _, r := range e.old {
			visible[name+"@"+r.short()] = r
		}
	}
	u.c.mu.Unlock()
	for name, w := range u.watched {
		if visible[name] != w.record {
			delete(u.watched, name) // the kernel ends the watch with the directory
		}
	}
	for name, r := range visible {
		w, ok := u.watched[name]
		if ok && (w.again.IsZero() || w.again.After(now)) && !u.moved(w) {
			continue
		}
		dirs := []string{u.c.at.revision(r)}
		if r.Retired.IsZero() {
			dirs = append(dirs, u.c.at.visible(name))
		}
		w = watched{record: r}
		if r.Hub.Repo != "" {
			w.snapshot, _ = os.Lstat(u.c.at.snapshot(r)) // before it is watched: one that takes its place meanwhile is another
			dirs = append(dirs, u.c.at.snapshot(r))
		}
		if e := u.opens.watch(name, dirs...); e != nil {
			err = e
		}
		u.watched[name] = w
	}
	if err != nil && (u.said == nil || err.Error() != u.said.Error()) {
		u.c.log.Warn("not every use of a model is seen", "err", err)
		u.said = err
	}
	u.c.flushUses(noteEvery)
}

// flushUses makes durable the uses that are that much newer than what is on the disk.
func (c *Cache) flushUses(newer time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ails.Reason == readOnlyDisk {
		return
	}
	changed := false
	for _, e := range c.models {
		m, due := e.memory, false
		if e.visible != nil && e.used.Sub(m.LastUse) > newer {
			m.LastUse, due = e.used, true
		}
		uses := map[string]time.Time{}
		for _, r := range e.old {
			used := e.opened(r)
			due = due || used.Sub(m.Uses[r.short()]) > newer
			if !used.IsZero() {
				uses[r.short()] = used
			}
		}
		if !due {
			continue
		}
		if m.Uses = nil; len(uses) > 0 {
			m.Uses = uses
		}
		if err := c.remember(e, m); err != nil {
			c.log.Warn("a model's last use is not kept", "model", e.name, "err", err)
			continue
		}
		changed = true
	}
	if changed {
		c.publish()
	}
}

// lastUse is when a file of the model was last opened, as far as is known, or when it was published.
func (e *entry) lastUse() time.Time {
	if e.used.After(e.memory.LastUse) {
		return e.used
	}
	return e.memory.LastUse
}
