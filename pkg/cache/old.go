package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// An old revision is what a model was before another took its place. It keeps its directory by revision,
// its snapshot in the hub and its blobs while it is in use, so that a pod that was told to use it, or began with
// it, finds it after its container starts anew; beyond that the newest few stay, to go back to, until room is
// needed. store/revisions says what there is; the directories alone are what pods see.

// openedFor is how long an open counts as use: a process may have mapped the file and never opens it again,
// and the kernel does not say when it ends. Pods that are known count for as long as they run.
const openedFor = 24 * time.Hour

func (r *record) short() string { return model.Revision12(r.Revision) }

// inUse says why an old revision must stay, "" where it need not. c.mu is held.
func (c *Cache) inUse(e *entry, r *record) string {
	if slices.Contains(e.memory.Pins, r.short()) {
		return "pinned"
	}
	if e.kept > 0 {
		return "being exported"
	}
	if c.blind != "" {
		return c.blindness()
	}
	for _, u := range c.pods {
		if !e.meant(u) {
			continue
		}
		if u.Revision == "" && began(u, r) || u.Revision != "" && model.Revision12(u.Revision) == r.short() {
			return "in use by " + u.By
		}
	}
	if opened := e.opened(r); !opened.IsZero() && time.Since(opened) < openedFor {
		return "opened at " + opened.UTC().Format(time.RFC3339)
	}
	return ""
}

// began reports whether a pod may have begun before a revision was replaced. When one began whose time is to come,
// because the clock was set back since, is not known.
func began(u model.Use, r *record) bool {
	return !u.Since.After(r.Retired) || u.Since.After(time.Now())
}

// opened is when a file of an old revision was last opened, zero where that was not seen.
func (e *entry) opened(r *record) time.Time {
	if used := e.usedOld[r.short()]; used.After(e.memory.Uses[r.short()]) {
		return used
	}
	return e.memory.Uses[r.short()]
}

// lastUseOf is when an old revision was last opened, or replaced.
func (e *entry) lastUseOf(r *record) time.Time {
	if used := e.opened(r); used.After(r.Retired) {
		return used
	}
	return r.Retired
}

// staying are those of olds, the newest first, that are not given up: c.mu is held.
func (c *Cache) staying(e *entry, olds []*record) []*record {
	var stay []*record
	for i, r := range olds {
		if i < c.cfg.Keep || c.inUse(e, r) != "" {
			stay = append(stay, r)
		}
	}
	return stay
}

// succession is all that e has, and what its old revisions are once r is current. retired is the one among
// them that is current now, nil where that does not stay. c.links is held.
func (c *Cache) succession(e *entry, r *record) (before, olds []*record, retired *record) {
	c.mu.Lock()
	visible := e.visible
	c.mu.Unlock()
	if visible != nil && c.at.revision(visible) != c.at.revision(r) && c.matches(c.at.revision(visible), visible.Files, nil) {
		was := *visible
		was.Retired = time.Now().UTC()
		retired = &was
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if retired != nil {
		olds = append(olds, retired)
	}
	for _, o := range e.old {
		if c.at.revision(o) != c.at.revision(r) {
			olds = append(olds, o)
		}
	}
	olds = c.staying(e, olds)
	if !slices.Contains(olds, retired) {
		retired = nil
	}
	return slices.Clone(e.records()), olds, retired
}

// prune drops old revisions that are in use no more and not among the newest.
func (c *Cache) prune() {
	gone := map[*record]*entry{}
	c.mu.Lock()
	for _, e := range c.models {
		stay := c.staying(e, e.old)
		if e.visible == nil && !e.asked() { // nothing to go back from
			stay = slices.DeleteFunc(stay, func(r *record) bool { return c.inUse(e, r) == "" })
		}
		for _, r := range e.old {
			if !slices.Contains(stay, r) {
				gone[r] = e
			}
		}
	}
	c.mu.Unlock()
	for r, e := range gone {
		if err := c.dropOld(e, r); err != nil {
			c.log.Warn("an old revision stays behind", "model", e.name, "revision", r.Revision, "err", err)
		}
	}
}

// dropOld takes an old revision out of sight, in one step, and off the disk.
func (c *Cache) dropOld(e *entry, r *record) error {
	aside, there, err := c.unshowOld(e, r)
	err = errors.Join(err, c.disk.RemoveTree(aside))
	if !there {
		return err
	}
	err = errors.Join(err, c.dropOrphans(r.Files))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roomChanged()
	c.changed()
	return err
}

// unshowOld takes an old revision out of sight: its directory is put aside, where it is to be deleted. It reports whether
// this was so.
func (c *Cache) unshowOld(e *entry, r *record) (aside string, there bool, err error) {
	c.links.Lock()
	defer c.links.Unlock()
	c.mu.Lock()
	if !slices.Contains(e.old, r) {
		c.mu.Unlock()
		return "", false, nil
	}
	now := slices.DeleteFunc(e.records(), func(o *record) bool { return o == r })
	c.mu.Unlock()
	if aside, err = c.putAside(c.at.revision(r)); err != nil {
		return aside, false, err
	}
	c.mu.Lock()
	e.old = slices.DeleteFunc(slices.Clone(e.old), func(o *record) bool { return o == r })
	delete(e.usedOld, r.short())
	c.mu.Unlock()
	return aside, true, errors.Join(c.showHub(e.name, now, []*record{r}), c.disk.Remove(c.at.old(r)))
}

// scanOld takes a directory for an old revision only if it holds exactly what store/revisions says. What
// is current is none: a crash came before another took its place, or after it came back.
func (c *Cache) scanOld() error {
	entries, err := os.ReadDir(c.at.revisions())
	if err != nil {
		return err
	}
	for _, f := range entries {
		path := c.at.join("store", "revisions", f.Name())
		r, bad := readRecord(path)
		if bad == nil && model.CheckName(r.Name) == nil && c.at.old(r) == path && !r.Retired.IsZero() {
			e := c.entry(r.Name)
			dir := c.at.revision(r)
			switch {
			case e.visible != nil && c.at.revision(e.visible) == dir:
			case c.matches(dir, r.Files, nil):
				e.old = append(e.old, r)
				continue
			case c.shows(dir, r):
				err = c.hide(dir)
			}
		}
		if err := c.swept(errors.Join(err, c.disk.Remove(path))); err != nil {
			return err
		}
	}
	for _, e := range c.models {
		slices.SortFunc(e.old, func(a, b *record) int { return b.Retired.Compare(a.Retired) })
		for i, r := range e.old {
			if err := c.dateRecord(c.at.old(r), r, time.Now().Add(-time.Duration(i))); err != nil { // in their order still
				return err
			}
		}
		// A crash came before the revision that the model was to be held at took the other's place.
		if e.visible != nil && e.memory.Held != (hold{}) && e.memory.Held.Revision != e.visible.Revision {
			m := e.memory
			m.Held = hold{}
			if err := c.swept(c.remember(e, m)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cache) oldStatus(e *entry, r *record) model.Revision {
	return model.Revision{
		Revision: r.Revision, Path: c.at.revision(r), Size: r.size, Files: len(r.Files), Retired: r.Retired,
		LastUse: e.opened(r), Pinned: slices.Contains(e.memory.Pins, r.short()), InUse: c.inUse(e, r),
	}
}

// noRevision says which revisions there are instead.
func noRevision(e *entry, revision string) error {
	var here []string
	for _, r := range e.records() {
		here = append(here, r.short())
	}
	text := fmt.Sprintf("model %s has no revision %s here, it has %s", e.name, revision, strings.Join(here, ", "))
	if len(here) == 0 {
		text = fmt.Sprintf("model %s has no revision here", e.name)
	}
	return &model.Error{Reason: "NotFound", Final: true, Text: text}
}

// older is the old revision to go back to: the named one, whole or as model.Revision12 has it, or the one
// that was replaced last. c.mu is held.
func (e *entry) older(revision string) (*record, error) {
	if revision == "" && len(e.old) > 0 {
		return e.old[0], nil
	}
	if revision == "" {
		return nil, &model.Error{Reason: "NotFound", Final: true, Text: fmt.Sprintf(
			"model %s has no old revision to go back to: cache.keep says how many stay, pins keep more", e.name)}
	}
	switch r := e.record(revision); r {
	case nil:
		return nil, noRevision(e, revision)
	case e.visible:
		return nil, &model.Error{Reason: "Current", Final: true, Text: fmt.Sprintf(
			"model %s is at revision %s already", e.name, r.short())}
	default:
		return r, nil
	}
}

// Rollback makes an old revision current again, in one step, and keeps the model there, durably, until Pull
// asks for it or it is to come from elsewhere. The revision is whole or as model.Revision12 has it; "" is the
// one that was replaced last. What was current becomes old.
func (c *Cache) Rollback(ctx context.Context, name, revision string) (model.Rollback, error) {
	c.mu.Lock()
	e := c.models[name]
	if e == nil || !e.asked() && len(e.records()) == 0 {
		c.mu.Unlock()
		return model.Rollback{}, notFound(name)
	}
	if e.removing {
		c.mu.Unlock()
		return model.Rollback{}, &model.Error{Reason: "Removing", Text: fmt.Sprintf("model %s is being removed", name)}
	}
	to, err := e.older(revision)
	if err == nil {
		err = c.mayWrite()
	}
	if err != nil {
		c.mu.Unlock()
		return model.Rollback{}, err
	}
	before := e.memory.Held
	err = c.hold(e, hold{Revision: to.Revision, Ref: fingerprint(e.ref())})
	busy := e.busy
	e.restart()
	e.again = false
	c.mu.Unlock()
	if err == nil && busy != nil {
		select {
		case <-busy:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	var done model.Rollback
	if err == nil {
		done, err = c.goBack(e, to)
	}
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		return done, errors.Join(err, c.hold(e, before))
	}
	if err := c.dropPartial(e); err != nil { // of a revision that is not wanted any more
		c.log.Warn("a partial download stays behind", "model", name, "err", err)
	}
	return done, nil
}

// hold remembers h. c.mu is held.
func (c *Cache) hold(e *entry, h hold) error {
	m := e.memory
	m.Held, m.Origin = h, cmp.Or(e.seen, m.Origin) // the look that found it may be one that this ends
	defer c.changed()
	return c.remember(e, m)
}

func (c *Cache) goBack(e *entry, to *record) (model.Rollback, error) {
	c.links.Lock()
	defer c.links.Unlock()
	c.mu.Lock()
	done := model.Rollback{To: to.Revision}
	if e.visible != nil {
		done.From = e.visible.Revision
	}
	here := slices.Contains(e.old, to)
	c.mu.Unlock()
	if !here {
		return done, &model.Error{Reason: "NotFound", Text: fmt.Sprintf("revision %s of model %s went away just now", to.short(), e.name)}
	}
	r := *to
	r.Retired, r.Published = time.Time{}, time.Now().UTC()
	if err := c.become(e, &r, func(*memory) {}); err != nil {
		return done, err
	}
	c.log.Info("model went back to an old revision, and is held there", "model", e.name, "revision", r.Revision, "instead", done.From)
	return done, nil
}

// stays notes what the origin has, and reports whether a model that is held is to be left as it is.
func (c *Cache) stays(e *entry, m model.Manifest) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.seen = m.Revision
	switch {
	case !e.held():
		return false, nil
	case e.visible != nil:
		return true, nil
	case e.memory.Held.Revision == m.Revision:
		return false, nil
	}
	return true, &model.Error{Reason: "Held", Final: true, Text: fmt.Sprintf(
		"model %s is held at revision %s by a rollback, which is gone from here and from its origin, where %s is: gpu-agent models pull %s takes that",
		e.name, model.Revision12(e.memory.Held.Revision), model.Revision12(m.Revision), e.name)}
}

// removeOld is Remove of one revision.
func (c *Cache) removeOld(name, revision string, force bool) error {
	c.mu.Lock()
	e := c.models[name]
	if e == nil || len(e.records()) == 0 {
		c.mu.Unlock()
		return notFound(name)
	}
	r := e.record(revision)
	var err error
	switch {
	case r == nil:
		err = noRevision(e, revision)
	case r == e.visible:
		err = &model.Error{Reason: "Current", Final: true, Text: fmt.Sprintf(
			"model %s is at revision %s: remove the model, or go back to another revision first", name, r.short())}
	case e.kept > 0:
		err = &model.Error{Reason: "InUse", Text: fmt.Sprintf("model %s is being exported: try again when that has ended", name)}
	case !force && c.inUse(e, r) != "":
		err = &model.Error{Reason: "InUse", Final: true, Text: fmt.Sprintf(
			"revision %s of model %s is kept: %s: remove it with --force if it may go all the same", r.short(), name, c.inUse(e, r))}
	}
	if err == nil {
		err = c.mayWrite()
	}
	if err == nil && slices.Contains(e.memory.Pins, r.short()) {
		m := e.memory
		m.Pins = slices.DeleteFunc(slices.Clone(m.Pins), func(pin string) bool { return pin == r.short() })
		if len(m.Pins) == 0 {
			m.Pins = nil
		}
		err = c.remember(e, m)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.dropOld(e, r)
}

// record is a revision that is here, current or old, whole or as model.Revision12 has it; nil where it is not.
// c.mu is held.
func (e *entry) record(revision string) *record {
	for _, r := range e.records() {
		if r.Revision == revision || r.short() == model.Revision12(revision) {
			return r
		}
	}
	return nil
}
