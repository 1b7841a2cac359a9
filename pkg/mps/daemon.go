package mps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

const (
	backoffMin = time.Second
	backoffMax = time.Minute
	// A daemon that ran this long was well: its next failure starts from backoffMin again.
	wellAfter = 5 * time.Minute
	// quitPatience is how long a daemon without clients has to end. With callPatience it is less than the ten
	// seconds that our pod has.
	quitPatience = 3 * time.Second
	// misses is how many commands in a row a daemon may leave unanswered.
	misses = 3
)

// daemon keeps one control daemon running. Its status is safe for concurrent use; run is called once.
type daemon struct {
	control
	shm      string
	poll     time.Duration
	patience time.Duration // from the start to the first answer
	changed  func()
	log      *slog.Logger

	mu     sync.Mutex
	status status            // guarded by mu
	wanted map[gpu.UUID]bool // the GPUs that the daemon could see if it started now; guarded by mu
}

// status is replaced whole.
type status struct {
	err    error              // why it does not answer; nil when it does
	since  time.Time          // of this status
	failed map[gpu.UUID]error // GPUs that it runs without
	sees   map[gpu.UUID]bool  // nil: all, as far as we know
}

var (
	errStarting = errors.New("it is starting")
	errGrow     = errors.New("it starts again to use a GPU that has come back")
)

// run keeps the daemon running until ctx is done.
func (d *daemon) run(ctx context.Context) {
	for backoff := backoffMin; ; {
		began := time.Now()
		err := d.once(ctx)
		if ctx.Err() != nil {
			return
		}
		d.say(status{err: err})
		if errors.Is(err, errGrow) || time.Since(began) >= wellAfter {
			backoff = backoffMin
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// once uses the daemon that is there, or starts one, and returns when it no longer answers.
func (d *daemon) once(ctx context.Context) error {
	if err := d.prepare(d.shm); err != nil {
		return err
	}
	if d.answers(ctx) == nil {
		if err := d.limit(ctx, d.healthy()); err != nil {
			return err
		}
		d.log.Info("using the MPS daemon that is there", "pipe", d.share.PipeDir)
		d.say(status{})
		return d.watch(ctx, nil)
	}
	gpus := d.healthy()
	if len(gpus) == 0 {
		return errors.New("none of its GPUs is healthy")
	}
	failed := d.mode(ctx, "EXCLUSIVE_PROCESS", gpus)
	gpus = slices.DeleteFunc(gpus, func(id gpu.UUID) bool { return failed[id] != nil })
	if len(gpus) == 0 {
		return slices.Collect(maps.Values(failed))[0]
	}
	child, err := d.start(gpus)
	if err != nil {
		return err
	}
	defer d.stop(context.WithoutCancel(ctx), child, gpus)
	if err := d.await(ctx, child); err != nil {
		return err
	}
	if err := d.limit(ctx, gpus); err != nil {
		return err
	}
	sees := map[gpu.UUID]bool{}
	for _, id := range gpus {
		sees[id] = true
	}
	d.log.Info("MPS daemon started", "pipe", d.share.PipeDir, "pid", child.pid, "gpus", gpus)
	d.say(status{failed: failed, sees: sees})
	return d.watch(ctx, child)
}

// child is a daemon that we started.
type child struct {
	pid   int
	ended chan struct{} // closed when it has ended and err is set
	err   error
}

// start starts the daemon in a process group of its own. What it prints goes to a file: it may outlive us.
func (d *daemon) start(gpus []gpu.UUID) (*child, error) {
	out, err := os.OpenFile(d.output(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	var names []string
	for _, id := range gpus {
		names = append(names, string(id))
	}
	cmd := exec.Command(d.path(controlBin), "-f")
	// No more of our variables: its servers inherit them, and ours say which GPUs the agent sees.
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH"} {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Env = append(cmd.Env, d.environment()...)
	cmd.Env = append(cmd.Env, "CUDA_VISIBLE_DEVICES="+strings.Join(names, ","))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its servers end with it, and our signals are ours
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{pid: cmd.Process.Pid, ended: make(chan struct{})}
	go func() { // ends with the daemon, which may be after us
		c.err = cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

func (d *daemon) output() string { return filepath.Join(d.share.LogDir, "daemon.out") }

// await waits until the new daemon answers.
func (d *daemon) await(ctx context.Context, c *child) error {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	for {
		err := d.answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-c.ended:
			return d.died(c)
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", err)
		case <-time.After(d.poll / 10):
		}
	}
}

func (d *daemon) died(c *child) error {
	text, _ := os.ReadFile(d.output())
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Errorf("%s -f ended (%v): %s", controlBin, c.err, lines[len(lines)-1])
}

// watch returns when the daemon has ended, has stopped answering, or should start again. c is nil for a
// daemon that we did not start.
func (d *daemon) watch(ctx context.Context, c *child) error {
	var ended <-chan struct{}
	if c != nil {
		ended = c.ended
	}
	for missed := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			return d.died(c)
		case <-time.After(d.poll):
		}
		if d.grows() && c != nil && !d.busy(ctx) {
			return errGrow
		}
		err := d.answers(ctx)
		if missed++; err == nil {
			missed = 0
		}
		if missed == misses || err != nil && c == nil {
			return fmt.Errorf("it no longer answers: %w", err)
		}
	}
}

// stop ends a daemon without clients; one that has some is left to the next who looks after it.
func (d *daemon) stop(ctx context.Context, c *child, gpus []gpu.UUID) {
	asking, cancel := context.WithTimeout(ctx, quitPatience)
	defer cancel()
	select {
	case <-c.ended:
	default:
		if d.answers(asking) == nil && d.busy(asking) {
			d.log.Warn("the MPS daemon has clients and is left running", "pipe", d.share.PipeDir, "pid", c.pid)
			return
		}
		_, _ = d.tell(asking, "quit") // whatever it says, what counts is that it ends
		select {
		case <-c.ended:
		case <-asking.Done():
			_ = syscall.Kill(-c.pid, syscall.SIGKILL)
		}
	}
	cleaning, cancel := context.WithTimeout(ctx, quitPatience)
	defer cancel()
	d.mode(cleaning, "DEFAULT", gpus)
}

// healthy are the share's GPUs that a daemon can be started with.
func (d *daemon) healthy() []gpu.UUID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.wanted))
}

// want tells the daemon which of its GPUs are healthy now.
func (d *daemon) want(healthy map[gpu.UUID]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted = healthy
}

// grows reports whether a healthy GPU is one that the daemon does not see. One that could not be prepared
// for it is tried again after a while.
func (d *daemon) grows() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.wanted {
		if d.status.sees == nil || d.status.sees[id] {
			continue
		}
		if d.status.failed[id] == nil || time.Since(d.status.since) >= wellAfter {
			return true
		}
	}
	return false
}

// say replaces the status, and tells the log and the waiters of what is new.
func (d *daemon) say(next status) {
	next.since = time.Now()
	d.mu.Lock()
	last := d.status
	d.status = next
	d.mu.Unlock()
	if next.err != nil && (last.err == nil || last.err.Error() != next.err.Error()) {
		d.log.Warn("no MPS daemon", "error", next.err)
	}
	for id, err := range next.failed {
		d.log.Warn("the MPS daemon runs without a GPU", "gpu", id, "error", err)
	}
	d.changed()
}

// lacks is why a client of the GPU would find no daemon; empty when it would.
func (d *daemon) lacks(id gpu.UUID) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.status.err != nil:
		return "no MPS daemon: " + d.status.err.Error()
	case d.status.failed[id] != nil:
		return "no MPS daemon: " + d.status.failed[id].Error()
	case d.status.sees != nil && !d.status.sees[id]:
		return "its MPS daemon was started without it, and starts again once it has no clients"
	}
	return ""
}
