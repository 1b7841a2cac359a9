package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// came is f with the digest of what came of it.
func came(f model.File, sum model.Digest) model.File {
	f.FirstUse = f.FirstUse || f.Digest == "" && f.Check == ""
	f.Digest = sum
	return f
}

// reveal makes a complete job the visible model. In this order, each step durable before the next: the
// blobs have their names; the revision is shown under its own name and in the hub, so that whoever finds
// the model finds those too; a directory of links is built aside; the manifest says what it holds; one rename or exchange
// shows it. After a crash the next Open takes what is visible for what it is.
func (c *Cache) reveal(e *entry, ref model.Ref, j *job) error {
	c.links.Lock()
	defer c.links.Unlock()
	files, own := j.plan.Manifest.Files, false
	for i, at := range j.of {
		sum := j.slots[at].sum
		if sum == files[i].Digest {
			continue
		}
		if !own {
			files, own = slices.Clone(files), true // the plan stays what the origin said
		}
		files[i] = came(files[i], sum)
	}
	r := &record{Name: e.name, Source: ref.String(), Ref: fingerprint(ref),
		Revision: j.plan.Manifest.Revision, Hub: j.plan.Manifest.Hub, Files: files, size: sizeOf(files), first: firstUses(files), Published: time.Now().UTC()}
	r.Origin, r.Archives = j.origin, j.archives
	if err := c.nameBlobs(j); err != nil {
		return fmt.Errorf("store the files of model %s: %w", e.name, err)
	}
	err := c.become(e, r, func(m *memory) {
		e.job = nil
		for _, s := range j.slots {
			c.addBlob(s.sum, s.file.Size)
		}
		if m.Held != (hold{Revision: r.Revision, Ref: r.Ref}) {
			m.Held = hold{}
		}
		m.Wrong = wrong{}
	})
	if err != nil {
		return err
	}
	if err := errors.Join(c.disk.RemoveTree(j.dir), c.dropCovered(j)); err != nil {
		c.log.Warn("leftovers of a download stay behind", "model", e.name, "err", err)
	}
	return nil
}

// become makes r, whose blobs have their names, the visible revision of e, and what was visible an old one.
// done is called once it is so, with c.mu held, and says what to remember. c.links is held.
func (c *Cache) become(e *entry, r *record, done func(*memory)) error {
	aside, err := c.at.scratch(c.at.visible(e.name))
	if err != nil {
		return err
	}
	before, olds, retired := c.succession(e, r)
	now := append([]*record{r}, olds...)
	err = c.showRevision(r)
	if err == nil && retired != nil {
		err = writeJSON(c.disk, c.at.old(retired), retired, 0o644) // Open drops it while it is current
	}
	if err == nil {
		err = c.showHub(e.name, now, before)
	}
	if err == nil {
		err = c.show(aside, r)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("publish model %s: %w", e.name, err),
			c.disk.RemoveTree(aside), c.unshowRevision(r, before), c.showHub(e.name, before, now))
	}

	c.mu.Lock()
	e.visible, e.old = r, olds
	m := e.memory
	m.LastUse = time.Now()
	done(&m)
	err = c.remember(e, m)
	c.call() // a pod may have waited for this revision, or for something of this repository, to mount it
	c.publish()
	c.mu.Unlock()

	// The model is visible. What fails from here on is swept by the next Open.
	err = errors.Join(err, c.disk.RemoveTree(aside), c.hideRevisions(e.name, now, before))
	for _, b := range before {
		if !c.isOne(c.at.revision(b), olds) {
			err = errors.Join(err, c.disk.Remove(c.at.old(b)))
		}
		for _, f := range b.Files {
			err = errors.Join(err, c.dropOrphan(f.Digest))
		}
	}
	if err != nil {
		c.log.Warn("leftovers of a publication stay behind", "model", e.name, "err", err)
	}
	return nil
}

// nameBlobs links the job's content into the store. Another model may have brought the same.
func (c *Cache) nameBlobs(j *job) error {
	dirs := map[string]bool{}
	for _, s := range j.slots {
		blob := c.at.blob(s.sum)
		c.mu.Lock()
		size, here := c.blobs[s.sum]
		c.mu.Unlock()
		if here && size == s.file.Size {
			continue
		}
		if dir := filepath.Dir(blob); !dirs[dir] {
			dirs[dir] = true
			if err := c.disk.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		err := c.link(s.path(), blob)
		if errors.Is(err, fs.ErrExist) { // damaged, or not counted
			if err = c.disk.Remove(blob); err == nil {
				err = c.link(s.path(), blob)
			}
		}
		if err != nil {
			return err
		}
	}
	if len(dirs) > 0 {
		dirs[c.at.blobs()] = true
	}
	return c.syncDirs(dirs)
}

// syncDirs makes the names in directories durable; many of them in one wait.
func (c *Cache) syncDirs(dirs map[string]bool) error {
	if len(dirs) > fewFiles {
		return c.disk.SyncFS(c.cfg.Root) // models/ and store/ are one filesystem
	}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		if err := c.disk.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// build makes a directory of links of blobs and of texts, by path, read-only and synced.
func (c *Cache) build(aside string, files []model.File, texts map[string]string) error {
	dirs := map[string]bool{aside: true}
	if err := c.disk.MkdirAll(aside, 0o755); err != nil {
		return err
	}
	place := func(path string) (to string, err error) {
		to = filepath.Join(aside, filepath.FromSlash(path))
		if dirs[filepath.Dir(to)] {
			return to, nil
		}
		for dir := filepath.Dir(to); !dirs[dir]; dir = filepath.Dir(dir) {
			dirs[dir] = true
		}
		return to, c.disk.MkdirAll(filepath.Dir(to), 0o755)
	}
	for _, f := range files {
		to, err := place(f.Path)
		if err == nil {
			err = c.link(c.at.blob(f.Digest), to)
		}
		if err != nil {
			return err
		}
	}
	for path, text := range texts {
		to, err := place(path)
		if err == nil {
			err = c.disk.WriteFile(to, []byte(text), 0o444)
		}
		if err != nil {
			return err
		}
	}
	for dir := range dirs {
		if err := c.disk.Chmod(dir, 0o555); err != nil {
			return err
		}
	}
	return c.syncDirs(dirs)
}

// show builds the directory of r aside and makes it the visible one.
func (c *Cache) show(aside string, r *record) error {
	if err := c.build(aside, r.Files, nil); err != nil {
		return err
	}
	if err := writeJSON(c.disk, c.at.next(r.Name), r, 0o644); err != nil {
		return err
	}
	if _, err := c.disk.Publish(aside, c.at.visible(r.Name)); err != nil {
		return err
	}
	if err := c.disk.Rename(c.at.next(r.Name), c.at.manifest(r.Name)); err != nil {
		return err
	}
	return c.disk.SyncDir(c.at.manifests())
}

// Verify hashes every file of a visible model, or by name@revision of a revision that is here, again and returns
// the paths whose content is not what it was when it was published. Damaged content is withdrawn at once, from every model that shares it, as
// Remove does it; what is still asked for is then fetched again.
func (c *Cache) Verify(ctx context.Context, name string) (damaged []string, err error) {
	name, revision, one := strings.Cut(name, "@")
	c.mu.Lock()
	e := c.models[name]
	if e == nil || e.visible == nil && !one {
		c.mu.Unlock()
		return nil, notFound(name)
	}
	r, dir := e.visible, c.at.visible(name)
	if one {
		if r = e.record(revision); r == nil {
			c.mu.Unlock()
			return nil, noRevision(e, revision)
		}
		dir = c.at.revision(r)
	}
	e.verifying++
	if err := c.insist(e); err != nil {
		c.log.Warn("what the origin sent wrong is not fetched again yet", "model", name, "err", err)
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		e.verifying--
		e.verified = time.Now()
	}()
	bad := map[model.Digest]bool{}
	buf := make([]byte, bufferSize) // one for all: there may be 100,000 files
	for _, f := range r.Files {
		sum, err := hashFile(ctx, filepath.Join(dir, filepath.FromSlash(f.Path)), buf)
		if ctx.Err() != nil {
			return damaged, ctx.Err()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.log.Error("a file of a model cannot be read", "model", name, "path", f.Path, "err", err)
		}
		if err != nil || sum != f.Digest {
			damaged = append(damaged, f.Path)
			bad[f.Digest] = true
		}
	}
	if len(bad) == 0 {
		return nil, nil
	}
	c.mu.Lock()
	here := r == e.visible || one && slices.Contains(e.old, r)
	stuck := c.mayWrite()
	c.mu.Unlock()
	if !here { // what was read last is another revision, or nothing
		return nil, &model.Error{Reason: "Changed", Text: fmt.Sprintf("revision %s of model %s went away meanwhile: verify it again", r.short(), name)}
	}
	c.log.Error("a model is damaged on disk", "model", name, "revision", r.Revision, "files", damaged)
	if stuck != nil {
		return damaged, fmt.Errorf("what is damaged cannot be withdrawn: %w", stuck)
	}
	return damaged, c.condemn(ctx, bad)
}

// condemn withdraws whatever holds one of the digests. Downloads go on without it.
func (c *Cache) condemn(ctx context.Context, bad map[model.Digest]bool) error {
	holds := func(files []model.File) bool {
		return slices.ContainsFunc(files, func(f model.File) bool { return bad[f.Digest] })
	}
	c.links.Lock() // no download is being laid out
	c.mu.Lock()
	var shown, partial []*entry
	for _, e := range c.models {
		if e.job != nil && e.job.damaged(bad) {
			partial = append(partial, e)
		}
	}
	for d := range bad {
		c.dropBlob(d) // nothing links it from here on
	}
	c.mu.Unlock()
	c.links.Unlock()
	var errs []error
	for _, e := range partial {
		letGo, err := c.halt(ctx, e)
		if err != nil {
			return err
		}
		if err := c.shed(e, bad); err != nil {
			errs = append(errs, err, c.dropPartial(e))
		}
		letGo()
	}
	c.mu.Lock()
	for d := range bad {
		c.dropBlob(d) // what was halted may have been faster, and be visible
	}
	old := map[*record]*entry{}
	for _, e := range c.models {
		for _, r := range e.old {
			if holds(r.Files) {
				old[r] = e
			}
		}
		if e.visible != nil && holds(e.visible.Files) {
			shown = append(shown, e)
		}
	}
	c.mu.Unlock()
	for r, e := range old {
		errs = append(errs, c.dropOld(e, r))
	}
	for _, e := range shown {
		errs = append(errs, c.withdraw(ctx, e, true))
	}
	c.links.Lock()
	defer c.links.Unlock()
	for d := range bad {
		errs = append(errs, c.dropOrphan(d)) // that nothing held
	}
	return errors.Join(errs...)
}

// hashFile is the sha256 of a file, which is read by way of buf.
func hashFile(ctx context.Context, path string, buf []byte) (model.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	for ctx.Err() == nil {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return model.Digest(hex.EncodeToString(h.Sum(nil))), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", ctx.Err()
}
