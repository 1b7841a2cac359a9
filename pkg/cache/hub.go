package cache

import (
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// models/hub is a cache as clients of the Hugging Face hub keep it, for HF_HUB_CACHE. A repository's
// directory follows from the records of the visible models that come from it, and appears and changes as a
// whole: refs, snapshots and trees always agree. Its files are hard links and no symbolic ones, so there
// is no blobs/: clients read through snapshots/, and code that a model brings is loaded from where its
// files are. Open makes or drops what a crash left undone.

// repository is what the directory of one repository holds.
type repository struct {
	files []model.File      // links of blobs, by path in it
	texts map[string]string // what clients are told, by path in it
}

// treeFile is a line of trees/<commit>.json, which clients since huggingface_hub 1.22 read; since 1.26
// they refuse a pinned snapshot offline without it.
type treeFile struct {
	Size   int64   `json:"size"`
	BlobID string  `json:"blob_id"` // of git: of the pointer where the content is in LFS
	SHA256 *string `json:"lfs_sha256"`
	LFS    *int64  `json:"lfs_size"`
	Xet    *string `json:"xet_hash"` // never known here
}

// newRepository lays out the directory for the records of models that come from it. Two that have other
// files of one commit share a snapshot.
func newRepository(records []*record) (repository, error) {
	repo := repository{texts: map[string]string{}}
	trees, seen := map[string]map[string]treeFile{}, map[string]bool{}
	records = slices.SortedFunc(slices.Values(records), func(a, b *record) int {
		return cmp.Or(strings.Compare(a.Hub.Revision, b.Hub.Revision), a.Published.Compare(b.Published))
	})
	for _, r := range records {
		if trees[r.Revision] == nil {
			trees[r.Revision] = map[string]treeFile{}
		}
		for _, f := range r.Files {
			trees[r.Revision][f.Path] = newTreeFile(f)
			f.Path = path.Join("snapshots", r.Revision, f.Path)
			if !seen[f.Path] {
				seen[f.Path] = true
				repo.files = append(repo.files, f)
			}
		}
		if r.Retired.IsZero() || r.Hub.Revision == r.Revision {
			repo.refer(r.Hub.Revision, r.Revision) // a commit too: clients that list a cache want refs/ to be there
		}
	}
	for commit, files := range trees {
		text, err := json.Marshal(map[string]any{"format_version": 1, "files": files})
		if err != nil {
			return repo, err
		}
		repo.texts["trees/"+commit+".json"] = string(text)
	}
	return repo, nil
}

// refer has a branch or tag stand for a commit. Of two the later stays; beside a branch x there is no x/y.
func (r repository) refer(name, commit string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if r.texts["refs/"+dir] != "" {
			return
		}
	}
	r.texts["refs/"+name] = commit
}

// newTreeFile says of f what the hub would. What has no checksum of git's is in LFS.
func newTreeFile(f model.File) treeFile {
	if _, id, ok := strings.Cut(string(f.Check), ":"); ok {
		return treeFile{Size: f.Size, BlobID: id}
	}
	// The pointer that git holds in the content's place: git-lfs, docs/spec.md.
	pointer := fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", f.Digest, f.Size)
	id := sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(pointer), pointer))
	return treeFile{Size: f.Size, BlobID: hex.EncodeToString(id[:]), SHA256: new(string(f.Digest)), LFS: &f.Size}
}

var (
	repoForm   = lazyregexp.New(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?$`)
	commitForm = lazyregexp.New(`^[0-9a-f]{40}$`)
)

// checkHub makes what a source says of a hub safe to use as paths.
func checkHub(m model.Manifest) error {
	if m.Hub == (model.Hub{}) {
		return nil
	}
	// The hub has no names with "--", which stands for the slash in a directory's.
	if !repoForm().MatchString(m.Hub.Repo) || strings.Contains(m.Hub.Repo, "--") || !commitForm().MatchString(m.Revision) {
		return fmt.Errorf("repository %q at %q: want organization/name at a commit", m.Hub.Repo, m.Revision)
	}
	if err := model.CheckPath(m.Hub.Revision); err != nil {
		return fmt.Errorf("revision: %w", err)
	}
	return nil
}

// fromRepository lists the records, current and old, that come from a repository, with these in the place
// of those of the named model.
func (c *Cache) fromRepository(name, instead string, records []*record) []*record {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := slices.Clone(records)
	for _, e := range c.models {
		if e.name != instead {
			all = append(all, e.records()...)
		}
	}
	return slices.DeleteFunc(all, func(r *record) bool { return r.Hub.Repo != name })
}

// showHub makes the repositories of now and before what they are once now is all that the named model has.
// c.links is held, or the Cache is not shared yet.
func (c *Cache) showHub(name string, now, before []*record) error {
	done := map[string]bool{"": true}
	for _, r := range slices.Concat(now, before) {
		if done[r.Hub.Repo] {
			continue
		}
		done[r.Hub.Repo] = true
		if err := c.showRepository(r.Hub.Repo, c.fromRepository(r.Hub.Repo, name, now), before); err != nil {
			return err
		}
	}
	return nil
}

// showRepository makes the directory of a repository hold these records. It may hold before, too.
func (c *Cache) showRepository(name string, records, before []*record) error {
	dir := c.at.repository(name)
	repo, err := newRepository(records)
	if err != nil {
		return err
	}
	if len(records) > 0 && c.matches(dir, repo.files, repo.texts) {
		return nil
	}
	shown := func(r *record) bool { return r.Hub.Repo == name && c.shows(c.at.snapshot(r), r) }
	if exists(dir) && !isLink(dir) && !slices.ContainsFunc(slices.Concat(records, before), shown) && !c.linked(filepath.Join(dir, "snapshots")) {
		if len(records) == 0 {
			return nil
		}
		return &model.Error{Reason: "Foreign", Final: true, Text: fmt.Sprintf(
			"%s is there already and not of this cache: move it away", dir)}
	}
	if len(records) == 0 {
		if isLink(dir) {
			return nil // another disk's
		}
		return c.hide(dir)
	}
	aside, err := c.at.scratch(dir)
	if err != nil {
		return err
	}
	if err = c.build(aside, repo.files, repo.texts); err == nil {
		_, err = c.disk.Publish(aside, dir)
	}
	return errors.Join(err, c.disk.RemoveTree(aside))
}

// scanHub makes models/hub what the visible models say. What somebody else put there stays, and counts.
func (c *Cache) scanHub() error {
	wanted := map[string]string{} // repositories by directory
	for _, e := range c.models {
		for _, r := range e.records() {
			if r.Hub.Repo != "" {
				wanted[c.at.repository(r.Hub.Repo)] = r.Hub.Repo
			}
		}
	}
	entries, err := os.ReadDir(c.at.hub())
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(c.at.hub(), e.Name())
		ours := c.linked(filepath.Join(dir, "snapshots"))
		switch {
		case isLink(dir):
		case isScratch(e.Name()):
			err = c.disk.RemoveTree(dir)
		case ours && wanted[dir] == "":
			c.log.Warn("dropping a repository of which no model is there", "dir", dir)
			err = c.hide(dir)
		case !ours:
			c.log.Warn("leaving alone what this cache did not make; it counts against the limit", "dir", dir)
			c.foreign += weigh(dir)
		}
		if err := c.swept(err); err != nil {
			return err
		}
	}
	for _, name := range wanted {
		err := c.swept(c.showRepository(name, c.fromRepository(name, "", nil), nil))
		if model.ReasonOf(err) == "Foreign" {
			c.log.Warn("a model is not where clients of the hub look for it", "repository", name, "err", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}
