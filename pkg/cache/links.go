package cache

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Pods mount models/ of the root alone. What another disk shows they find there by a link, in by-name and in hub:
//
//	models/by-name/NAME -> ../disks/DISK/by-name/NAME
//
// models/disks/DISK is an empty folder in the root, on which the disk's own models/ is mounted wherever somebody is to
// read it: on the host, or in the container. The links never change while a model stays on its disk: what is behind
// them is exchanged as it is on one disk. One whose disk is not there leads to nothing, as if there were no model.

const toDisks = "../disks/"

// linkTo is where a link leads in by-name or hub.
func linkTo(disk, folder, name string) string { return toDisks + disk + "/" + folder + "/" + name }

// linkOf is the disk to which a link leads, "" where it is none of ours.
func linkOf(at string) string {
	target, err := os.Readlink(at)
	if err != nil {
		return ""
	}
	rest, ok := strings.CutPrefix(target, toDisks)
	disk, rest, _ := strings.Cut(rest, "/")
	if !ok || rest != path.Join(filepath.Base(filepath.Dir(at)), filepath.Base(at)) {
		return ""
	}
	return disk
}

func isLink(at string) bool { return linkOf(at) != "" }

// shown is what pods can see: names in by-name, and repositories of the hub.
func (c *Cache) shown() (names, repositories []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.models {
		if e.visible != nil {
			names = append(names, e.name)
		}
		for _, r := range e.records() {
			names = append(names, filepath.Base(c.at.revision(r)))
			if r.Hub.Repo != "" {
				repositories = append(repositories, r.Hub.Repo)
			}
		}
	}
	slices.Sort(names)
	slices.Sort(repositories)
	return names, slices.Compact(repositories)
}

// readLinks learns from the root which disk had what. A disk that is not the root, and may have been, has no links.
// s.mu is held.
func (s *Set) readLinks(d *disk) {
	at := d.cache.at
	for _, folder := range []string{at.byName(), at.hub()} {
		for name, to := range s.linksIn(folder) {
			if d != s.disks[0] {
				s.unlink(d.cache, filepath.Join(folder, name))
			} else if folder == at.byName() {
				s.links[name] = to
			}
		}
	}
}

// linksIn are the links to other disks in a folder: their disks by their names. s.mu is held.
func (s *Set) linksIn(folder string) map[string]string {
	links := map[string]string{}
	entries, err := os.ReadDir(folder)
	if err != nil {
		s.log.Error("the links to other disks cannot be read", "err", err)
	}
	for _, e := range entries {
		if to := linkOf(filepath.Join(folder, e.Name())); e.Type()&os.ModeSymlink != 0 && to != "" {
			links[e.Name()] = to
		}
	}
	return links
}

func (s *Set) unlink(c *Cache, at string) {
	if err := c.disk.Remove(at); err != nil {
		s.log.Error("a link to another disk stays, and leads to nothing", "path", at, "err", err)
	}
}

// link has the root lead to what the other disks show. s.mu is held.
func (s *Set) link() {
	if len(s.disks) == 0 || s.disks[0].cache == nil {
		return
	}
	root, want := s.disks[0], map[string]string{}
	holders := map[string][]*disk{} // of repositories of the hub
	for _, d := range s.open() {
		names, repositories := d.cache.shown()
		for _, repo := range repositories {
			holders[repo] = append(holders[repo], d)
		}
		if d == root {
			continue
		}
		if err := root.cache.disk.MkdirAll(filepath.Join(root.cache.at.disks(), d.Name), 0o755); err != nil {
			s.log.Error("the folder for a disk in the root cannot be made", "disk", d.Name, "err", err)
		}
		for _, name := range names {
			if s.homes[bare(name)] == d {
				want[root.cache.at.visible(name)] = linkTo(d.Name, "by-name", name)
			}
		}
	}
	s.split = nil
	for _, repo := range slices.Sorted(maps.Keys(holders)) {
		at, on := root.cache.at.repository(repo), holders[repo]
		shown := on[0]
		if i := slices.IndexFunc(on, func(d *disk) bool { return shown != root && d.Name == linkOf(at) }); i >= 0 {
			shown = on[i] // where it leads it leads still
		}
		if to := s.disk(linkOf(at)); shown != root && to != nil && to.cache == nil && to.err == nil {
			continue // it leads to a disk that is not open yet
		}
		if shown != root {
			want[at] = linkTo(shown.Name, "hub", filepath.Base(at))
		}
		if others := slices.DeleteFunc(slices.Clone(on), func(d *disk) bool { return d == shown }); len(others) > 0 {
			var called []string
			for _, d := range others {
				called = append(called, d.called())
			}
			s.split = append(s.split, fmt.Sprintf("clients of the hub find of repository %s what is on %s, and not what is on %s: its models "+
				"did not fit on one disk: open those by their names, or make room, remove them and pull them again", repo, shown.called(), strings.Join(called, ", ")))
		}
	}
	s.show(root.cache, want)
}

// show makes these links, by their paths, all that the root has, but for those to disks that are not open. s.mu is held.
func (s *Set) show(c *Cache, want map[string]string) {
	faults := map[string]string{}
	for _, folder := range []string{c.at.byName(), c.at.hub()} {
		changed := false
		for name, to := range s.linksIn(folder) {
			at := filepath.Join(folder, name)
			if of := s.disk(to); want[at] != "" || of != nil && of.cache == nil {
				continue
			}
			s.unlink(c, at)
			changed = true
		}
		for at, target := range want {
			if filepath.Dir(at) != folder {
				continue
			}
			made, err := c.lead(at, target)
			changed = changed || made
			if err == nil {
				continue
			}
			name := filepath.Base(at)
			if faults[name] = model.Printable(err.Error()); s.faults[name] != faults[name] {
				s.log.Error("what another disk has is not to be found in the root", "path", at, "err", err)
			}
		}
		if changed {
			if err := c.disk.SyncDir(folder); err != nil {
				s.log.Error("links to other disks may not outlast a crash", "err", err)
			}
		}
	}
	s.faults, s.links = faults, s.linksIn(c.at.byName())
}

// lead makes a link, in the place of another one, and reports whether it was not so before.
func (c *Cache) lead(at, target string) (made bool, err error) {
	if now, err := os.Readlink(at); err == nil && now == target {
		return false, nil
	}
	if exists(at) && !isLink(at) {
		return false, errors.New(at + " is there already: move it away, or give the model another name")
	}
	aside, err := c.at.scratch(at)
	if err != nil {
		return false, err
	}
	if err := c.disk.Symlink(target, aside); err != nil {
		return false, err
	}
	if err := c.disk.Rename(aside, at); err != nil {
		return false, errors.Join(err, c.disk.Remove(aside))
	}
	return true, nil
}
