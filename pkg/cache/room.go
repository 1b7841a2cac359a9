package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache/archive"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// unlabelTimeout bounds how long an eviction waits for others to stop sending pods here: the model that
// needs the room fails and is tried again.
const unlabelTimeout = time.Minute

// reserve promises j the room for all that it still has to fetch, and takes the blocks on the disk. It
// evicts what it must, the longest unused first, and nothing if that would not do.
func (c *Cache) reserve(ctx context.Context, e *entry, j *job) error {
	c.admit.Lock()
	defer c.admit.Unlock()
	spare := j.largestArchive()
	needs := j.fetch + j.again
	err := c.makeRoom(ctx, e, j, needs+spare)
	if model.ReasonOf(err) == "NoSpace" && spare > 0 && j.admitted {
		// What it had for this before a restart may be gone. It keeps what it has, and asks again file by file.
		spare = 0
		err = c.makeRoom(ctx, e, j, needs)
	}
	if model.ReasonOf(err) == "NoSpace" {
		return errors.Join(err, c.dropPartial(e))
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	j.admitted, j.spare, j.fetch, j.again = true, spare, needs, 0
	if e.reason == "NoSpace" {
		e.reason, e.message = "", "" // it has it now
	}
	c.publish()
	c.mu.Unlock()
	if err := j.allocate(); err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			return errors.Join(&model.Error{Reason: "NoSpace", Err: err, Text: fmt.Sprintf(
				"model %s needs %s and the disk is full", e.name, model.FormatBytes(j.fetch))}, c.dropPartial(e))
		}
		return err
	}
	return nil
}

// makeRoom evicts until j may take needs bytes, all in all, and make its files. c.admit is held.
func (c *Cache) makeRoom(ctx context.Context, e *entry, j *job, needs int64) error {
	files := j.unmade() + j.folders()
	for {
		room, why, err := c.room(j)
		if err != nil {
			return err
		}
		if needs <= room.bytes && files <= room.files {
			return nil
		}
		victims, freed := c.evictable(e)
		switch {
		case needs > room.bytes+freed.bytes || needs > room.bytes && len(victims) == 0:
			return &model.Error{Reason: "NoSpace", Text: fmt.Sprintf("model %s needs %s, free %s, evictable %s: %s",
				e.name, model.FormatBytes(needs), model.FormatBytes(max(room.bytes, 0)), model.FormatBytes(freed.bytes), c.remedy(why.bytes))}
		case files > room.files+freed.files || len(victims) == 0:
			return &model.Error{Reason: "NoSpace", Text: fmt.Sprintf("model %s needs %d files (inodes), free %d, evictable %d: %s",
				e.name, files, max(room.files, 0), freed.files, c.remedy(why.files))}
		}
		if err := c.evict(ctx, victims[0], e); err != nil {
			return fmt.Errorf("evict %s: %w", victims[0], err)
		}
	}
}

// room is what the limit and the filesystem leave for j, of which it may have some, and why the filesystem leaves no
// more, where it is that. A job that was admitted before has its reservation and its blocks.
func (c *Cache) room(j *job) (left amount, why reasons, err error) {
	disk, err := c.floor()
	if err != nil {
		return left, why, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	used, reserved := c.ledger()
	if j.admitted {
		used, reserved = used-j.got.Load(), reserved-(j.fetch-j.got.Load()+j.spare)
	}
	room, free := c.limit-used-reserved, disk.free
	// On the disk the blocks of other jobs are taken already, but for those of small files and what they unpack
	// into, and j's own are what it has allocated.
	for _, m := range c.models {
		if m.job != nil && m.job != j {
			free.bytes -= m.job.spare
			if m.job.admitted {
				free.bytes -= m.job.unallocated()
				free.files -= m.job.unmade()
			}
		}
	}
	left = amount{bytes: free.bytes - disk.keep.bytes + j.allocated(), files: free.files - disk.keep.files}
	why = disk.why
	if room <= left.bytes {
		left.bytes, why.bytes = room, ""
	}
	return left, why, nil
}

// victim is what may be evicted: what is visible of a model, or an old revision of it.
type victim struct {
	entry *entry
	old   *record // nil: what is visible
}

func (v victim) String() string {
	if v.old != nil {
		return v.entry.name + "@" + v.old.short()
	}
	return v.entry.name
}

// before orders victims: old revisions before all models, those that nobody asks for before those of the config, by
// priority, and then the longest unused.
func (v victim) before(w victim) int {
	if (v.old != nil) != (w.old != nil) {
		if v.old != nil {
			return -1
		}
		return 1
	}
	if v.old != nil {
		return v.entry.lastUseOf(v.old).Compare(w.entry.lastUseOf(w.old))
	}
	if v.entry.wanted != w.entry.wanted {
		if w.entry.wanted {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(v.entry.priority(), w.entry.priority()), v.entry.lastUse().Compare(w.entry.lastUse()))
}

// evictable lists what may go for the sake of e, in the order in which it would, and what this
// would free. A model does not go before its old revisions.
func (c *Cache) evictable(e *entry) ([]victim, amount) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var victims []victim
	kept := map[model.Digest]bool{}
	keep := func(files []model.File) {
		for _, f := range files {
			kept[f.Digest] = true
		}
	}
	for _, m := range c.models {
		used := false
		for _, r := range m.old {
			if c.inUse(m, r) != "" {
				used = true
				keep(r.Files)
			} else {
				victims = append(victims, victim{m, r})
			}
		}
		switch {
		case m.visible == nil:
		case used || c.spared(m, e):
			keep(m.visible.Files)
		default:
			victims = append(victims, victim{m, nil})
		}
		if m.job != nil {
			keep(m.job.holds())
		}
	}
	var freed amount
	for _, v := range victims {
		r := v.old
		if r == nil {
			r = v.entry.visible
		}
		for _, f := range r.Files {
			if !kept[f.Digest] {
				kept[f.Digest] = true
				freed.bytes += c.blobs[f.Digest]
				freed.files++
			}
		}
	}
	slices.SortFunc(victims, victim.before)
	return victims, freed
}

// shrink evicts, and gives up partial downloads, until what is here fits the limit, which may be lower
// than it was. No worker is on anything yet.
func (c *Cache) shrink(ctx context.Context) {
	c.admit.Lock()
	defer c.admit.Unlock()
	for ctx.Err() == nil {
		c.mu.Lock()
		used, reserved := c.ledger()
		var partial *entry
		for _, e := range c.models {
			if e.job != nil && e.job.admitted && (partial == nil || e.name < partial.name) {
				partial = e
			}
		}
		c.mu.Unlock()
		if used+reserved <= c.limit {
			return
		}
		var err error
		switch victims, _ := c.evictable(nil); {
		case len(victims) > 0:
			err = c.evict(ctx, victims[0], nil)
		case partial != nil:
			err = c.dropPartial(partial)
		default:
			err = errors.New("only models that the config asks for, pinned ones and what this cache did not make are left: " +
				"take some out of the config, unpin some, or raise the limit")
		}
		if err != nil {
			c.log.Warn("the cache is over its limit", "used", used, "reserved", reserved, "limit", c.limit, "err", err)
			return
		}
	}
}

// evict takes a victim away for the sake of one entry, nil where it is for the limit's, unless it is in use by now.
func (c *Cache) evict(ctx context.Context, v victim, sake *entry) error {
	e := v.entry
	if v.old != nil {
		c.mu.Lock()
		used := c.inUse(e, v.old) != ""
		c.mu.Unlock()
		if used {
			return nil // count again
		}
		c.log.Info("evicting an old revision", "model", e.name, "revision", v.old.Revision)
		return c.dropOld(e, v.old)
	}
	ctx, cancel := context.WithTimeout(ctx, unlabelTimeout)
	defer cancel()
	c.mu.Lock()
	if c.spared(e, sake) {
		c.mu.Unlock()
		return nil // somebody was faster: count again
	}
	m := e.memory
	wished := m.Wished
	m.Wished = false // or it would come back and evict in its turn
	m.Held = hold{}  // whoever asks for it one day does not ask for that revision
	err := c.rememberLess(e, m)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	r, last := c.begin(e), e.lastUse()
	c.mu.Unlock()
	c.log.Info("evicting a model", "model", e.name, "lastUse", last)
	// A pod may have come while its label was taken back.
	err = c.takeAway(ctx, e, r, func() bool { return e.called || len(e.pods) > 0 || c.blind != "" })
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, errSpared) {
		c.log.Info("a model stays after all", "model", e.name, "pods", e.pods)
		m := e.memory
		m.Wished = wished
		return c.remember(e, m)
	}
	if err == nil {
		c.evicted++
	}
	return err
}

// errSpared is that a model came into use while it was going away, and stays.
var errSpared = errors.New("in use after all")

// withdraw takes a model out of sight and off the disk: first the inventory says Removing, then whoever
// promised the model to others takes that back, then the directory goes in one step, then the content.
// What is left of a damaged model goes back into a download, where it is asked for.
func (c *Cache) withdraw(ctx context.Context, e *entry, damaged bool) error {
	c.mu.Lock()
	r := c.begin(e)
	c.mu.Unlock()
	if r == nil {
		return nil
	}
	var err error
	if damaged {
		err = c.salvage(ctx, e, r)
	}
	return errors.Join(err, c.takeAway(ctx, e, r, func() bool { return false }))
}

// begin says that e is going away, and gives what it shows; nil if it shows nothing, or is going already. c.mu is held.
func (c *Cache) begin(e *entry) *record {
	if e.visible == nil || e.removing {
		return nil
	}
	e.removing = true
	c.publish()
	return e.visible
}

// takeAway ends what begin began. spare is asked, with c.mu held, when nothing leads to the model any more.
func (c *Cache) takeAway(ctx context.Context, e *entry, r *record, spare func() bool) error {
	err := c.erase(ctx, e, r, spare)
	c.mu.Lock()
	defer c.mu.Unlock()
	e.removing = false
	if !exists(c.at.visible(e.name)) {
		e.visible = nil
		c.roomChanged()
	}
	c.changed()
	return err
}

// salvage makes what is sound of r a partial download, so that the rest alone is fetched again. c.blobs lacks
// what is not. e is being removed, so that no worker begins.
func (c *Cache) salvage(ctx context.Context, e *entry, r *record) error {
	c.mu.Lock()
	busy := e.busy
	e.restart()
	c.mu.Unlock()
	if busy != nil {
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	asked, ref, j := e.asked(), e.ref(), e.job
	c.mu.Unlock()
	if asked && j != nil && !j.broken {
		return nil // an update is on its way, with what it shares with r
	}
	if err := c.dropPartial(e); err != nil || !asked {
		return err
	}
	_, err := c.layOut(e, ref, model.Manifest{Revision: r.Revision, Files: r.named(), Hub: r.Hub})
	return err
}

func (c *Cache) erase(ctx context.Context, e *entry, r *record, spare func() bool) error {
	if c.cfg.Unlabelled != nil {
		if err := c.cfg.Unlabelled(ctx, e.name); err != nil {
			return fmt.Errorf("take back the labels of model %s: %w", e.name, err)
		}
	}
	aside, err := c.unshow(e, r, spare)
	for _, dir := range aside {
		err = errors.Join(err, c.disk.RemoveTree(dir))
	}
	if err != nil {
		return err
	}
	return c.dropOrphans(r.Files)
}

// unshow takes r out of sight: all that leads to it is put aside, where it is to be deleted.
func (c *Cache) unshow(e *entry, r *record, spare func() bool) (aside []string, err error) {
	c.links.Lock()
	defer c.links.Unlock()
	c.mu.Lock()
	spared := spare()
	c.mu.Unlock()
	if spared {
		return nil, errSpared
	}
	put := func(dir string) error {
		at, err := c.putAside(dir)
		if at != "" {
			aside = append(aside, at)
		}
		return err
	}
	if err := put(c.at.visible(e.name)); err != nil {
		return aside, err
	}
	c.mu.Lock()
	e.visible = nil // or others would make the repository hold it still
	now := e.old
	c.mu.Unlock()
	gone := []*record{r}
	// What is large goes aside, so that nobody waits until it is deleted.
	if dir := c.at.revision(r); c.shows(dir, r) && !c.isOne(dir, now) {
		err = put(dir)
	}
	if r.Hub.Repo != "" && c.shows(c.at.snapshot(r), r) && len(c.fromRepository(r.Hub.Repo, e.name, now)) == 0 {
		err = errors.Join(err, put(c.at.repository(r.Hub.Repo)))
	}
	if err := errors.Join(err, c.hideRevisions(e.name, now, gone), c.showHub(e.name, now, gone)); err != nil {
		return aside, err
	}
	return aside, c.disk.Remove(c.at.manifest(e.name))
}

// halt ends the worker on e and keeps others off it, until it is let go.
func (c *Cache) halt(ctx context.Context, e *entry) (letGo func(), err error) {
	for {
		c.mu.Lock()
		e.restart()
		busy := e.busy
		if busy == nil {
			e.busy, e.cancel = make(chan struct{}), func() {}
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				close(e.busy)
				e.busy, e.cancel = nil, nil
				c.changed()
			}, nil
		}
		e.again = true // what it was at is not done
		c.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// damaged reports whether a slot is, or may be, one of the bad blobs: a link of one, or an archive with one among its
// members. What the job fetched itself was verified as it came. Cache.mu is held.
func (s *slot) damaged(bad map[model.Digest]bool) bool {
	if s.unpacked {
		return slices.ContainsFunc(contents(s.members), func(m archive.Member) bool { return bad[m.Digest] })
	}
	return s.linked && bad[s.sum]
}

func (j *job) damaged(bad map[model.Digest]bool) bool {
	return slices.ContainsFunc(j.slots, func(s *slot) bool { return s.damaged(bad) })
}

// shed takes the bad blobs out of a partial download, to be fetched again; all else in it stays. e was halted.
func (c *Cache) shed(e *entry, bad map[model.Digest]bool) error {
	c.links.Lock()
	defer c.links.Unlock()
	c.mu.Lock()
	j := e.job
	var lost []*slot
	undone := map[int]model.Digest{}
	if j != nil {
		for _, s := range j.slots {
			if s.damaged(bad) {
				lost = append(lost, s)
				undone[s.n] = ""
			}
		}
	}
	c.mu.Unlock()
	if len(lost) == 0 {
		return nil
	}
	// First what says that it is there: else a crash later on could have half a file taken for a whole one.
	err := j.writeBatch(undone)
	for _, s := range lost {
		err = errors.Join(err, c.disk.Remove(s.journal()))
	}
	for _, s := range lost {
		err = errors.Join(err, c.disk.Remove(s.path()), c.disk.RemoveTree(s.dir()))
	}
	if err = errors.Join(err, c.disk.SyncDir(j.dir)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	reserved := j.fetch
	for _, s := range lost {
		if s.unpacked {
			reserved -= s.own
			s.unpacked, s.members, s.own = false, nil, 0
		}
		s.linked = false
		s.reset()
	}
	j.count()
	j.fetch, j.again = reserved, j.fetch-reserved
	return nil
}

// dropPartial gives up a partial download and its reservation. No worker is on it, or it is the caller.
func (c *Cache) dropPartial(e *entry) error {
	c.links.Lock()
	defer c.links.Unlock()
	if err := c.disk.RemoveTree(c.at.partial(e.name)); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if e.job != nil {
			e.job.broken = true
		}
		return err
	}
	c.mu.Lock()
	j := e.job
	e.job = nil
	if j != nil && j.admitted {
		c.roomChanged()
		c.changed()
	}
	c.mu.Unlock()
	if j == nil {
		return nil
	}
	for _, f := range j.holds() {
		if f.Digest == "" {
			continue
		}
		if err := c.dropOrphan(f.Digest); err != nil {
			return err
		}
	}
	return nil
}

// Remove takes a model that was asked for by Pull, or by a config of the past, off this node, with its old
// revisions, or by name@revision one old revision alone. It returns when that is gone. What is pinned, or in use,
// goes only by force.
func (c *Cache) Remove(ctx context.Context, name string, force bool) error {
	name, revision, one := strings.Cut(name, "@")
	if one {
		return c.removeOld(name, revision, force)
	}
	c.mu.Lock()
	e := c.models[name]
	if e == nil || !e.asked() && len(e.records()) == 0 {
		c.mu.Unlock()
		return notFound(name)
	}
	if e.wanted {
		c.mu.Unlock()
		return &model.Error{Reason: "Wanted", Final: true,
			Text: fmt.Sprintf("model %s is in the config and would come back: remove it there first", name)}
	}
	if e.called || len(e.pods) > 0 && !force {
		c.mu.Unlock()
		text := "model %s is in use by pod %s: delete the pod first, or remove it with --force"
		if e.called {
			text = "model %s is asked for by pod %s and would come back: delete the pod first"
		}
		return &model.Error{Reason: "InUse", Final: true, Text: fmt.Sprintf(text, name, strings.Join(e.pods, ", "))}
	}
	if (e.memory.Pinned || slices.ContainsFunc(e.records(), func(r *record) bool { return slices.Contains(e.memory.Pins, r.short()) })) && !force {
		c.mu.Unlock()
		return &model.Error{Reason: "Pinned", Final: true,
			Text: fmt.Sprintf("model %s is pinned: unpin it first, or remove it with --force", name)}
	}
	err := c.mayWrite()
	if err == nil {
		err = c.rememberLess(e, memory{LastUse: e.memory.LastUse})
	}
	busy := e.busy
	if err == nil {
		e.restart()
		c.changed()
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if busy != nil {
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	olds := e.old
	c.mu.Unlock()
	for _, r := range olds {
		if err := c.dropOld(e, r); err != nil {
			return err
		}
	}
	return c.withdraw(ctx, e, false) // a partial download goes with the next sweep
}
