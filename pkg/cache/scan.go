package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// scan rebuilds what is known from the disk, and sweeps what nothing refers to.
func (c *Cache) scan() error {
	return errors.Join(c.scanBlobs(), c.scanStates(), c.scanModels(), c.scanHub(), c.scanPartials(), c.sweepBlobs())
}

// scanBlobs reads the blobs' sizes; sweepBlobs, at the end, drops those that nobody has a link to.
func (c *Cache) scanBlobs() error {
	return filepath.WalkDir(c.at.blobs(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		d, err := model.ParseDigest(e.Name())
		if err != nil || c.at.blob(d) != path || !e.Type().IsRegular() {
			return c.swept(c.disk.Remove(path))
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		c.addBlob(d, info.Size())
		return nil
	})
}

// names lists the models that have an entry in dir, and removes what has no model's name.
func (c *Cache) names(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if ok && model.CheckName(name) == nil {
			names = append(names, name)
			continue
		}
		if err := c.swept(c.disk.RemoveTree(filepath.Join(dir, e.Name()))); err != nil {
			return nil, err
		}
	}
	return names, nil
}

func (c *Cache) scanStates() error {
	names, err := c.names(c.at.states(), ".json")
	if err != nil {
		return err
	}
	for _, name := range names {
		var m memory
		if err := readJSON(c.at.state(name), &m); err != nil {
			c.log.Warn("forgetting an unreadable model state", "model", name, "err", err)
			if err := c.swept(c.disk.Remove(c.at.state(name))); err != nil {
				return err
			}
			continue
		}
		c.entry(name).memory = m
	}
	return nil
}

// scanModels takes a directory for a model only if it holds exactly what a manifest says, as links of
// blobs. After a crash in the middle of an exchange that is the next manifest or the current one.
func (c *Cache) scanModels() error {
	pending, err := filepath.Glob(filepath.Join(c.at.manifests(), "*+next.json"))
	if err != nil {
		return err
	}
	for _, path := range pending {
		name := strings.TrimSuffix(filepath.Base(path), "+next.json")
		if r, bad := readRecord(path); bad == nil && r.Name == name && c.matches(c.at.visible(name), r.Files, nil) {
			c.entry(name).visible = r
			err = errors.Join(c.disk.Rename(path, c.at.manifest(name)), c.disk.SyncDir(c.at.manifests()))
		} else {
			err = c.disk.Remove(path)
		}
		if err := c.swept(err); err != nil {
			return err
		}
	}
	manifests, err := c.names(c.at.manifests(), ".json")
	if err != nil {
		return err
	}
	for _, name := range manifests {
		if e := c.models[name]; e != nil && e.visible != nil {
			continue
		}
		r, err := readRecord(c.at.manifest(name))
		if err == nil && r.Name == name && c.matches(c.at.visible(name), r.Files, nil) {
			c.entry(name).visible = r
			continue
		}
		c.log.Warn("dropping a model that is not what its manifest says", "model", name, "err", err)
		if err := c.swept(errors.Join(c.hide(c.at.visible(name)), c.disk.Remove(c.at.manifest(name)))); err != nil {
			return err
		}
	}
	for name, e := range c.models {
		if e.visible != nil {
			if err := c.dateRecord(c.at.manifest(name), e.visible, time.Now()); err != nil {
				return err
			}
		}
	}
	return errors.Join(c.scanOld(), c.scanVisible())
}

// scanVisible sweeps what this cache left in by-name. What somebody else put there stays, and counts as
// used, so that the limit stays what it says.
func (c *Cache) scanVisible() error {
	entries, err := os.ReadDir(c.at.byName())
	if err != nil {
		return err
	}
	var foreign []string
	for _, e := range entries {
		name := e.Name()
		switch {
		case c.current(name), isLink(c.at.visible(name)):
		case isScratch(name):
			err = c.disk.RemoveTree(filepath.Join(c.at.byName(), name))
		case c.ours(name):
			c.log.Warn("dropping a directory of a model or a revision that is not there", "dir", name)
			err = c.hide(c.at.visible(name))
		default:
			foreign = append(foreign, name)
			c.foreign += weigh(filepath.Join(c.at.byName(), name))
		}
		if err := c.swept(err); err != nil {
			return err
		}
	}
	if err := c.swept(c.showRevisions()); err != nil {
		return err
	}
	if len(foreign) > 0 {
		c.log.Warn("leaving alone what this cache did not make; it counts against the limit",
			"dir", c.at.byName(), "entries", foreign[:min(len(foreign), 10)], "count", len(foreign), "bytes", c.foreign)
	}
	return nil
}

// current reports whether a directory in by-name is a visible model's, or its revision's.
func (c *Cache) current(name string) bool {
	of, _, isRevision := strings.Cut(name, "@")
	e := c.models[of]
	if e == nil {
		return false
	}
	if !isRevision {
		return e.visible != nil
	}
	dir := c.at.visible(name)
	return slices.ContainsFunc(e.records(), func(r *record) bool { return c.at.revision(r) == dir && c.shows(dir, r) })
}

// ours reports whether a directory in by-name was made by this cache: its store knows the name, or the
// first file in it is a blob.
func (c *Cache) ours(name string) bool {
	if of, _, _ := strings.Cut(name, "@"); model.CheckName(of) != nil {
		return false
	}
	return exists(c.at.manifest(name)) || exists(c.at.next(name)) || exists(filepath.Join(c.at.revisions(), name+".json")) || c.linked(c.at.visible(name))
}

// linked reports whether the first file in a directory is a blob.
func (c *Cache) linked(dir string) bool {
	var first fs.FileInfo
	var path string
	_ = filepath.WalkDir(dir, func(at string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			first, err = e.Info()
			if err == nil {
				path = at
				return fs.SkipAll
			}
		}
		return err
	})
	if first == nil || durable.Links(first) < 2 {
		return false
	}
	is := func(d model.Digest) bool {
		blob, err := os.Lstat(c.at.blob(d))
		return err == nil && os.SameFile(first, blob)
	}
	// A small one is told by its content: 100,000 may be of its size. Of a large one only few are.
	if first.Size() <= bufferSize {
		if content, err := os.ReadFile(path); err == nil && is(digestOf(content)) {
			return true
		}
	}
	c.mu.Lock()
	var alike []model.Digest
	for d, size := range c.blobs {
		if size == first.Size() {
			alike = append(alike, d)
		}
	}
	c.mu.Unlock()
	return slices.ContainsFunc(alike, is)
}

func digestOf(content []byte) model.Digest {
	sum := sha256.Sum256(content)
	return model.Digest(hex.EncodeToString(sum[:]))
}

// weigh is the bytes of the files under path, as far as they can be seen.
func weigh(path string) (sum int64) {
	_ = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				sum += info.Size()
			}
		}
		return nil
	})
	return sum
}

// inTheWay refuses to put a model where somebody else has something.
func (c *Cache) inTheWay(e *entry) error {
	path := c.at.visible(e.name)
	if e.visible != nil || !exists(path) || isLink(path) || c.ours(e.name) { // only the worker on e makes it visible
		return nil
	}
	return &model.Error{Reason: "Foreign", Final: true, Text: fmt.Sprintf(
		"%s is there already and not of this cache: move it away, or give the model another name", path)}
}

// hide takes a directory out of sight in one step and then deletes it.
func (c *Cache) hide(dir string) error {
	aside, err := c.putAside(dir)
	return errors.Join(err, c.disk.RemoveTree(aside))
}

// putAside takes a directory out of sight, in one step, to where it is to be deleted, "" where it was not there.
func (c *Cache) putAside(dir string) (aside string, err error) {
	if !exists(dir) {
		return "", nil
	}
	if aside, err = c.at.scratch(dir); err != nil {
		return "", err
	}
	if err := c.disk.Rename(dir, aside); err != nil {
		return "", err
	}
	return aside, c.disk.SyncDir(filepath.Dir(dir))
}

// matches reports whether a directory holds exactly these files, as links of blobs, and these texts. It
// trusts the size of a blob and not its content: see Verify.
func (c *Cache) matches(root string, files []model.File, texts map[string]string) bool {
	want, found := make(map[string]int, len(files)), 0
	for i, f := range files {
		if d, err := model.ParseDigest(string(f.Digest)); err != nil || d != f.Digest {
			return false
		}
		want[f.Path] = i
	}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if text, ok := texts[filepath.ToSlash(rel)]; ok {
			found++
			if b, err := os.ReadFile(path); err != nil || string(b) != text {
				return fs.ErrInvalid
			}
			return nil
		}
		i, ok := want[filepath.ToSlash(rel)]
		if !ok {
			return fs.ErrInvalid
		}
		f := files[i]
		delete(want, f.Path)
		here, err := os.Lstat(path)
		if err != nil {
			return err
		}
		blob, err := os.Lstat(c.at.blob(f.Digest))
		if err != nil {
			return err
		}
		if !os.SameFile(here, blob) || blob.Size() != f.Size {
			return fs.ErrInvalid
		}
		return nil
	})
	return err == nil && len(want) == 0 && found == len(texts)
}

func (c *Cache) scanPartials() error {
	names, err := c.names(c.at.partials(), "")
	if err != nil {
		return err
	}
	for _, name := range names {
		j, err := c.resume(name)
		if err == nil {
			c.entry(name).job = j
			continue
		}
		if c.sealed && errors.Is(err, syscall.EROFS) {
			continue // it would have been tidied up
		}
		c.log.Warn("dropping an unreadable partial download", "model", name, "err", err)
		if err := c.swept(c.disk.RemoveTree(c.at.partial(name))); err != nil {
			return err
		}
	}
	return nil
}

// sweepBlobs drops every blob that no model and no partial download has a link to.
func (c *Cache) sweepBlobs() error {
	for d := range c.blobs {
		if err := c.swept(c.dropOrphan(d)); err != nil {
			return err
		}
	}
	return nil
}

// dropOrphans deletes the blobs of files whose own name is the last. There may be 100,000, which take their time:
// c.links is not held, but taken for some of them at a time, so that others publish meanwhile.
func (c *Cache) dropOrphans(files []model.File) error {
	for some := range slices.Chunk(files, batchFiles) {
		if err := c.dropSome(some); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) dropSome(files []model.File) error {
	c.links.Lock()
	defer c.links.Unlock()
	for _, f := range files {
		if err := c.dropOrphan(f.Digest); err != nil {
			return err
		}
	}
	return nil
}

// dropOrphan deletes a blob if its own name is the last. While the cache runs, c.links is held.
func (c *Cache) dropOrphan(d model.Digest) error {
	info, err := os.Lstat(c.at.blob(d))
	if err == nil {
		if durable.Links(info) > 1 {
			return nil
		}
		err = c.disk.Remove(c.at.blob(d))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropBlob(d)
	return nil
}
