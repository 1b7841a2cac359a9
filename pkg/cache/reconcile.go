package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	minWorkers     = 2 // models in progress at once, however few streams there are
	firstRetry     = time.Second
	lastRetry      = 5 * time.Minute
	finalRetry     = 10 * time.Minute // for failures that somebody has to mend at the origin
	resolveTimeout = 2 * time.Minute
	progressEvery  = 500 * time.Millisecond
)

// Run reconciles what is asked for with what is there until ctx is done. It returns nil then, with
// downloads left resumable. A failure is a model's status and not the end of Run, but for a disk that is gone, and for
// ErrWritable.
func (c *Cache) Run(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer end(nil)
	group.Go(func() { c.guard(ctx, end) })
	group.Go(func() { c.observe(ctx) })
	if !c.sealed { // nor could what the scrub finds be withdrawn
		c.shrink(ctx)
		group.Go(func() { c.scrub(ctx) })
	}
	group.Go(func() { c.warm(ctx) })
	for ctx.Err() == nil {
		if !c.readOnly() {
			c.sweep()
			c.prune()
		}
		wait := c.start(ctx, &group)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-c.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

// start puts free workers on what is due, and returns how long the loop may sleep.
func (c *Cache) start(ctx context.Context, group *sync.WaitGroup) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, wait, busy := time.Now(), time.Hour, 0
	var due []*entry
	for _, e := range c.models {
		if look := c.nextLook(e, now); !look.IsZero() && e.busy == nil {
			if look.After(now) {
				wait = min(wait, look.Sub(now))
			} else if !e.again {
				e.again, e.scheduled = true, true
			}
		}
		switch {
		case e.busy != nil:
			busy++
		case !e.due() || c.ails.Reason == readOnlyDisk: // until it can be written to there is nothing to try
		case e.retryAt.After(now):
			wait = min(wait, e.retryAt.Sub(now))
		default:
			due = append(due, e)
		}
	}
	// What a pod waits for, then the config's, then wishes; each by priority, new ones before those that failed, and
	// then as the config lists them and by name, to be predictable.
	slices.SortFunc(due, func(a, b *entry) int {
		return cmp.Or(trueFirst(a.called, b.called), trueFirst(a.wanted, b.wanted), cmp.Compare(b.priority(), a.priority()),
			cmp.Compare(a.tries, b.tries), cmp.Compare(a.order, b.order), strings.Compare(a.name, b.name))
	})
	// As many models as streams: fewer, and that many slow origins would stop all others.
	workers := max(minWorkers, c.cfg.Streams)
	for _, e := range due[:min(len(due), max(0, workers-busy))] {
		busy++
		work, cancel := context.WithCancel(ctx)
		e.busy, e.cancel, e.again = make(chan struct{}), cancel, false
		e.retryAt, e.taken = time.Time{}, e.newest
		ref := e.ref()
		group.Go(func() {
			defer cancel()
			c.finish(work, e, ref, ofDisk(c.pull(work, e, ref)))
		})
	}
	if busy > 0 {
		wait = min(wait, progressEvery)
		c.publish()
	}
	return wait
}

// trueFirst orders what is before what is not.
func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// finish notes how a try went.
func (c *Cache) finish(ctx context.Context, e *entry, ref model.Ref, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.changed()
	close(e.busy)
	e.busy, e.cancel = nil, nil
	if ctx.Err() != nil {
		return // stopped, or not asked for any more: not a failure
	}
	e.answered = e.taken
	scheduled := e.scheduled
	e.scheduled = false
	if err == nil {
		e.reason, e.message, e.final, e.tries = "", "", false, 0
		m := e.memory
		if m.Looked, m.Origin, e.look = time.Now(), e.seen, (time.Time{}); e.memory.Origin != e.seen || !scheduled {
			c.log.Info("model is ready", "model", e.name, "source", ref.String(), "revision", e.visible.Revision)
		}
		if err := c.remember(e, m); err != nil {
			c.log.Warn("when the origin was looked at is not kept", "model", e.name, "err", err)
		}
		c.roomChanged()
		return
	}
	err = c.noteWrong(e, ref, err)
	reason, message := model.ReasonOf(err), model.Printable(err.Error())
	if reason != e.reason || message != e.message {
		c.log.Warn("model is not ready", "model", e.name, "reason", reason, "err", message)
	}
	c.failures[reason]++
	e.reason, e.message, e.final = reason, message, model.IsFinal(err)
	pause := finalRetry
	switch {
	case e.final && scheduled:
		pause = max(pause, c.refresh(e)) // nobody waits for it
	case !e.final:
		pause = max(backoff(e.tries), min(model.RetryAfter(err), patience))
	}
	e.tries++
	e.retryAt = time.Now().Add(pause)
	if e.newest > e.taken {
		e.retryAt = time.Time{} // a Pull that came meanwhile is tried at once
	}
	if e.visible != nil {
		e.again = true // an update failed: the retry is due even where the reference is the same
	}
}

// patience bounds what an origin may ask for by Retry-After.
const patience = time.Hour

// backoff is how long to wait after so many failures: 1 s, doubled up to 5 min, ± 20 % so that the nodes
// of a cluster do not come back to the origin together.
func backoff(tries int) time.Duration {
	d := lastRetry
	if tries < 9 {
		d = min(d, firstRetry<<tries)
	}
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// roomChanged lets models that wait for room try again. c.mu is held.
func (c *Cache) roomChanged() {
	for _, e := range c.models {
		if e.reason == "NoSpace" && e.busy == nil {
			e.retryAt = time.Time{}
		}
	}
}

// sweep drops partial downloads and entries that nobody asks for.
func (c *Cache) sweep() {
	c.mu.Lock()
	var idle []*entry
	for name, e := range c.models {
		if e.asked() || e.busy != nil || e.removing || c.blind != "" {
			continue
		}
		switch {
		case e.job != nil:
			idle = append(idle, e)
		case len(e.records()) == 0 && !e.listed:
			delete(c.models, name)
			if err := c.remember(e, memory{}); err != nil {
				c.log.Warn("a model's state file stays behind", "model", name, "err", err)
			}
			c.publish()
		}
	}
	c.mu.Unlock()
	for _, e := range idle {
		if err := c.dropPartial(e); err != nil {
			c.log.Warn("a partial download stays behind", "model", e.name, "err", err)
		}
	}
}

// pull brings one model from wherever it is to Ready.
func (c *Cache) pull(ctx context.Context, e *entry, ref model.Ref) error {
	src, ok := c.sources[ref.Scheme]
	if !ok {
		return c.unknownScheme(ref)
	}
	if err := c.inTheWay(e); err != nil {
		return err
	}
	m, err := c.look(ctx, src, ref)
	if err != nil {
		return err
	}
	if stay, err := c.stays(e, m); stay || err != nil {
		return err
	}
	if err := c.sentWrong(e, ref, m); err != nil {
		return err
	}
	if c.goes(e, m.Files, false) {
		return ctx.Err()
	}
	j, err := c.prepare(e, ref, m)
	if err == nil && j != nil {
		err = c.reserve(ctx, e, j)
	}
	if model.ReasonOf(err) == "NoSpace" && c.goes(e, m.Files, true) {
		return ctx.Err()
	}
	if err != nil || j == nil {
		return err
	}
	j.hitch.Store(nil)
	c.mu.Lock()
	c.streams.prefer(j, e.rank())
	c.mu.Unlock()
	if err := j.run(ctx, c, src, ref); err != nil {
		// The next look says what has changed, and what is here of another revision goes then; but where nothing tells a
		// file's content from what it was, what is here may be of a revision that is gone.
		if model.ReasonOf(err) == "Changed" && slices.ContainsFunc(j.plan.Manifest.Files, unpinned) {
			if drop := c.dropPartial(e); drop != nil {
				return fmt.Errorf("%w; %w", err, drop)
			}
		}
		return err
	}
	whole, err := c.unpack(ctx, e, ref, j)
	if err != nil {
		return err
	}
	return c.reveal(e, ref, whole)
}

// unpinned reports a file of which the origin says neither digest nor version.
func unpinned(f model.File) bool { return f.Digest == "" && f.Version == "" }

func resolve(ctx context.Context, src Source, ref model.Ref) (model.Manifest, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, resolveTimeout, &model.Error{Reason: "Stalled",
		Text: fmt.Sprintf("the origin did not list the model's files within %s: check it and what stands between", resolveTimeout)})
	defer cancel()
	m, err := src.Resolve(ctx, ref)
	if err != nil {
		return m, err
	}
	return checkManifest(ref, m)
}
