// Package supervise runs the long-lived tasks of a process.
//
// A task is func(ctx) error that returns nil only after ctx is done. Earlier, or with an error, it has
// failed. A Must task's failure ends the group; a Keep task's failure restarts that task alone: four
// roles in one binary must not mean one blast radius.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"
)

const (
	backoffMin = time.Second
	backoffMax = time.Minute
	// A task that ran this long was well: its next failure starts from backoffMin again.
	wellAfter = 5 * time.Minute
)

var errEarly = errors.New("stopped before it was asked to")

// Task is the state of one task.
type Task struct {
	Up    bool   `json:"up"`
	Error string `json:"error,omitempty"` // of its last failure, while it is down
}

// Group runs tasks under one context. Its methods are safe for concurrent use.
type Group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	log    *slog.Logger
	wg     sync.WaitGroup

	mu    sync.Mutex
	tasks map[string]Task
	ends  map[string]*end
}

// end is how one task is ended.
type end struct {
	ctx    context.Context // of the task; within the group's
	cancel context.CancelFunc
	done   chan struct{} // closed when the task has ended for good
}

// New is a group whose tasks end when ctx does.
func New(ctx context.Context, log *slog.Logger) *Group {
	g := &Group{log: log, tasks: map[string]Task{}, ends: map[string]*end{}}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	return g
}

// Must runs a task whose failure ends the group with an error that names it.
func (g *Group) Must(name string, run func(context.Context) error) {
	e := g.begin(name)
	g.wg.Go(func() {
		defer close(e.done)
		if err := g.once(e.ctx, name, run); err != nil {
			g.cancel(fmt.Errorf("%s: %w", name, err))
		}
	})
}

// Keep runs a task and starts it again, after 1 s to 1 min, whenever it fails.
func (g *Group) Keep(name string, run func(context.Context) error) {
	e := g.begin(name)
	g.wg.Go(func() {
		defer close(e.done)
		for backoff := backoffMin; ; backoff = min(2*backoff, backoffMax) {
			began := time.Now()
			err := g.once(e.ctx, name, run)
			if err == nil {
				return
			}
			if time.Since(began) >= wellAfter {
				backoff = backoffMin
			}
			g.log.Error("task failed", "task", name, "error", err, "again in", backoff)
			select {
			case <-e.ctx.Done():
				return
			case <-time.After(backoff):
				g.set(name, nil)
			}
		}
	})
}

// begin notes a new task.
func (g *Group) begin(name string) *end {
	e := &end{done: make(chan struct{})}
	e.ctx, e.cancel = context.WithCancel(g.ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tasks[name], g.ends[name] = Task{Up: true}, e
	return e
}

// Stop ends tasks, at the same time, and returns once they have ended; a name that is no task's is passed over. They
// are then as if they had never been, and others of their names may be started.
func (g *Group) Stop(names ...string) {
	g.mu.Lock()
	var all []*end
	for _, name := range names {
		if e := g.ends[name]; e != nil {
			e.cancel()
			all = append(all, e)
		}
	}
	g.mu.Unlock()
	for _, e := range all {
		<-e.done
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range names {
		delete(g.tasks, name)
		delete(g.ends, name)
	}
}

// Done is closed when the group ends: its context is done, or a Must task has failed. No task may be started then.
func (g *Group) Done() <-chan struct{} { return g.ctx.Done() }

// once runs a task to its end; nil means that it ended because it was asked to.
func (g *Group) once(ctx context.Context, name string, run func(context.Context) error) error {
	err := run(ctx)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	if err == nil {
		err = errEarly
	}
	g.set(name, err)
	return err
}

func (g *Group) set(name string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := Task{Up: err == nil}
	if err != nil {
		t.Error = err.Error()
	}
	g.tasks[name] = t
}

// Status is the state of every task by name; the map is the caller's.
func (g *Group) Status() map[string]Task {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.tasks)
}

// Wait blocks until every task has ended. The error is the failure of the Must task that ended the
// group, or nil when its context was done first.
func (g *Group) Wait() error {
	g.wg.Wait()
	defer g.cancel(nil)
	if err := context.Cause(g.ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
