package cache

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	// diskPatience is how long a model waits for the disk that has it, before it is pulled to another: a disk that is
	// mounted late, or again, brings it without a download.
	diskPatience = 5 * time.Minute
	// refusedFor is how long a disk that had no room for a model is not asked again for its sake by another.
	refusedFor = 10 * time.Minute
)

// holding is how much of a model a cache has.
type holding int

const (
	wish    holding = iota + 1 // it was asked for by a command, or is to be pinned
	partial                    // a download
	earlier                    // old revisions
	current
)

// holdings is what the cache has, by name.
func (c *Cache) holdings() map[string]holding {
	c.mu.Lock()
	defer c.mu.Unlock()
	has := map[string]holding{}
	for name, e := range c.models {
		m := e.memory
		switch {
		case e.visible != nil:
			has[name] = current
		case len(e.old) > 0:
			has[name] = earlier
		case e.job != nil || e.importing:
			has[name] = partial
		case m.Wished || m.Pinned || len(m.Pins) > 0 || m.Held != (hold{}):
			has[name] = wish
		}
	}
	return has
}

// bare is a name without its revision.
func bare(name string) string {
	name, _, _ = strings.Cut(name, "@")
	return name
}

// house gives each name its disk, and reports what other disks have of one. s.mu is held.
func (s *Set) house() (copies []copied) {
	has := map[*disk]map[string]holding{}
	names := map[string]model.Ref{}
	for _, u := range s.uses {
		if u.Pull && u.Source != (model.Ref{}) {
			names[u.Model] = u.Source
		}
	}
	for _, m := range s.specs {
		names[m.Name] = m.Source
	}
	for _, d := range s.open() {
		has[d] = d.cache.holdings()
		for name := range has[d] {
			if _, known := names[name]; !known {
				names[name] = model.Ref{}
			}
		}
	}
	before := s.homes
	s.homes, s.waiting = map[string]*disk{}, map[string]model.Problem{}
	var homeless []string
	for name := range names {
		home := before[name]
		if home != nil && (home.cache == nil || s.disk(home.Name) != home || has[home][name] == 0 && home.cache.readOnly()) {
			home = nil
		}
		for _, d := range s.open() {
			if had := has[d][name]; had > 0 && (home == nil || had > has[home][name] || had == has[home][name] && home != before[name] && s.links[name] == d.Name && d.Name != "") {
				home = d
			}
		}
		s.homes[name] = home
		if home == nil {
			homeless = append(homeless, name)
			continue
		}
		for _, d := range s.open() {
			if d != home && has[d][name] > 0 {
				copies = append(copies, copied{name, d, home})
			}
		}
	}
	slices.SortFunc(homeless, func(a, b string) int { return s.rank(a) - s.rank(b) })
	for _, name := range homeless {
		if p := s.waits(name); p.Reason != "" {
			s.waiting[name] = p
		} else {
			s.homes[name] = s.roomiest(names[name])
		}
	}
	for name := range s.refused {
		if _, known := names[name]; !known {
			delete(s.refused, name)
		}
	}
	return copies
}

// copied is what a disk has of a model that is another's.
type copied struct {
	name     string
	on, home *disk
}

// rank is a name's place in the configuration. s.mu is held.
func (s *Set) rank(name string) int {
	if i := slices.IndexFunc(s.specs, func(m model.Spec) bool { return m.Name == name }); i >= 0 {
		return i
	}
	return len(s.specs)
}

// waits is why a model that no open disk has is not given to one yet; zero where nothing is waited for. s.mu is held.
func (s *Set) waits(name string) model.Problem {
	if len(s.open()) == 0 {
		return model.Problem{}
	}
	of := s.disk(s.links[name])
	if s.links[name] != "" && of != nil && of.cache == nil {
		if of.err == nil {
			return model.Problem{Reason: "CacheClosed", Message: "it is on disk " + of.Name + ", which is not open yet"}
		}
		if time.Since(of.since) < diskPatience {
			return model.Problem{Reason: "DiskGone", Message: "it is on disk " + of.Name + ", which is waited for until " +
				of.since.Add(diskPatience).UTC().Format("15:04:05 UTC") + ", before it is pulled to another: " + of.err.Error()}
		}
	}
	for _, d := range s.disks {
		if d.cache == nil && d.err == nil {
			return model.Problem{Reason: "CacheClosed", Message: "it is not known yet whether it is on " + d.called() + ", which is not open yet"}
		}
	}
	return model.Problem{}
}

// label is a disk's name where the root has one too.
func (r Root) label() string { return cmp.Or(r.Name, RootDisk) }

// called is what people call a disk.
func (r Root) called() string {
	if r.Name == "" {
		return "cache.root"
	}
	return "disk " + r.Name
}

// drop takes from a disk what it has of a model that is another's. What that has is at least as much, so that nothing
// in sight goes that is not in sight there. s.mu is held.
func (s *Set) drop(c copied) {
	if time.Since(c.on.dropped[c.name]) < settleEvery {
		return
	}
	c.on.dropped[c.name] = time.Now()
	s.log.Info("a model is on two disks: the copy goes", "model", c.name, "stays on", c.home.called(), "goes from", c.on.called())
	from, work := c.on.cache, c.on.work
	c.on.group.Go(func() {
		if err := from.Remove(work, c.name, true); err != nil && work.Err() == nil && model.ReasonOf(err) != "NotFound" {
			s.log.Warn("the copy of a model stays, and counts", "model", c.name, "disk", c.on.called(), "err", err)
		}
	})
}

// readOnly reports whether nothing can be pulled to the disk.
func (c *Cache) readOnly() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ails.Reason == readOnlyDisk
}

// roomiest is the disk to which a model goes of which nothing is known but its source: where others of its repository
// are, which may share content with it and a directory of the hub, or else where there is the most room for each model
// that is to come. nil where none is open. s.mu is held.
func (s *Set) roomiest(ref model.Ref) *disk {
	open := s.open()
	if len(open) < 2 {
		return first(open)
	}
	repo := repositoryOf(ref)
	var best *disk
	var most int64
	for _, d := range open {
		names, repos := d.cache.shown()
		if repo != "" && slices.Contains(repos, repo) {
			return d
		}
		coming := int64(1)
		for name, home := range s.homes {
			if repo != "" && home == d && repositoryOf(s.source(name)) == repo {
				return d
			}
			if home == d && !slices.Contains(names, name) {
				coming++
			}
		}
		if room := d.cache.spare() / coming; best == nil || room > most {
			best, most = d, room
		}
	}
	return best
}

// source is where a model is to come from, as the configuration or a pod says; zero where neither does. s.mu is held.
func (s *Set) source(name string) model.Ref {
	if i := s.rank(name); i < len(s.specs) {
		return s.specs[i].Source
	}
	for _, u := range s.uses {
		if u.Model == name && u.Pull && u.Source != (model.Ref{}) {
			return u.Source
		}
	}
	return model.Ref{}
}

func first(disks []*disk) *disk {
	if len(disks) == 0 {
		return nil
	}
	return disks[0]
}

// repositoryOf is the repository of the hub that a reference is of, "" where it is of none.
func repositoryOf(ref model.Ref) string {
	if !ref.OfHub() {
		return ""
	}
	path, _, _ := strings.Cut(ref.Path, "@")
	return strings.Trim(ref.Host+path, "/")
}

// elsewhere has a model go to another disk than at, which has nothing of it: one that has room for it as it is, or, once
// at has refused it, one that makes it. It reports whether it does, and then at works on it no more.
func (s *Set) elsewhere(at *disk, name string, files []model.File, refused bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open()) < 2 || s.homes[name] != at || at.cache == nil {
		return false
	}
	if refused {
		if s.refused[name] == nil {
			s.refused[name] = map[*disk]time.Time{}
		}
		s.refused[name][at] = time.Now()
	} else if needs, free, _ := at.cache.offer(name, at.cache, files); needs <= free {
		return false
	}
	to := s.roomFor(name, files, at, refused)
	if to == nil {
		return false
	}
	if err := move(name, at.cache, to.cache); err != nil {
		s.log.Warn("a model does not go to the disk with more room", "model", name, "disk", to.called(), "err", err)
		return false
	}
	s.log.Info("a model goes to another disk, which has room for it", "model", name, "from", at.called(), "to", to.called())
	s.homes[name] = to
	s.settle()
	return true
}

// roomFor is the disk, but not that one, with the most room for a model: without evicting anything, else, if evict, with.
// nil where there is none. s.mu is held.
func (s *Set) roomFor(name string, files []model.File, not *disk, evict bool) *disk {
	var best *disk
	var most int64
	asker := not
	if asker == nil {
		asker = first(s.open())
	}
	for _, with := range []bool{false, true} {
		for _, d := range s.open() {
			if d == not || time.Since(s.refused[name][d]) < refusedFor {
				continue
			}
			needs, room, evictable := d.cache.offer(name, asker.cache, files)
			if with {
				room += evictable
			}
			if needs <= room && (best == nil || room > most) {
				best, most = d, room
			}
		}
		if best != nil || !evict {
			return best
		}
	}
	if not == nil {
		return asker // it says what is missing
	}
	return nil
}

// goes reports whether a model of which nothing is here goes to another disk, and not on here.
func (c *Cache) goes(e *entry, files []model.File, refused bool) bool {
	if c.elsewhere == nil {
		return false
	}
	c.mu.Lock()
	here := e.visible != nil || len(e.old) > 0 || e.job != nil
	c.mu.Unlock()
	return !here && c.elsewhere(e.name, files, refused)
}

// spare is what is free for downloads, in bytes; 0 of a disk that ails.
func (c *Cache) spare() int64 {
	room, _, err := c.room(&job{})
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || c.ails.Reason != "" {
		return 0
	}
	return max(room.bytes, 0)
}

// offer is what this disk has for a model: how many bytes of these files are not here, what is free, and what would be
// evicted for it, as it is asked for at the asker. A disk that ails has nothing.
func (c *Cache) offer(name string, asker *Cache, files []model.File) (needs, free, evictable int64) {
	like := &entry{name: name}
	asker.mu.Lock()
	if e := asker.models[name]; e != nil {
		like.listed, like.spec, like.wanted, like.called, like.memory = e.listed, e.spec, e.wanted, e.called, e.memory
	}
	asker.mu.Unlock()
	c.mu.Lock()
	lacks := slices.DeleteFunc(slices.Clone(files), func(f model.File) bool { _, here := c.blobs[f.Digest]; return here })
	ails := c.ails.Reason != ""
	c.mu.Unlock()
	needs = content(lacks)
	if ails || content(files) > c.limit {
		return needs, -1, 0
	}
	_, freed := c.evictable(like)
	return needs, c.spare(), freed.bytes
}

// move takes to another cache what was asked of one, so that at no moment neither knows.
func move(name string, from, to *Cache) error {
	from.mu.Lock()
	e := from.models[name]
	if e == nil || e.memory.isZero() {
		from.mu.Unlock()
		return nil
	}
	m, newest := e.memory, e.newest
	from.mu.Unlock()

	to.mu.Lock()
	here := to.entry(name)
	err := to.remember(here, m)
	to.asked = max(to.asked, newest)
	here.newest, here.again = newest, true
	to.mu.Unlock()
	if err != nil {
		return err
	}
	from.mu.Lock()
	defer from.mu.Unlock()
	defer from.changed()
	e.restart()
	return from.remember(e, memory{})
}
