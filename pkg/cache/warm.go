package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Warm is which models are read ahead into the page cache, so that who loads them finds them in memory. The zero Warm
// is none.
type Warm struct {
	OnReady bool // every model that is here: the config's first, by priority
	OnPod   bool // before those, the models that pods on this node name or mount: once for each pod
	// Limit is how many bytes of models that are read ahead may be in memory, and LimitPercent how much of the
	// node's memory; the larger counts.
	Limit        int64
	LimitPercent int
	// KeepFree is how many bytes of the node's memory stay free, or with page cache that has not been read twice, and
	// KeepFreePercent how much of it; the larger counts.
	KeepFree        int64
	KeepFreePercent int
}

func (w Warm) on() bool { return w.OnReady || w.OnPod }

func (w Warm) check() error {
	if w.Limit < 0 || w.KeepFree < 0 || w.LimitPercent < 0 || w.LimitPercent > 99 || w.KeepFreePercent < 0 || w.KeepFreePercent > 99 {
		return fmt.Errorf("cache warm limit %d bytes, %d %%, keeps free %d bytes, %d %%: want 0 or more bytes, and 0 to 99 %%",
			w.Limit, w.LimitPercent, w.KeepFree, w.KeepFreePercent)
	}
	if w.on() && w.Limit == 0 && w.LimitPercent == 0 {
		return errors.New("cache warm limit: want more than nothing")
	}
	return nil
}

const (
	// warmStep is read at a time, and as much again is asked for meanwhile: enough for a disk of many queues.
	warmStep = 16 << 20
	// residentEvery is between two looks at what is in memory, unless a look takes long: it walks all pages of the
	// models that are there, a few milliseconds a gigabyte.
	residentEvery = 30 * time.Second
	residentShare = 200 // a look takes at most one part in so many of the time
)

// warmth is what is known of a revision in memory.
type warmth struct {
	resident int64  // bytes
	looked   bool   // and not only said
	text     string // what reading ahead has come to, for people
}

// errand is a revision to read ahead.
type errand struct {
	name   string
	record *record
	pods   []string // who needs it, sorted
	// causes are why: each has it read once.
	causes   []string
	wanted   bool
	priority int
	order    int
}

// toWarm is what is to be in memory, the most urgent first.
func (c *Cache) toWarm() []*errand {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := map[*record]*errand{}
	add := func(e *entry, r *record) *errand {
		if of[r] == nil {
			of[r] = &errand{name: e.name, record: r, wanted: e.wanted, priority: e.priority(), order: e.order}
		}
		return of[r]
	}
	if c.cfg.Warm.OnPod {
		for _, e := range c.models {
			for _, u := range c.pods {
				if e.removing || !e.meant(u) {
					continue
				}
				if r := e.loads(u); r != nil {
					t := add(e, r)
					t.pods = append(t.pods, u.By)
					t.causes = append(t.causes, u.By+" "+u.Since.String())
				}
			}
		}
	}
	if c.cfg.Warm.OnReady {
		for _, e := range c.models {
			if e.visible != nil && !e.removing {
				t := add(e, e.visible)
				t.causes = append(t.causes, "")
			}
		}
	}
	var all []*errand
	for _, t := range of {
		slices.Sort(t.pods)
		t.pods = slices.Compact(t.pods)
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *errand) int {
		return cmp.Or(trueFirst(len(a.pods) > 0, len(b.pods) > 0), trueFirst(a.wanted, b.wanted), cmp.Compare(b.priority, a.priority),
			cmp.Compare(a.order, b.order), strings.Compare(a.name, b.name), strings.Compare(a.record.Revision, b.record.Revision))
	})
	return all
}

// loads is the revision that a pod will load: nil where it is not here, or where the pod has loaded an old one.
func (e *entry) loads(u model.Use) *record {
	if u.Revision == "" {
		if slices.ContainsFunc(e.old, func(r *record) bool { return began(u, r) }) {
			return nil
		}
		return e.visible
	}
	for _, r := range e.records() {
		if r.short() == model.Revision12(u.Revision) {
			return r
		}
	}
	return nil
}

// warmer reads ahead, one file at a time, and looks at what is in memory. It is used by one goroutine.
type warmer struct {
	c           *Cache
	ram         ram
	limit, keep int64 // bytes, of the configuration
	// resident are the bytes of each content that are in memory, as of the last look and what was read since.
	resident map[model.Digest]int64
	done     map[*record]map[string]bool // causes that are through
	short    map[*record]bool            // what did not fit

	// Of the pass in progress: what is to be in memory, until changed is closed, how many bytes of it are, and how many
	// more may come before the bounds are looked at again.
	errands       []*errand
	changed       <-chan struct{}
	held, granted int64

	stepped func() // tests follow it; nil for none
}

// warm reads ahead what is to be in memory until ctx is done. Nothing is read again because the kernel has taken it
// back: whoever needed the memory needs it still.
func (c *Cache) warm(ctx context.Context) {
	if !c.cfg.Warm.on() {
		return
	}
	w := &warmer{c: c, resident: map[model.Digest]int64{}, done: map[*record]map[string]bool{}, short: map[*record]bool{}}
	unable := w.measure()
	if unable != nil {
		c.log.Warn("no model is read ahead", "err", unable)
	}
	defer c.cfg.Memory.leave(w)
	var next time.Time
	for ctx.Err() == nil {
		_, changed := c.inventory.Watch()
		errands := c.toWarm()
		w.forget(errands)
		stale := !slices.EqualFunc(errands, w.errands, func(a, b *errand) bool { return a.record == b.record })
		if now := time.Now(); !now.Before(next) {
			stale = true
			w.look(ctx)
			next = time.Now().Add(max(residentEvery, residentShare*time.Since(now)))
		}
		if w.errands = errands; stale {
			w.hold()
		}
		if t := w.next(errands); t != nil && unable == nil {
			w.read(ctx, t)
			continue
		}
		if unable != nil {
			for _, t := range errands {
				w.say(t.record, "not read ahead: "+unable.Error())
			}
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// measure finds out how much memory there is.
func (w *warmer) measure() error {
	cfg := w.c.cfg.Warm
	var err error
	if w.ram, err = findRAM(cmp.Or(w.c.cfg.system, "/")); err != nil {
		return err
	}
	total, _, err := w.ram.node()
	if err != nil {
		return err
	}
	if _, err := w.ram.limits(); err != nil {
		return err
	}
	w.limit = max(cfg.Limit, total/100*int64(cfg.LimitPercent))
	w.keep = max(cfg.KeepFree, total/100*int64(cfg.KeepFreePercent))
	return nil
}

// forget drops what is known of revisions that are not to be in memory any more. What did not fit beside them is
// tried again.
func (w *warmer) forget(errands []*errand) {
	left := false
	for r := range w.done {
		if !slices.ContainsFunc(errands, func(t *errand) bool { return t.record == r }) {
			delete(w.done, r)
			delete(w.short, r)
			left = true
		}
	}
	if left {
		for r := range w.short {
			delete(w.done, r)
		}
		clear(w.short)
	}
}

// next is the first errand with a cause that is not through.
func (w *warmer) next(errands []*errand) *errand {
	for _, t := range errands {
		for _, cause := range t.causes {
			if !w.done[t.record][cause] {
				return t
			}
		}
	}
	return nil
}

// read brings a revision into memory, as far as there is room.
func (w *warmer) read(ctx context.Context, t *errand) {
	whose := ""
	if len(t.pods) > 0 {
		whose = " for pod " + strings.Join(t.pods, ", ")
	}
	w.say(t.record, "being read ahead"+whose)
	w.lookAt(ctx, t.record)
	began := time.Now()
	n, err := w.readFiles(ctx, t)
	if errors.Is(err, errNotAsked) || ctx.Err() != nil {
		w.say(t.record, "")
		return
	}
	for _, cause := range t.causes {
		if w.done[t.record] == nil {
			w.done[t.record] = map[string]bool{}
		}
		w.done[t.record][cause] = true
	}
	w.lookAt(ctx, t.record)
	w.hold()
	text := "read ahead" + whose
	if err != nil {
		w.short[t.record] = true
		text += " in part: " + err.Error()
	}
	w.say(t.record, text)
	w.c.log.Info("model is in memory", "model", t.name, "revision", t.record.Revision, "read", model.FormatBytes(n), "resident", model.FormatBytes(w.sum(t.record)),
		"of", model.FormatBytes(t.record.size), "took", time.Since(began), "pods", t.pods, "err", err)
}

var errNotAsked = errors.New("nobody needs it any more")

// weightsFirst orders files by what loading waits for longest.
func weightsFirst(files []model.File) []model.File {
	files = slices.Clone(files)
	slices.SortStableFunc(files, func(a, b model.File) int {
		return trueFirst(path.Ext(a.Path) == ".safetensors", path.Ext(b.Path) == ".safetensors")
	})
	return files
}

// readFiles returns how many bytes it read, and why not all that were missing.
func (w *warmer) readFiles(ctx context.Context, t *errand) (n int64, err error) {
	w.changed = nil
	for _, f := range weightsFirst(t.record.Files) {
		read, err := w.readFile(ctx, t, f)
		n += read
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// readFile goes by the content's own name: an open by the model's would count as a use.
func (w *warmer) readFile(ctx context.Context, t *errand, of model.File) (n int64, err error) {
	f, err := durable.Open(w.c.at.blob(of.Digest))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	last := int64(-1) // byte of the step before, which may be on its way
	arrive := func() error {
		if last < 0 {
			return nil
		}
		_, err := f.ReadAt(make([]byte, 1), last)
		return err
	}
	for off := int64(0); off < of.Size; off += warmStep {
		if err := w.goOn(ctx, t); err != nil {
			return n, err
		}
		step := min(warmStep, of.Size-off)
		here, err := f.Resident(off, step)
		if err != nil {
			return n, err
		}
		missing := step - here
		if missing == 0 {
			continue
		}
		if err := w.fit(t, missing); err != nil {
			return n, errors.Join(err, arrive())
		}
		f.ReadAhead(off, step)
		if err := arrive(); err != nil {
			return n, err
		}
		last = off + step - 1
		n += missing
		w.held += missing
		w.resident[of.Digest] += missing
		w.c.warmed.Add(missing)
		if w.stepped != nil {
			w.stepped()
		}
	}
	return n, arrive()
}

// goOn returns nil while t is to be in memory. It follows what else is.
func (w *warmer) goOn(ctx context.Context, t *errand) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.changed:
	default:
		if w.changed != nil {
			return nil
		}
	}
	_, w.changed = w.c.inventory.Watch()
	w.errands = w.c.toWarm()
	w.hold()
	if !slices.ContainsFunc(w.errands, func(now *errand) bool { return now.record == t.record }) {
		return errNotAsked
	}
	return nil
}

// hold counts what is in memory of all that is to be there.
func (w *warmer) hold() {
	w.held, w.granted = 0, 0
	counted := map[model.Digest]bool{}
	for _, t := range w.errands {
		for _, f := range t.record.Files {
			if !counted[f.Digest] {
				counted[f.Digest] = true
				w.held += w.resident[f.Digest]
			}
		}
	}
	w.c.cfg.Memory.hold(w, w.held)
}

// fit returns nil once there is room for n more bytes of t, or what is in the way. What no pod needs gives way to what
// one does.
func (w *warmer) fit(t *errand, n int64) error {
	for n > w.granted {
		of, err := w.grant(n)
		if err != nil {
			return err
		}
		if of == "" {
			break
		}
		if len(t.pods) == 0 || !w.drop() {
			return errors.New("no more fits into " + of)
		}
		w.hold()
	}
	w.granted -= n
	return nil
}

// grant allows n more bytes, and up to a step until the bounds are looked at again, or says what they do not fit into.
func (w *warmer) grant(n int64) (of string, err error) {
	m := w.c.cfg.Memory
	m.mu.Lock()
	defer m.mu.Unlock()
	held := w.held
	for other, n := range m.held {
		if other != w {
			held += n
		}
	}
	room, of, err := w.room(held)
	if err != nil || room < n {
		return of, err
	}
	w.granted = max(n, min(room, warmStep))
	m.held[w] = w.held + w.granted
	return "", nil
}

// room is how much more fits beside what is held into what has the least, and what that is.
func (w *warmer) room(held int64) (least int64, of string, err error) {
	_, node, err := w.ram.node()
	if err != nil {
		return 0, "", err
	}
	node.keep, node.text = w.keep, "the node's free memory and page cache that was read once, less "+model.FormatBytes(w.keep)+" (cache.warm.keepFree)"
	bounds, err := w.ram.limits()
	if err != nil {
		return 0, "", err
	}
	least, of = w.limit-held, "cache.warm.limit of "+model.FormatBytes(w.limit)
	for _, b := range append(bounds, node) {
		if room := b.room(held); room < least {
			least, of = room, b.text
		}
	}
	return least, of, nil
}

// drop gives up the least urgent revision that no pod needs and that is in memory, and reports whether there was one.
func (w *warmer) drop() bool {
	needed := map[model.Digest]bool{}
	for _, t := range w.errands {
		if len(t.pods) > 0 {
			for _, f := range t.record.Files {
				needed[f.Digest] = true
			}
		}
	}
	for _, t := range slices.Backward(w.errands) {
		before := w.sum(t.record)
		for _, of := range t.record.Files {
			if needed[of.Digest] || w.resident[of.Digest] == 0 {
				continue
			}
			if f, err := durable.Open(w.c.at.blob(of.Digest)); err == nil {
				f.Drop(0, of.Size)
				w.resident[of.Digest], _ = f.Resident(0, of.Size)
				_ = f.Close()
			}
		}
		if w.sum(t.record) < before {
			w.short[t.record] = true
			w.say(t.record, "given up for what a pod needs")
			return true
		}
	}
	return false
}

// look asks the kernel what it has of all models, and publishes it.
func (w *warmer) look(ctx context.Context) {
	var all []*record
	w.c.mu.Lock()
	for _, e := range w.c.models {
		all = append(all, e.records()...)
	}
	for r := range w.c.warmth {
		if !slices.Contains(all, r) {
			delete(w.c.warmth, r)
		}
	}
	w.c.mu.Unlock()
	here := map[model.Digest]bool{}
	for _, r := range all {
		for _, f := range r.Files {
			here[f.Digest] = true
		}
	}
	for d := range w.resident {
		if !here[d] {
			delete(w.resident, d)
		}
	}
	w.lookAt(ctx, all...)
}

func (w *warmer) lookAt(ctx context.Context, records ...*record) {
	seen, failed := map[model.Digest]bool{}, false
	for _, r := range records {
		for _, of := range r.Files {
			if seen[of.Digest] || ctx.Err() != nil {
				continue
			}
			seen[of.Digest] = true
			f, err := durable.Open(w.c.at.blob(of.Digest))
			if err != nil {
				delete(w.resident, of.Digest) // it goes just now, or the disk does
				continue
			}
			n, err := f.Resident(0, of.Size)
			if w.resident[of.Digest] = n; err != nil {
				failed = true
			}
			_ = f.Close()
		}
	}
	if failed || ctx.Err() != nil {
		return
	}
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	changed := false
	for _, r := range records {
		now := w.c.warmth[r]
		if n := w.sum(r); !now.looked || n != now.resident {
			now.resident, now.looked, changed = n, true, true
			w.c.warmth[r] = now
		}
	}
	if changed {
		w.c.publish()
	}
}

// sum is what is in memory of a revision.
func (w *warmer) sum(r *record) (n int64) {
	for _, f := range r.Files {
		n += w.resident[f.Digest]
	}
	return n
}

// say publishes what reading ahead has come to for a revision.
func (w *warmer) say(r *record, text string) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	now := w.c.warmth[r]
	if now.text == text {
		return
	}
	now.text = text
	w.c.warmth[r] = now
	w.c.publish()
}
