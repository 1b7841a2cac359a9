package cache

import (
	"context"
	"crypto/sha256"
	"encoding"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/cache/archive"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// job is one partial download: store/partial/<name>. It outlives failed tries, and restarts by way of
// its journals, and keeps its reservation as long as it exists.
type job struct {
	disk    durable.Disk
	dir     string
	plan    plan
	size    int64 // of the files in the plan, in bytes
	largest int64 // of them
	slots   []*slot
	of      []int // the slot of each file of the manifest: equal content is fetched once

	fetch int64        // bytes that are to be here beside the blobs; grows and shrinks under Cache.mu while archives are unpacked
	have  int64        // bytes that were here as blobs
	got   atomic.Int64 // of fetch, bytes that are here
	spare int64        // bytes that are reserved to unpack an archive into; guarded by Cache.mu
	again int64        // bytes that shed took away, to be fetched beside fetch once there is room for them; guarded by Cache.mu

	// Of what unpack made: see record.
	origin   []model.File
	archives []archive.Unpacked

	batches int // number of the next list of small files

	admitted bool // has a reservation; guarded by Cache.mu
	broken   bool // its deletion did not succeed: nothing in it counts; guarded by Cache.mu

	hitch atomic.Pointer[hitch] // the last, in the present run

	lane *lane // to its origin; set before anything runs
	rank rank  // guarded by the mutex of streams

	mu   sync.Mutex // guards what follows, and the slots, during run
	cond *sync.Cond // something may be claimable, or all is over
	left int        // slots without a sum
	err  error      // first failure
}

// hitch is a failure after which a run tried again.
type hitch struct {
	text string
	got  int64 // what was here then
}

// retrying is why nothing comes although a run is at it, for people; "" where progress was made since it failed. What drips
// from an origin is none.
func (j *job) retrying() string {
	if h := j.hitch.Load(); h != nil && j.got.Load() < h.got+progress {
		return "retrying: " + h.text
	}
	return ""
}

// slot is one content of a job. There may be 100,000 of them, nearly all of small files: what only large ones have is apart.
type slot struct {
	n        int          // in job.slots
	file     *model.File  // in the job's plan
	folder   string       // the job's
	at       string       // where it is instead of in its place there; "" where it is not
	small    bool         // comes whole, and has no journal of its own
	linked   bool         // was here as a blob
	unpacked bool         // an archive whose members are here in its place; see unpack.go
	sum      model.Digest // once complete and verified
	inflight int          // streams, during run
	*ranges               // nil of a small file, but for keepSmall
}

// ranges is how far the file of a slot has come.
type ranges struct {
	step      int64
	have      []int64 // bytes of each range that are written, from its start
	hash      hash.Hash
	check     hash.Hash // of file.Check; nil where there is none
	hashState           // of hash and check, as of the last step

	// Of an archive that is unpacked:
	members []archive.Member
	own     int64 // bytes of members that are not blobs

	// During run:
	data    *durable.File
	opening bool
	claimed []bool
	taken   int             // ranges before it are claimed
	hashing bool            // follow is about a step
	saving  bool            // persist is about a journal
	unsaved int64           // bytes written since the last journal
	due     bool            // to be saved however little that is
	dropped int64           // bytes from the start that are on the disk and left the page cache
	plain   bool            // the origin ignores ranges: one stream from the start
	ctx     context.Context // of the streams of this file; made by the first, ended by stop
	stop    context.CancelFunc
}

func newSlot(dir string, n int, f *model.File, step int64) slot {
	s := slot{n: n, file: f, folder: dir}
	if s.small = f.Archive == "" && f.Size <= min(step/smallShare, bufferSize/2); !s.small {
		s.ranges = &ranges{step: step}
		s.reset()
	}
	return s
}

// reset forgets all content.
func (s *slot) reset() {
	s.sum = ""
	if s.small {
		return
	}
	n := int((s.file.Size + s.step - 1) / s.step)
	s.have, s.claimed, s.taken = make([]int64, n), nil, 0
	s.unsaved, s.due, s.dropped = 0, false, 0
	s.unhash()
}

// unhash forgets what was hashed, so that hashing begins at the start again.
func (s *slot) unhash() {
	s.hash, s.hashState = sha256.New(), hashState{}
	s.check, _ = s.file.Check.Hash(s.file.Size) // checkManifest has seen that there is one
}

func (s *slot) path() string {
	if s.at != "" {
		return s.at
	}
	return filepath.Join(s.folder, fmt.Sprintf("%05d", s.n))
}

func (s *slot) journal() string { return s.path() + ".json" }

// span is the place of range i.
func (s *slot) span(i int) (off, n int64) {
	off = int64(i) * s.step
	return off, min(s.step, s.file.Size-off)
}

// full reports whether all of range i is written.
func (s *slot) full(i int) bool {
	_, n := s.span(i)
	return s.have[i] == n
}

// bytes is how much of the content is written.
func (s *slot) bytes() (sum int64) {
	if s.small {
		return 0 // it comes whole
	}
	for _, n := range s.have {
		sum += n
	}
	return sum
}

// newJob lays out the slots of p.
func newJob(disk durable.Disk, dir string, p plan) *job {
	j := &job{disk: disk, dir: dir, plan: p, size: sizeOf(p.Manifest.Files)}
	j.cond = sync.NewCond(&j.mu)
	type content struct {
		model.Digest
		model.Archive
	}
	files := p.Manifest.Files
	known := make(map[content]int, len(files))
	all := make([]slot, 0, len(files)) // in one piece
	j.slots, j.of = make([]*slot, 0, len(files)), make([]int, 0, len(files))
	for i, f := range files {
		j.largest = max(j.largest, f.Size)
		of := content{f.Digest, f.Archive}
		if at, ok := known[of]; ok && f.Digest != "" {
			j.of = append(j.of, at)
			continue
		}
		n := len(all)
		if f.Digest != "" {
			known[of] = n
		}
		all = append(all, newSlot(dir, n, &files[i], p.Step))
		j.of, j.slots = append(j.of, n), append(j.slots, &all[n])
	}
	return j
}

// count sets the sums from the slots.
func (j *job) count() {
	j.fetch, j.have, j.left = 0, 0, 0
	var got, unpacked int64
	for _, s := range j.slots {
		switch {
		case s.unpacked:
			j.fetch, got, unpacked = j.fetch+s.own, got+s.own, unpacked+s.own
		case s.linked:
		case s.sum != "":
			j.fetch, got = j.fetch+s.file.Size, got+s.file.Size
		default:
			j.fetch, got = j.fetch+s.file.Size, got+s.bytes()
		}
		if s.sum == "" {
			j.left++
		}
	}
	j.have = j.size - (j.fetch - unpacked)
	j.got.Store(got)
}

// resume reads a partial download back from the disk.
func (c *Cache) resume(name string) (*job, error) {
	dir := c.at.partial(name)
	var p plan
	if err := readJSON(filepath.Join(dir, "plan.json"), &p); err != nil {
		return nil, err
	}
	if _, err := checkManifest(model.Ref{}, p.Manifest); err != nil {
		return nil, err
	}
	if p.Step < minRangeSize {
		return nil, fmt.Errorf("%s: ranges of %d bytes", dir, p.Step)
	}
	j := newJob(c.disk, dir, p)
	if content(p.Manifest.Files) > c.limit {
		return nil, fmt.Errorf("%s: more than the limit of %s", dir, model.FormatBytes(c.limit))
	}
	sums, err := j.readBatches()
	if err != nil {
		return nil, err
	}
	for _, s := range j.slots {
		if ok, err := c.resumeUnpacked(s); err != nil {
			return nil, err
		} else if ok {
			j.admitted = j.admitted || s.own > 0
			continue
		}
		info, err := os.Lstat(s.path())
		saved := journal{Sum: sums[s.n]}
		read := err == nil && info.Size() == s.file.Size && (saved.Sum != "" || !s.small && readJSON(s.journal(), &saved) == nil)
		if !read || !s.restore(saved) {
			s.reset() // fetched again: nothing says what is in it
			if err == nil && (s.small || durable.Links(info) > 1) {
				// A blob that others have, linked just before a crash: not to be written into.
				if err := c.disk.Remove(s.path()); err != nil {
					return nil, err
				}
				continue
			}
		}
		// Room is reserved before the first file is made.
		j.admitted = j.admitted || err == nil && s.sum == "" || s.sum != "" && !s.linked
		if s.sum != "" {
			// A crash while the blobs were named leaves one content with two names: count it once.
			blob, err := os.Lstat(c.at.blob(s.sum))
			s.linked = err == nil && os.SameFile(info, blob)
		}
	}
	leftovers, err := filepath.Glob(filepath.Join(dir, durable.TempPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, path := range leftovers {
		if err := c.disk.Remove(path); err != nil {
			return nil, err
		}
	}
	j.count()
	return j, nil
}

// restore takes over what a journal says, or reports that it makes no sense.
func (s *slot) restore(saved journal) bool {
	if saved.Sum != "" {
		s.sum = saved.Sum
		return s.file.Digest == "" || s.file.Digest == s.sum
	}
	if len(saved.Done) != (len(s.have)+7)/8 || saved.Hashed < 0 || saved.Hashed > s.file.Size {
		return false
	}
	for i := range s.have {
		_, n := s.span(i)
		s.have[i] = saved.Parts[i]
		if saved.Done[i/8]>>(i%8)&1 == 1 {
			s.have[i] = n
		}
		if s.have[i] < 0 || s.have[i] > n {
			return false
		}
	}
	s.hashState = saved.hashState
	return s.Hashed == 0 || s.Hashed <= s.contiguous() && restoreHash(s.hash, s.Hash) && (s.check == nil || restoreHash(s.check, s.Check))
}

func restoreHash(h hash.Hash, state []byte) bool {
	u, ok := h.(encoding.BinaryUnmarshaler)
	return ok && u.UnmarshalBinary(state) == nil
}

// contiguous is how many bytes from the start are written.
func (s *slot) contiguous() int64 {
	i := int(s.Hashed / s.step)
	for i < len(s.have) && s.full(i) {
		i++
	}
	if i == len(s.have) {
		return s.file.Size
	}
	return int64(i)*s.step + s.have[i]
}

// record is the journal of what is written now; true only of bytes that are synced after this call.
func (s *slot) record() journal {
	saved := journal{Done: make([]byte, (len(s.have)+7)/8), hashState: s.hashState, Parts: map[int]int64{}}
	for i, n := range s.have {
		switch {
		case s.full(i):
			saved.Done[i/8] |= 1 << (i % 8)
		case n > 0:
			saved.Parts[i] = n
		}
	}
	return saved
}

// keepHash notes the state of the hashes, in which there are n bytes.
func (s *slot) keepHash(n int64) error {
	now := hashState{Hashed: n}
	var err error
	if now.Hash, err = saveHash(s.hash); err == nil && s.check != nil {
		now.Check, err = saveHash(s.check)
	}
	if err == nil {
		s.hashState = now
	}
	return err
}

func saveHash(h hash.Hash) ([]byte, error) {
	m, ok := h.(encoding.BinaryMarshaler)
	if !ok {
		return nil, fmt.Errorf("%T cannot be saved", h)
	}
	return m.MarshalBinary()
}

// prepare returns the job that brings e to m: the one that was interrupted, if it is for the same
// content, or a new one. It returns nil if what is visible is m already.
func (c *Cache) prepare(e *entry, ref model.Ref, m model.Manifest) (*job, error) {
	c.mu.Lock()
	visible, olds, j := e.visible, e.old, e.job
	if j != nil && j.broken {
		j = nil
	}
	c.mu.Unlock()
	if visible != nil {
		m.Files = trust(m.Files, visible.named())
		for _, r := range olds {
			m.Files = trust(m.Files, r.named())
		}
		if m.Revision == visible.Revision && slices.Equal(m.Files, visible.named()) {
			return nil, c.same(e, ref, m.Hub)
		}
	}
	if j != nil {
		m.Files = trust(m.Files, j.plan.Manifest.Files) // it may be what is left of a model that was damaged
	}
	if j != nil && j.plan.Manifest.Revision == m.Revision && slices.Equal(j.plan.Manifest.Files, m.Files) {
		c.mu.Lock()
		defer c.mu.Unlock()
		j.plan.Manifest.Hub = m.Hub // the reference may be another
		return j, nil
	}
	if err := c.dropPartial(e); err != nil {
		return nil, err
	}
	return c.layOut(e, ref, m)
}

// layOut makes a new job of m, with what is here as blobs.
func (c *Cache) layOut(e *entry, ref model.Ref, m model.Manifest) (*job, error) {
	// Before anything is laid out: an origin may claim any size.
	if size := content(m.Files); size > c.limit {
		return nil, &model.Error{Reason: "NoSpace", Text: fmt.Sprintf(
			"model %s needs %s and the limit of the cache at %s is %s: raise it", e.name, model.FormatBytes(size), c.cfg.Root, model.FormatBytes(c.limit))}
	}
	c.links.Lock()
	defer c.links.Unlock()
	dir := c.at.partial(e.name)
	j := newJob(c.disk, dir, plan{Ref: fingerprint(ref), Step: c.cfg.RangeSize, Manifest: m})
	if err := c.disk.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := writeJSON(c.disk, filepath.Join(dir, "plan.json"), j.plan, 0o600); err != nil {
		return nil, err
	}
	if err := c.disk.SyncDir(c.at.partials()); err != nil {
		return nil, err
	}
	here := map[int]model.Digest{}
	for _, s := range j.slots {
		if ok, err := c.linkUnpacked(s); err != nil {
			return nil, err
		} else if ok {
			continue
		}
		c.mu.Lock()
		size, ok := c.blobs[s.file.Digest]
		c.mu.Unlock()
		if !ok || size != s.file.Size {
			continue
		}
		if err := c.link(c.at.blob(s.file.Digest), s.path()); err != nil {
			return nil, err
		}
		s.sum, s.linked = s.file.Digest, true
		here[s.n] = s.sum
	}
	if err := j.writeBatch(here); err != nil {
		return nil, err
	}
	j.count()
	c.mu.Lock()
	defer c.mu.Unlock()
	e.job = j
	return j, nil
}

// content is how many bytes the files take: equal content counts once.
func content(files []model.File) (sum int64) {
	seen := map[model.Digest]bool{}
	for _, f := range files {
		if !seen[f.Digest] {
			sum += f.Size
		}
		seen[f.Digest] = f.Digest != ""
	}
	return sum
}

// trust fills in digests that the origin does not name and that were recorded when the same version of
// the same file was fetched.
func trust(files, known []model.File) []model.File {
	files = slices.Clone(files)
	at := make(map[string]model.File, len(known))
	for _, k := range known {
		at[k.Path] = k
	}
	for i, f := range files {
		if f.Digest != "" || f.Version == "" {
			continue
		}
		if k, ok := at[f.Path]; ok && k.Size == f.Size && k.Version == f.Version {
			files[i].Digest, files[i].FirstUse = k.Digest, k.FirstUse
		}
	}
	return files
}

// same notes that the visible model is what ref stands for.
func (c *Cache) same(e *entry, ref model.Ref, hub model.Hub) error {
	if err := c.dropPartial(e); err != nil {
		return err
	}
	r := *e.visible // only the worker on e replaces it
	r.Source, r.Ref, r.Hub = ref.String(), fingerprint(ref), hub
	if r.Ref == e.visible.Ref && r.Hub == e.visible.Hub {
		return nil
	}
	c.links.Lock()
	defer c.links.Unlock()
	c.mu.Lock()
	now, before := append([]*record{&r}, e.old...), e.records()
	c.mu.Unlock()
	if err := c.showHub(e.name, now, before); err != nil {
		return err
	}
	if err := writeJSON(c.disk, c.at.manifest(e.name), r, 0o644); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e.visible = &r
	return nil
}

// allocate takes the blocks for what is still to come, of small files apart: see unallocated.
func (j *job) allocate() error {
	for _, s := range j.slots {
		if s.sum != "" || s.small {
			continue
		}
		f, err := j.disk.OpenFile(s.path(), 0o600)
		if err != nil {
			return err
		}
		err = f.Preallocate(s.file.Size)
		if closed := f.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return err
		}
	}
	return j.disk.SyncDir(j.dir)
}

// allocated is how many bytes of the disk the job has taken for what it fetches.
func (j *job) allocated() int64 {
	var sum int64
	for _, s := range j.slots {
		if s.small { // not looked at one by one, with Cache.mu held: there may be 100,000
			if s.sum != "" && !s.linked {
				sum += s.file.Size
			}
			continue
		}
		sum += s.own // synced, and so on the disk
		if info, err := os.Lstat(s.path()); err == nil && !s.linked {
			sum += min(durable.Allocated(info), s.file.Size)
		}
	}
	return sum
}

// unallocated is how many bytes j was promised and has not taken blocks for.
func (j *job) unallocated() (sum int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.slots {
		if s.small && s.sum == "" {
			sum += s.file.Size
		}
	}
	return sum
}
