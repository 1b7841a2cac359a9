package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/internal/multibuffer"
	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Cache keeps the models of one node. Its methods are safe for concurrent use.
type Cache struct {
	cfg     Config
	disk    durable.Disk
	at      layout
	sources map[string]Source
	log     *slog.Logger
	lock    *os.File
	limit   int64 // bytes
	// sealed is that the disk was read-only when the cache was opened: what is not as it should be there stays so.
	sealed bool

	inventory watch.Value[*model.Inventory]
	wake      chan struct{} // to the reconcile loop: something changed
	streams   *streams
	pace      *pace
	hashes    multibuffer.Pool // not of all caches: a disk that hangs would hold up the others
	fetched   atomic.Int64     // bytes from origins
	owed      time.Duration    // that the scrub has to wait yet; its goroutine's alone
	warmed    atomic.Int64     // bytes read ahead
	// elsewhere, where set, reports whether a model, of which nothing is here, goes to another disk. Set before Run.
	elsewhere func(name string, files []model.File, refused bool) bool

	// admit is held while room is sought and made: one at a time, so that nobody counts the same room twice.
	admit sync.Mutex
	// links is held while names of blobs are made and dropped, so that no blob goes between being found
	// and being linked. Taken after admit and before mu.
	links sync.Mutex
	// unpacking is held while an archive is unpacked. Taken before admit.
	unpacking sync.Mutex

	mu       sync.Mutex // guards what follows, the entries' fields included; never held over I/O on content
	asked    int64      // number of the newest Pull
	models   map[string]*entry
	blobs    map[model.Digest]int64 // bytes; see addBlob
	stored   int64                  // their sum: there may be 100,000, and it is asked for twice a second
	foreign  int64                  // bytes in by-name that this cache did not bring; constant after Open
	failures map[string]int64       // by reason
	evicted  int64
	pods     []model.Use       // what runs on this node with a model
	blind    string            // why it is not known what does; "" where it is
	ails     model.Problem     // of the disk; zero: nothing
	unseen   string            // why the pods are not seen now; "" where they are
	refused  map[string]string // why what a pod asks for is not pulled, by the model's name
	closed   bool              // no Import begins
	scrubbed model.Scrub
	warmth   map[*record]warmth // of what is or was in an entry; empty unless Config.Warm is on
}

// entry is one model: what is asked for and what is there.
type entry struct {
	name   string
	memory memory // as it is on disk in store/state

	listed bool       // in the config
	order  int        // its place there
	spec   model.Spec // the config's, when listed
	wanted bool       // the config asks for it on this node, at all times

	called   bool      // a pod on this node asks for it
	calledAt model.Ref // from where, where nobody else has said
	pods     []string  // that use what is visible or ask for it, sorted

	visible *record   // what pods see; nil where nothing
	old     []*record // what they saw before and may see still, the newest first; never changed in place
	job     *job      // the partial download, with its reservation; nil where none

	used      time.Time            // last open that was seen; memory.LastUse follows it now and then
	usedOld   map[string]time.Time // the same of old revisions, as model.Revision12 has them; memory.Uses follows
	importing bool                 // the worker on it is an Import
	kept      int                  // Export calls that read any of its revisions, and Import calls that brought it: all of them stay meanwhile
	verifying int                  // Verify calls that read the files, which is no use
	verified  time.Time            // end of the last one

	busy      chan struct{}      // closed when the worker on it has ended; nil when none is
	cancel    context.CancelFunc // of that worker
	again     bool               // resolve although visible
	scheduled bool               // and nobody but the schedule asks for it
	look      time.Time          // when to do so by the schedule; zero: not reckoned
	every     time.Duration      // the schedule that look is of
	seen      string             // revision that the origin named last
	newest    int64              // number of the newest Pull of it
	taken     int64              // newest, as of when the worker on it began
	answered  int64              // the Pull that the last outcome answers
	removing  bool
	reason    string // why the last try ended, "" if it went well
	message   string
	final     bool // the last failure cannot be helped by trying
	tries     int
	retryAt   time.Time
}

// asked reports whether anybody asks for the model.
func (e *entry) asked() bool { return e.wanted || e.called || e.memory.Wished }

// pinned reports whether what is visible must not be evicted.
func (e *entry) pinned() bool {
	return e.memory.Pinned || e.listed && e.spec.Pinned || e.visible != nil && slices.Contains(e.memory.Pins, e.visible.short())
}

// held reports whether the model stays at the revision of memory.Held.
func (e *entry) held() bool {
	return e.memory.Held != (hold{}) && e.memory.Held.Ref == fingerprint(e.ref())
}

// records are all that the entry has, the current one first, in a slice of the caller's own.
func (e *entry) records() []*record {
	if e.visible == nil {
		return slices.Clone(e.old)
	}
	return append([]*record{e.visible}, e.old...)
}

// ref is where the model is to come from.
func (e *entry) ref() model.Ref {
	if e.listed {
		return e.spec.Source
	}
	if e.memory.Ref == (model.Ref{}) {
		return e.calledAt
	}
	return e.memory.Ref
}

// due reports whether there is work, be it now or at retryAt.
func (e *entry) due() bool {
	if !e.asked() || e.removing || e.listed && e.spec.Unsure != "" && !e.memory.Wished {
		return false
	}
	return e.visible == nil || e.again || !e.held() && e.visible.Ref != fingerprint(e.ref())
}

// entry returns the named entry, made where missing. c.mu is held, or the Cache is not shared yet.
func (c *Cache) entry(name string) *entry {
	e := c.models[name]
	if e == nil {
		e = &entry{name: name}
		c.models[name] = e
	}
	return e
}

// Get is the newest inventory.
func (c *Cache) Get() *model.Inventory { return c.inventory.Get() }

// Watch is the newest inventory, and a channel that is closed once there is a newer one.
func (c *Cache) Watch() (*model.Inventory, <-chan struct{}) { return c.inventory.Watch() }

// publish sets the inventory to what is known. c.mu is held.
func (c *Cache) publish() {
	inv := &model.Inventory{
		Time: time.Now(), Root: c.cfg.Root, Limit: c.limit,
		Fetched: c.fetched.Load(), ReadAhead: c.warmed.Load(), Evicted: c.evicted, Failures: maps.Clone(c.failures),
	}
	inv.Scrub = c.scrubbed
	inv.Used, inv.Reserved = c.ledger()
	if c.ails.Reason != "" {
		inv.Problems = append(inv.Problems, c.ails)
	}
	if c.blind != "" {
		inv.Problems = append(inv.Problems, model.Problem{Reason: "PodsUnknown", Message: c.blindness()})
	}
	if c.unseen != "" {
		inv.Problems = append(inv.Problems, model.Problem{Reason: "PodsUnseen", Message: "the pods of this node are not seen: " +
			"what they ask for is not followed, and what they use is known by opens alone, or as it was last seen: " + c.unseen})
	}
	inv.Refused = c.refusals("")
	for _, e := range c.models {
		if e.asked() || e.listed || e.visible != nil || e.removing || e.busy != nil || len(e.old) > 0 {
			inv.Models = append(inv.Models, c.status(e))
		}
	}
	slices.SortFunc(inv.Models, func(a, b model.Status) int { return strings.Compare(a.Name, b.Name) })
	c.inventory.Set(inv)
}

// addBlob notes a blob of n bytes. c.mu is held, or the Cache is not shared yet.
func (c *Cache) addBlob(d model.Digest, n int64) {
	c.dropBlob(d)
	c.blobs[d] = n
	c.stored += n
}

// dropBlob notes that a blob is gone. c.mu is held.
func (c *Cache) dropBlob(d model.Digest) {
	c.stored -= c.blobs[d]
	delete(c.blobs, d)
}

// ledger is what the content takes, and what is promised to downloads beyond that. c.mu is held.
func (c *Cache) ledger() (used, reserved int64) {
	used = c.foreign + c.stored
	for _, e := range c.models {
		if e.job != nil && e.job.admitted {
			got := e.job.got.Load()
			used += got
			reserved += e.job.fetch - got + e.job.spare
		}
	}
	return used, reserved
}

func (c *Cache) status(e *entry) model.Status {
	s := model.Status{
		Name: e.name, Source: e.ref().String(), State: model.Pending,
		Reason: e.reason, Message: e.message, RetryAt: e.retryAt, Final: e.final,
		Pinned: e.pinned(), Wanted: e.wanted, LastUse: e.lastUse(),
		Asked: e.newest, Answered: e.answered, Origin: cmp.Or(e.seen, e.memory.Origin), NextLook: c.nextLook(e, time.Now()),
	}
	s.Priority, s.Pods, s.Called = e.priority(), e.pods, e.called
	if e.listed {
		s.Unfit = e.spec.Unfit
	}
	if e.held() {
		s.Held = e.memory.Held.Revision
	}
	for _, r := range e.old {
		s.Old = append(s.Old, c.oldStatus(e, r))
	}
	if j := e.job; j != nil {
		s.Revision, s.Files = j.plan.Manifest.Revision, len(j.plan.Manifest.Files)
		s.Size, s.Done = j.size, min(j.size, j.have+j.got.Load())
	}
	wait, why := c.waits(e)
	if r := e.visible; r != nil {
		if !e.held() && (e.busy != nil || e.due()) {
			s.Update = &model.Update{Revision: s.Revision, Size: s.Size, Done: s.Done, Reason: e.reason, Message: e.message}
			if why != "" {
				s.Update.Reason, s.Update.Message = wait, why
			}
		}
		s.State, s.Source, s.Revision, s.Path = model.Ready, r.Source, r.Revision, c.at.visible(e.name)
		s.Files, s.FirstUse, s.Size, s.Done = len(r.Files), r.first, r.size, r.size
		w := c.warmth[r]
		if s.Warmth = w.text; w.looked {
			s.Resident = &w.resident
		}
	}
	switch {
	case e.removing:
		s.State, s.Path, s.Update = model.Removing, "", nil
	case e.visible != nil:
	case e.listed && !e.asked():
		c.skipped(e, &s)
	case e.listed && e.spec.Unsure != "" && e.reason == "":
		s.Reason, s.Message = "Unsure", e.spec.Unsure
	case e.busy == nil && e.due() && c.ails.Reason == readOnlyDisk:
		s.Reason, s.Message = c.ails.Reason, c.ails.Message
	case e.busy != nil && e.job != nil && e.job.admitted:
		s.State = model.Pulling
		if why != "" {
			s.Reason, s.Message = cmp.Or(wait, e.reason), why
		}
	case !e.asked() && len(e.old) > 0:
		s.State, s.Reason = model.Failed, "OnlyOld"
		s.Message = "its current revision is gone and nobody asks for it; old ones are in use: gpu-agent models rollback " +
			e.name + " makes one current"
	case e.reason != "" && e.reason != "NoSpace":
		s.State = model.Failed
	}
	return s
}

// waits is what keeps the download of e from going on now, without a reason where it is tried again; "" where nothing
// does. c.mu is held.
func (c *Cache) waits(e *entry) (reason, message string) {
	if e.busy == nil || e.job == nil || !e.job.admitted {
		return "", ""
	}
	if until := c.pace.plan.paused(time.Now()); until != "" {
		return "Paused", "paused until " + until + " by cache.bandwidth"
	}
	if until := c.streams.shut(c.streams.lane(originOf(e.ref()))); !until.IsZero() {
		return "Throttled", leftAlone(e.ref(), until)
	}
	return "", e.job.retrying()
}

// Want replaces the list of models that the config asks for. Those that are not in it any more stay
// until their room is needed. Call it before Run, with nil if there are none: Run drops partial
// downloads that nobody asks for.
func (c *Cache) Want(specs []model.Spec) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := map[string]model.Ref{}
	for name, e := range c.models {
		if e.asked() {
			before[name] = e.ref()
		}
		e.listed, e.wanted, e.spec = false, false, model.Spec{}
	}
	for i, s := range specs {
		if err := model.CheckName(s.Name); err != nil {
			c.log.Error("ignoring a model", "err", err)
			continue
		}
		e := c.entry(s.Name)
		e.listed, e.spec, e.order = true, s, i
		e.wanted = !s.OnDemand && s.Unfit == ""
	}
	c.call()
	for name, e := range c.models {
		if old, was := before[name]; was && (!e.asked() || e.ref() != old) {
			e.restart()
		}
	}
	c.changed()
}

// restart forgets how the last try went and ends a running one. c.mu is held.
func (e *entry) restart() {
	e.reason, e.message, e.final, e.tries, e.retryAt = "", "", false, 0, time.Time{}
	if e.cancel != nil {
		e.cancel()
	}
}

// changed publishes and wakes the loop. c.mu is held.
func (c *Cache) changed() {
	c.publish()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Pull asks for a model beside those of the config, durably: it is fetched after a restart too, until it
// is evicted or removed. A model that is there is looked up at its origin again, and a failed one is
// tried at once. Without a source it comes from where it came before, or from where the config says.
// Pull does not wait for the content: in the model's status, Answered reaches the number that Pull
// returns once there is an outcome. Numbers grow from one Pull to the next, over a restart too.
func (c *Cache) Pull(_ context.Context, s model.Spec) (asked int64, err error) {
	if err := model.CheckName(s.Name); err != nil {
		return 0, &model.Error{Reason: "BadName", Text: err.Error(), Final: true}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.mayWrite(); err != nil {
		return 0, err
	}
	known := c.models[s.Name]
	if s.Source == (model.Ref{}) {
		s.Source = known.origin()
	}
	if s.Source == (model.Ref{}) {
		return 0, &model.Error{Reason: "NotFound", Final: true, Text: fmt.Sprintf(
			"model %s is neither in the config nor was it pulled before: name its SOURCE, such as s3://bucket/prefix", s.Name)}
	}
	if _, ok := c.sources[s.Source.Scheme]; !ok {
		return 0, c.unknownScheme(s.Source)
	}
	e := c.entry(s.Name)
	if e.removing {
		return 0, &model.Error{Reason: "Removing", Text: fmt.Sprintf("model %s is being removed: try again when it is gone", s.Name)}
	}
	old := e.ref()
	if e.listed && old != s.Source {
		return 0, &model.Error{Reason: "Wanted", Final: true, Text: fmt.Sprintf(
			"model %s comes from %s in the config: change it there or take another name", s.Name, old)}
	}
	m := e.memory
	m.Ref, m.Wished, m.Pinned, m.Held = s.Source, true, m.Pinned || s.Pinned, hold{}
	if err := c.remember(e, m); err != nil {
		return 0, err
	}
	if e.busy == nil || old != s.Source {
		e.restart()
	}
	c.asked++
	e.newest = c.asked
	e.again, e.scheduled = true, false // a worker that is on it may have looked before the origin changed
	c.changed()
	return e.newest, nil
}

// origin is where the model would come from, or came from as far as that is known; e may be nil.
func (e *entry) origin() model.Ref {
	if e == nil {
		return model.Ref{}
	}
	if ref := e.ref(); ref != (model.Ref{}) || e.visible == nil {
		return ref
	}
	// The record keeps the reference for people: enough where that is all of it.
	if ref, err := model.ParseRef(e.visible.Source); err == nil && fingerprint(ref) == e.visible.Ref {
		return ref
	}
	return model.Ref{}
}

func (c *Cache) unknownScheme(r model.Ref) error {
	known := slices.Sorted(maps.Keys(c.sources))
	return &model.Error{Reason: "UnknownScheme", Final: true,
		Text: fmt.Sprintf("source %s: scheme %q is not one of %s", r, r.Scheme, strings.Join(known, ", "))}
}

// remember makes m durable as what is kept about e. c.mu is held: the file is small, and its writes must
// not overtake one another.
func (c *Cache) remember(e *entry, m memory) error {
	var err error
	if m.isZero() {
		err = c.disk.Remove(c.at.state(e.name))
	} else {
		err = writeJSON(c.disk, c.at.state(e.name), m, 0o600)
	}
	if err != nil {
		if full, ok := errors.AsType[*model.Error](ofDisk(err)); ok && full.Reason == "NoSpace" {
			full.Err, _ = errors.AsType[syscall.Errno](err) // without the name that the file had for a moment
			full.Text += fmt.Sprintf(", and nothing can be noted of model %s: make room on the disk of %s, "+
				"or remove a model that is not used (gpu-agent models rm)", e.name, c.cfg.Root)
			return full
		}
		return fmt.Errorf("write state of model %s: %w", e.name, err)
	}
	e.memory = m
	return nil
}

// rememberLess is remember of a model that goes, to make room: a full disk, on which nothing can be written, keeps
// nothing about it then. c.mu is held.
func (c *Cache) rememberLess(e *entry, m memory) error {
	err := c.remember(e, m)
	if model.ReasonOf(err) != "NoSpace" || m.Pinned || len(m.Pins) > 0 {
		return err
	}
	return c.remember(e, memory{})
}

// Pin keeps a model, or one revision of it, name@revision, from being evicted, durably. The revision is
// one that is here, current or old.
func (c *Cache) Pin(name string) error { return c.setPin(name, true) }

// Unpin takes Pin of the same name back. A pin in the config stays.
func (c *Cache) Unpin(name string) error { return c.setPin(name, false) }

func (c *Cache) setPin(name string, pinned bool) error {
	name, revision, one := strings.Cut(name, "@")
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.models[name]
	if e == nil || !e.asked() && len(e.records()) == 0 {
		return notFound(name)
	}
	if err := c.mayWrite(); err != nil {
		return err
	}
	m := e.memory
	if !one {
		m.Pinned = pinned
	} else {
		revision = model.Revision12(revision)
		if pinned && !slices.ContainsFunc(e.records(), func(r *record) bool { return r.short() == revision }) {
			return noRevision(e, revision)
		}
		m.Pins = slices.DeleteFunc(slices.Clone(m.Pins), func(s string) bool { return s == revision })
		if pinned {
			m.Pins = slices.Sorted(slices.Values(append(m.Pins, revision)))
		}
		if len(m.Pins) == 0 {
			m.Pins = nil
		}
	}
	if err := c.remember(e, m); err != nil {
		return err
	}
	c.changed()
	return nil
}

func notFound(name string) error {
	return &model.Error{Reason: "NotFound", Final: true,
		Text: fmt.Sprintf("model %q is not in the cache: gpu-agent models ls shows what is", name)}
}
