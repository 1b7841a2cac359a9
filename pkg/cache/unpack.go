package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/cache/archive"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// An archive is fetched and verified as any file, at NNNNN. Then its members are written, each hashed, into the
// directory NNNNN.d, the journal says so, and the archive goes: there is never more than one twice. What
// is in NNNNN.d without a word in the journal is written anew. An archive that a visible model was made of is not fetched
// again while all of its content is here: the journal begins with its members, as links of blobs.

// smallMember is up to how many bytes a member is small: those wait for the disk together.
const smallMember = 64 << 10

// flushEvery is how many bytes of a member are written between hints to write them to the disk.
const flushEvery = 16 << 20

// dir is where the contents of an archive are.
func (s *slot) dir() string { return s.path() + ".d" }

// content is the place of the nth of them.
func (s *slot) content(n int) string { return filepath.Join(s.dir(), fmt.Sprintf("%06d", n)) }

// contents are the members that have content, in their order.
func contents(members []archive.Member) []archive.Member {
	var all []archive.Member
	for _, m := range members {
		if m.Kind == archive.File {
			all = append(all, m)
		}
	}
	return all
}

// holds is the files whose content the job has or wants, the members of archives included.
func (j *job) holds() []model.File {
	all := slices.Clone(j.plan.Manifest.Files)
	for _, s := range j.slots {
		if !s.unpacked {
			continue
		}
		for _, m := range contents(s.members) {
			all = append(all, model.File{Path: m.Path, Size: m.Size, Digest: m.Digest})
		}
	}
	return all
}

// largestArchive is the size of the largest that is still to be unpacked. So much is reserved for its members
// beforehand: enough for one that is not compressed, and a fair guess for weights, which hardly can be.
func (j *job) largestArchive() (n int64) {
	for _, s := range j.slots {
		if s.file.Archive != "" && !s.unpacked {
			n = max(n, s.file.Size)
		}
	}
	return n
}

// resumeUnpacked reads back an archive that was unpacked, or sweeps what of it was written.
func (c *Cache) resumeUnpacked(s *slot) (bool, error) {
	if s.file.Archive == "" {
		return false, nil
	}
	var saved journal
	if readJSON(s.journal(), &saved) == nil && saved.Unpacked && saved.Sum != "" {
		own, whole := int64(0), s.file.Digest == "" || s.file.Digest == saved.Sum
		for n, m := range contents(saved.Members) {
			info, err := os.Lstat(s.content(n))
			d, bad := model.ParseDigest(string(m.Digest))
			if whole = whole && err == nil && bad == nil && info.Mode().IsRegular() && info.Size() == m.Size; !whole {
				break
			}
			if blob, err := os.Lstat(c.at.blob(d)); err != nil || !os.SameFile(info, blob) {
				own += m.Size
			}
		}
		if whole {
			s.sum, s.unpacked, s.members, s.own = saved.Sum, true, saved.Members, own
			return true, c.disk.Remove(s.path())
		}
		// Or it would say, once there are blocks for the archive to come again into, that all of it is there.
		if err := c.disk.Remove(s.journal()); err != nil {
			return false, err
		}
	}
	return false, c.disk.RemoveTree(s.dir())
}

// linkUnpacked puts what an archive held when a visible model was made of it in its place, if all is here
// still. c.links is held.
func (c *Cache) linkUnpacked(s *slot) (bool, error) {
	if s.file.Archive == "" || s.file.Digest == "" {
		return false, nil
	}
	members, ok := c.unpackedBefore(*s.file)
	if !ok {
		return false, nil
	}
	if err := c.disk.MkdirAll(s.dir(), 0o700); err != nil {
		return false, err
	}
	for n, m := range contents(members) {
		if err := c.link(c.at.blob(m.Digest), s.content(n)); err != nil {
			return false, err
		}
	}
	if err := c.disk.SyncDir(s.dir()); err != nil {
		return false, err
	}
	if err := writeJSON(c.disk, s.journal(), journal{Sum: s.file.Digest, Unpacked: true, Members: members}, 0o600); err != nil {
		return false, err
	}
	s.sum, s.unpacked, s.members = s.file.Digest, true, members
	return true, nil
}

func (c *Cache) unpackedBefore(f model.File) ([]archive.Member, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lacks := func(m archive.Member) bool {
		size, here := c.blobs[m.Digest]
		return !here || size != m.Size
	}
	for _, e := range c.models {
		for _, r := range e.records() {
			for _, a := range r.Archives {
				if a.Digest == f.Digest && a.Kind == f.Archive && !slices.ContainsFunc(contents(a.Members), lacks) {
					return a.Members, true
				}
			}
		}
	}
	return nil, false
}

// unpack makes of a job whose content is complete one in which archives have given way to their members. The
// files of both are the same; only the first is e's.
func (c *Cache) unpack(ctx context.Context, e *entry, ref model.Ref, j *job) (*job, error) {
	files := j.plan.Manifest.Files
	if !slices.ContainsFunc(files, func(f model.File) bool { return f.Archive != "" }) {
		return j, nil
	}
	for _, s := range j.slots {
		if s.file.Archive == "" || s.unpacked {
			continue
		}
		if err := c.unpackOne(ctx, e, j, s); err != nil {
			return nil, fmt.Errorf("file %s: %w", s.file.Path, err)
		}
	}
	m := j.plan.Manifest
	m.Files = nil
	origin, at := slices.Clone(files), map[model.Digest]string{}
	var archives []archive.Unpacked
	for i, n := range j.of {
		s := j.slots[n]
		origin[i] = came(origin[i], s.sum)
		if s.file.Archive == "" {
			m.Files = append(m.Files, origin[i])
			at[s.sum] = s.path()
			continue
		}
		archives = append(archives, archive.Unpacked{Digest: s.sum, Kind: s.file.Archive, Members: s.members})
		for n, f := range contents(s.members) {
			at[f.Digest] = s.content(n)
		}
	}
	merged, err := archive.Merge(archives)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	m.Files = append(m.Files, merged...)
	ref.Digest = "" // it was the archive's
	if m, err = checkManifest(ref, m); err != nil {
		return nil, err
	}
	whole := newJob(j.disk, j.dir, plan{Ref: j.plan.Ref, Step: j.plan.Step, Manifest: m})
	whole.origin, whole.archives = origin, archives
	for _, s := range whole.slots {
		s.sum, s.at = s.file.Digest, at[s.file.Digest]
	}
	return whole, nil
}

// dropCovered drops blobs that nothing but the job had links to any more: members of archives that others covered.
// c.links is held.
func (c *Cache) dropCovered(j *job) error {
	for _, a := range j.archives {
		for _, m := range contents(a.Members) {
			if err := c.dropOrphan(m.Digest); err != nil {
				return err
			}
		}
	}
	return nil
}

// unpackOne puts the members of an archive in its place. One at a time: it takes a core, and memory.
func (c *Cache) unpackOne(ctx context.Context, e *entry, j *job, s *slot) error {
	c.unpacking.Lock()
	defer c.unpacking.Unlock()
	if err := c.forget(j, s); err != nil { // of an earlier try
		return err
	}
	if err := c.disk.MkdirAll(s.dir(), 0o700); err != nil {
		return ours(err)
	}
	in, err := durable.Open(s.path())
	if err != nil {
		return ours(err)
	}
	defer in.Close()
	n, small := 0, int64(0) // bytes of small members that may not be on the disk yet
	members, err := archive.Read(&patient{ctx: ctx, file: in}, s.file.Archive, c.limit, func(size int64, content io.Reader) (model.Digest, error) {
		if err := c.grow(ctx, e, j, s, size); err != nil {
			return "", err
		}
		var d model.Digest
		var err error
		if size > smallMember {
			d, err = c.store(s.content(n), size, content)
		} else if d, err = c.storeSmall(s.content(n), size, content); err == nil {
			if small += size; small >= batchBytes { // no more dirty pages than that
				small = 0
				if err := c.disk.SyncFS(s.dir()); err != nil {
					return "", ours(err)
				}
			}
		}
		if err != nil {
			return "", err
		}
		n++
		j.got.Add(size)
		return d, nil
	})
	if err == nil {
		err = c.unpacked(s, members)
	}
	if err != nil {
		if mend := c.forget(j, s); mend != nil {
			return fmt.Errorf("%w; %w", err, mend)
		}
		return err
	}
	// From here on the members are what there is.
	err = c.disk.Remove(s.path())
	c.mu.Lock()
	defer c.mu.Unlock()
	s.unpacked, s.members = true, members
	if err != nil {
		return ours(err) // it counts as long as it is there; the next Open removes it
	}
	if !s.linked {
		j.fetch -= s.file.Size
		j.got.Add(-s.file.Size)
		j.spare += s.file.Size
	}
	s.linked = false
	j.spare = min(j.spare, j.largestArchive())
	c.publish()
	return nil
}

// unpacked makes the members durable, and that they are there.
func (c *Cache) unpacked(s *slot, members []archive.Member) error {
	if err := c.syncMembers(s, members); err != nil {
		return ours(err)
	}
	if err := writeJSON(c.disk, s.journal(), journal{Sum: s.sum, Unpacked: true, Members: members}, 0o600); err != nil {
		return ours(err)
	}
	return nil
}

// syncMembers makes the names of the members durable, and the content of the small ones.
func (c *Cache) syncMembers(s *slot, members []archive.Member) error {
	var small []string
	for n, m := range contents(members) {
		if m.Size <= smallMember {
			small = append(small, s.content(n))
		}
	}
	if len(small) > fewFiles {
		return c.disk.SyncFS(s.dir())
	}
	for _, path := range small {
		if err := c.disk.SyncFile(path); err != nil {
			return err
		}
	}
	return errors.Join(c.disk.SyncDir(s.dir()), c.disk.SyncDir(filepath.Dir(s.dir())))
}

// forget gives up members that were written.
func (c *Cache) forget(j *job, s *slot) error {
	if err := c.disk.RemoveTree(s.dir()); err != nil {
		return ours(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	j.fetch -= s.own
	j.spare = min(j.spare+s.own, j.largestArchive())
	s.own = 0
	var got int64
	for _, s := range j.slots {
		if s.unpacked {
			got += s.own
		} else if !s.linked {
			got += s.file.Size
		}
	}
	j.got.Store(got)
	return nil
}

// grow promises n bytes more to what an archive is unpacked into: of the spare, or else by evicting.
func (c *Cache) grow(ctx context.Context, e *entry, j *job, s *slot, n int64) error {
	if n > c.limit { // it may be any number
		return &model.Error{Reason: "NoSpace", Text: fmt.Sprintf("model %s: an archive holds a file of %s and the limit of the cache at %s is %s: raise it",
			e.name, model.FormatBytes(n), c.cfg.Root, model.FormatBytes(c.limit))}
	}
	c.admit.Lock()
	defer c.admit.Unlock()
	c.mu.Lock()
	more := n - j.spare
	c.mu.Unlock()
	if more > 0 {
		if err := c.makeRoom(ctx, e, j, j.fetch+n); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	j.spare = max(0, j.spare-n)
	j.fetch += n
	s.own += n
	return nil
}

// store writes the content of a member, durably, and returns its digest.
func (c *Cache) store(path string, size int64, content io.Reader) (model.Digest, error) {
	f, err := c.disk.OpenFile(path, 0o600)
	if err != nil {
		return "", ours(err)
	}
	d, err := fill(f, size, content)
	if closed := f.Close(); err == nil && closed != nil {
		err = ours(closed)
	}
	return d, err
}

// storeSmall writes the content of a small member and returns its digest. It is not durable yet: see syncMembers.
func (c *Cache) storeSmall(path string, size int64, content io.Reader) (model.Digest, error) {
	buf := make([]byte, size)
	if _, err := io.ReadFull(content, buf); err != nil {
		return "", err // the archive's
	}
	if err := c.disk.CreateFile(path, buf, 0o444); err != nil {
		return "", ours(err)
	}
	return digestOf(buf), nil
}

func fill(f *durable.File, size int64, content io.Reader) (model.Digest, error) {
	if err := f.Preallocate(size); err != nil {
		return "", ours(err)
	}
	h, buf := sha256.New(), make([]byte, min(bufferSize, max(size, 1)))
	for at, flushed := int64(0), int64(0); at < size; {
		n, err := io.ReadFull(content, buf[:min(int64(len(buf)), size-at)])
		if err != nil {
			return "", err // the archive's
		}
		if _, err := f.WriteAt(buf[:n], at); err != nil {
			return "", ours(err)
		}
		h.Write(buf[:n])
		if at += int64(n); at-flushed >= flushEvery || at == size {
			f.Flush(flushed, at-flushed)
			f.Drop(0, flushed) // what was flushed before is on the disk by now, or nearly
			flushed = at
		}
	}
	if err := f.Sync(); err != nil {
		return "", ours(err)
	}
	f.Drop(0, size)
	if err := f.Chmod(0o444); err != nil {
		return "", ours(err)
	}
	return model.Digest(hex.EncodeToString(h.Sum(nil))), nil
}

// patient reads a file from its start, until its context is done, and gives back the pages behind it: a layer
// of many gigabytes is read once.
type patient struct {
	ctx     context.Context
	file    *durable.File
	at      int64
	dropped int64
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := p.file.ReadAt(b, p.at)
	if p.at += int64(n); p.at-p.dropped >= flushEvery {
		p.file.Drop(p.dropped, p.at-p.dropped)
		p.dropped = p.at
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, ours(err)
	}
	if n > 0 {
		err = nil // what is at the end comes with io.EOF
	}
	return n, err
}
