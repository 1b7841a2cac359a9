package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Import publishes the models of a bundle as if they had been pulled, in its order, and returns those that are ready. Room
// is reserved before a model's first byte, and each byte compared with its sha256. What is here is passed over. The first
// failure ends it; models before it stay: none of them goes to make room for one after it. Run may run or not. done is called with each model that is ready.
//
// Reads of r end when interrupt is called, which Import does when ctx is done or a model is wanted otherwise meanwhile.
func (c *Cache) Import(ctx context.Context, r io.Reader, interrupt func(), done func(model.Status)) error {
	return importInto(ctx, r, interrupt, func(bundled) (*Cache, error) { return c, nil }, done)
}

// importInto is Import, with each model into the cache that where names.
func importInto(ctx context.Context, r io.Reader, interrupt func(), where func(bundled) (*Cache, error), done func(model.Status)) error {
	stop := context.AfterFunc(ctx, interrupt)
	defer stop()
	in := newBundleReader(r)
	models, err := parseBundle(in.text)
	if err != nil {
		return because(ctx, err)
	}
	for _, b := range models {
		c, err := where(b)
		if err != nil {
			return err
		}
		e, work, ref, err := c.seize(ctx, b)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(work, interrupt)
		err = because(work, c.bringIn(work, e, ref, b, in))
		stop()
		if c.letGo(e, ref, err); err != nil {
			return fmt.Errorf("import of model %s: %w", b.Name, err)
		}
		defer c.unkeep(e)
		c.mu.Lock()
		s := c.status(e)
		c.mu.Unlock()
		done(s)
	}
	return nil
}

// because is why something ended: its context, if that did.
func because(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// seize keeps others from working on a model, and says where it comes from.
func (c *Cache) seize(ctx context.Context, b bundled) (*entry, context.Context, model.Ref, error) {
	ref, err := model.ParseRef(b.Source)
	if err != nil {
		return nil, nil, ref, err
	}
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, nil, ref, &model.Error{Reason: "CacheClosed", Text: "the cache was closed meanwhile: import the bundle again"}
		}
		if err := c.mayWrite(); err != nil {
			c.mu.Unlock()
			return nil, nil, ref, err
		}
		e := c.entry(b.Name)
		if e.asked() && fingerprint(e.ref()) == b.Ref {
			ref = e.ref() // all of it
		}
		if e.wanted && fingerprint(e.ref()) != fingerprint(ref) {
			c.mu.Unlock()
			return nil, nil, ref, &model.Error{Reason: "Wanted", Final: true, Text: fmt.Sprintf(
				"model %s comes from %s in the config and from %s in the bundle: change the config", b.Name, e.ref(), ref)}
		}
		if e.removing {
			c.mu.Unlock()
			return nil, nil, ref, &model.Error{Reason: "Removing", Text: fmt.Sprintf("model %s is being removed: try again when it is gone", b.Name)}
		}
		if busy := e.busy; busy != nil {
			e.restart()
			c.mu.Unlock()
			select {
			case <-busy:
			case <-ctx.Done():
				return nil, nil, ref, ctx.Err()
			}
			continue
		}
		work, cancel := context.WithCancel(ctx)
		e.busy, e.cancel, e.importing = make(chan struct{}), cancel, true
		c.changed()
		c.mu.Unlock()
		return e, work, ref, nil
	}
}

// unkeep ends what letGo began.
func (c *Cache) unkeep(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.kept--
}

// letGo notes how an import went. A model that is ready is kept from eviction.
func (c *Cache) letGo(e *entry, ref model.Ref, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.changed()
	e.cancel()
	close(e.busy)
	e.busy, e.cancel, e.importing = nil, nil, false
	if err != nil {
		return // the importer is told; what is asked for goes on as before
	}
	e.kept++
	if e.newest == e.answered {
		e.again, e.scheduled = false, false
		e.reason, e.message, e.final, e.tries = "", "", false, 0
	}
	if m := e.memory; m.Wished && fingerprint(m.Ref) != fingerprint(ref) {
		m.Wished, m.Ref = false, model.Ref{} // or what was pulled before would take its place again
		if err := c.remember(e, m); err != nil {
			c.log.Warn("a model may be pulled again in the place of what was imported", "model", e.name, "err", err)
		}
	}
	c.log.Info("model is imported", "model", e.name, "source", ref.String(), "revision", e.visible.Revision)
	c.roomChanged()
}

// bringIn makes b the visible revision of e.
func (c *Cache) bringIn(ctx context.Context, e *entry, ref model.Ref, b bundled, in *bundleReader) error {
	if err := c.inTheWay(e); err != nil {
		return err
	}
	c.mu.Lock()
	visible := e.visible
	c.mu.Unlock()
	if visible != nil && visible.Revision == b.Revision && slices.Equal(visible.Files, b.Files) {
		return c.same(e, ref, b.Hub)
	}
	j, err := c.prepare(e, ref, model.Manifest{Revision: b.Revision, Files: b.Files, Hub: b.Hub})
	if err != nil || j == nil {
		return err
	}
	j.origin = b.Origin
	if err := c.reserve(ctx, e, j); err != nil {
		return err
	}
	if err := c.copyAll(ctx, j, in); err != nil {
		return err
	}
	return c.reveal(e, ref, j)
}

// copyAll makes the content that j lacks durable, from the bundle: of small files as a download does it, many at a time.
// What came before an error stays.
func (c *Cache) copyAll(ctx context.Context, j *job, in *bundleReader) (err error) {
	batch, size := map[int]model.Digest{}, int64(0)
	var buf []byte // of small files
	for _, s := range j.slots {
		switch {
		case s.sum != "":
			continue
		case !s.small:
			err = c.copyIn(ctx, j, s, in)
		default:
			buf = slices.Grow(buf[:0], int(s.file.Size))[:s.file.Size]
			if err = c.copySmall(ctx, j, s, in, buf); err == nil {
				batch[s.n] = s.file.Digest
				size += s.file.Size
			}
		}
		if err == nil && len(batch) < batchFiles && size < batchBytes {
			continue
		}
		if settled := j.keep(batch, size); settled != nil || err != nil {
			return errors.Join(err, settled)
		}
		clear(batch)
		size = 0
	}
	return j.keep(batch, size)
}

// keep makes small files durable that an import has written.
func (j *job) keep(batch map[int]model.Digest, size int64) error {
	if err := j.syncBatch(batch); err != nil {
		j.got.Add(-size)
		return ours(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for n, sum := range batch {
		j.slots[n].sum = sum
	}
	return nil
}

// copySmall writes the content of s, from the bundle, by way of buf, which has its size. It is not durable yet.
func (c *Cache) copySmall(ctx context.Context, j *job, s *slot, in *bundleReader, buf []byte) error {
	content, err := in.blob(*s.file)
	if err != nil {
		return err
	}
	counted := &counting{ctx: ctx, j: j, r: content}
	if _, err = io.ReadFull(counted, buf); err != nil {
		err = cutOff(s, err)
	} else if sum := digestOf(buf); sum != s.file.Digest {
		err = notInBundle(s, sum)
	} else if err = createAnew(c.disk, s.path(), buf); err != nil {
		err = ours(err)
	}
	if err != nil {
		j.got.Add(-counted.n)
	}
	return err
}

// cutOff says of a bundle that it ended too early, where err is that.
func cutOff(s *slot, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return bad("it was cut off within the content of %q", s.file.Path)
	}
	return err
}

func notInBundle(s *slot, sum model.Digest) error {
	return &model.Error{Reason: "WrongDigest", Final: true, Text: fmt.Sprintf("%s in the bundle has sha256 %s instead of %s", s.file.Path, sum, s.file.Digest)}
}

// copyIn makes the content of s durable, from the bundle.
func (c *Cache) copyIn(ctx context.Context, j *job, s *slot, in *bundleReader) error {
	content, err := in.blob(*s.file)
	if err != nil {
		return err
	}
	// What an interrupted download had of it is written over: it counts again from nothing.
	if err := c.disk.Remove(s.journal()); err != nil {
		return ours(err)
	}
	j.got.Add(-s.bytes())
	s.reset()
	counted := &counting{ctx: ctx, j: j, r: content}
	sum, err := c.store(s.path(), s.file.Size, counted)
	if err != nil {
		err = cutOff(s, err)
	} else if sum != s.file.Digest {
		err = notInBundle(s, sum)
	} else {
		err = writeJSON(c.disk, s.journal(), journal{Sum: sum}, 0o600)
	}
	if err != nil {
		j.got.Add(-counted.n)
		return errors.Join(err, c.disk.Remove(s.path()))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	s.sum = sum
	return nil
}

// counting counts what is read for a job, until its context is done.
type counting struct {
	ctx context.Context
	j   *job
	r   io.Reader
	n   int64
}

func (r *counting) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	r.n += int64(n)
	r.j.got.Add(int64(n))
	return n, err
}

// Importing is the status of a model that an Import brings in, nil where there is none.
func (c *Cache) Importing() *model.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.models {
		if e.importing {
			s := c.status(e)
			return &s
		}
	}
	return nil
}

// endImports ends what Import is at, and returns when it has ended: nobody writes without the lock.
func (c *Cache) endImports() {
	c.mu.Lock()
	c.closed = true
	var busy []chan struct{}
	for _, e := range c.models {
		if e.importing {
			e.cancel()
			busy = append(busy, e.busy)
		}
	}
	c.mu.Unlock()
	for _, ended := range busy {
		<-ended
	}
}
