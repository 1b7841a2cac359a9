package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// A revision has a directory of its own beside its model's, <name>@<revision12>, for pods that must not
// see another one under an open path. It follows from the record alone: it is there as long as the model
// is visible with that revision, or keeps it as an old one, and Open makes it or drops it where a crash came
// between.

// showRevision shows what r holds under its name and revision, durably. c.links is held, or the Cache is
// not shared yet.
func (c *Cache) showRevision(r *record) error {
	dir := c.at.revision(r)
	if c.matches(dir, r.Files, nil) {
		return nil
	}
	if exists(dir) && !isLink(dir) && !c.ours(filepath.Base(dir)) {
		return &model.Error{Reason: "Foreign", Final: true, Text: fmt.Sprintf(
			"%s is there already and not of this cache: move it away, or give the model another name", dir)}
	}
	aside, err := c.at.scratch(dir)
	if err != nil {
		return err
	}
	if err = c.build(aside, r.Files, nil); err == nil {
		_, err = c.disk.Publish(aside, dir)
	}
	return errors.Join(err, c.disk.RemoveTree(aside))
}

// showRevisions shows the revision of each visible model: a cache of an earlier version has none, and a
// crash may have come before.
func (c *Cache) showRevisions() error {
	for name, e := range c.models {
		if e.visible == nil {
			continue
		}
		err := c.showRevision(e.visible)
		if model.ReasonOf(err) == "Foreign" {
			c.log.Warn("the revision of a model has no directory of its own", "model", name, "err", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// unshowRevision takes back showRevision where the model did not become r: it stays what it was before.
// Otherwise content that is not counted yet would stay if r is never tried again. c.links is held.
func (c *Cache) unshowRevision(r *record, before []*record) error {
	dir := c.at.revision(r)
	if c.isOne(dir, before) || !c.shows(dir, r) {
		return nil
	}
	return c.hide(dir)
}

// isOne reports whether dir is the directory of one of these revisions.
func (c *Cache) isOne(dir string, records []*record) bool {
	return slices.ContainsFunc(records, func(r *record) bool { return c.at.revision(r) == dir })
}

// shows reports whether a directory has a file of r that is a link of its blob, be it damaged.
func (c *Cache) shows(dir string, r *record) bool {
	return r != nil && slices.ContainsFunc(r.Files, func(f model.File) bool {
		here, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(f.Path)))
		if err != nil {
			return false
		}
		blob, err := os.Lstat(c.at.blob(f.Digest))
		return err == nil && os.SameFile(here, blob)
	})
}

// hideRevisions takes away the directories of a model's revisions, gone's among them, except those of keep.
// c.links is held.
func (c *Cache) hideRevisions(name string, keep, gone []*record) error {
	entries, err := os.ReadDir(c.at.byName())
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := c.at.visible(e.Name())
		if !strings.HasPrefix(e.Name(), name+"@") || c.isOne(dir, keep) {
			continue
		}
		if !slices.ContainsFunc(gone, func(r *record) bool { return c.shows(dir, r) }) && !c.ours(e.Name()) {
			continue // somebody else's
		}
		if err := c.hide(dir); err != nil {
			return err
		}
	}
	return nil
}
