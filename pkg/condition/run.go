package condition

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// Sink is the Node object. Run calls it from one goroutine and tries again after an error.
type Sink interface {
	// SetCondition puts the condition of that type on the node, as the only one that this agent answers
	// for, and keeps its time of transition while the status is the same. Status "" takes it off.
	SetCondition(ctx context.Context, kind, status, reason, message string) error
	// Event tells of something that happened to the node at the given time. What was told before with
	// the same id, by this process or another, is not told again.
	Event(ctx context.Context, id, kind, reason, message string, at time.Time) error
}

// Config of Run. What is off is also taken off the node.
type Config struct {
	Condition bool
	Events    bool
	Log       *slog.Logger // nil discards
}

// Snapshots is where the GPUs are watched: the latest, and a channel that closes when a newer is there.
type Snapshots interface {
	Watch() (*gpu.Snapshot, <-chan struct{})
}

const (
	// resync renews the time at which the condition was last known to be true.
	resync = 5 * time.Minute
	// spacing is the least time between two writes of the condition: however GPUs flap, the API server
	// and the watchers of Nodes see no more than this.
	spacing = 5 * time.Second
	// patience is how long a driver may be away, as it is at boot and while it is upgraded, before the
	// node says that nothing is known of its GPUs.
	patience = time.Minute

	backoffMin = time.Second
	backoffMax = time.Minute
)

// Run keeps the condition true: it derives it from the newest snapshot, compares, and writes only what
// changed. It returns nil once ctx is done and leaves the condition in place, with the time at which it
// was last true. An API server that is away or refuses is logged, and tried again; it is no error.
func Run(ctx context.Context, cfg Config, snapshots Snapshots, sink Sink) error {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	c := &conditionWriter{on: cfg.Condition, sink: sink, log: cfg.Log}
	e := newTeller(sink, cfg.Log)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		snapshot, changed := snapshots.Watch()
		next := c.act(ctx, snapshot, time.Now())
		if cfg.Events {
			next = sooner(next, e.act(ctx, snapshot, time.Now()))
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
	}
	return nil
}

// sooner is the earlier of two times; a zero time is never.
func sooner(a, b time.Time) time.Time {
	if b.IsZero() || !a.IsZero() && a.Before(b) {
		return a
	}
	return b
}

// conditionWriter is the memory of the condition, used by Run's goroutine alone.
type conditionWriter struct {
	on   bool
	sink Sink
	log  *slog.Logger

	set          bool // something was written
	written      verdict
	unknownSince time.Time     // since when nothing is known of the GPUs; zero while something is
	backoff      time.Duration // 0 after a success
	notBefore    time.Time     // of the next write: spacing, or the backoff of a failure
	due          time.Time     // of the resync
}

// act writes what the snapshot says if it differs from what is there or is due, and says when to call
// again at the latest.
func (c *conditionWriter) act(ctx context.Context, s *gpu.Snapshot, now time.Time) time.Time {
	want := verdict{}
	if c.on {
		want = judge(s)
		if wait := c.settles(want, now); !wait.IsZero() {
			return wait
		}
	}
	if c.set && want == c.written && now.Before(c.due) {
		return c.due
	}
	if now.Before(c.notBefore) {
		return c.notBefore
	}
	if err := c.sink.SetCondition(ctx, Kind, want.status, want.reason, want.message); err != nil {
		if ctx.Err() != nil {
			return time.Time{}
		}
		if c.backoff == 0 {
			c.log.Warn("node condition not written, tried again until it is", "condition", Kind, "error", err)
		}
		c.backoff = min(max(2*c.backoff, backoffMin), backoffMax)
		c.notBefore = time.Now().Add(c.backoff)
		return c.notBefore
	}
	if c.on && (!c.set || want != c.written) {
		c.log.Info("node condition written", "condition", Kind, "status", want.status, "reason", want.reason, "message", want.message)
	}
	now = time.Now()
	c.set, c.written, c.backoff, c.notBefore, c.due = true, want, 0, now.Add(spacing), now.Add(resync)
	return c.due
}

// settles says until when an Unknown must have lasted to be believed; zero when want can be written.
func (c *conditionWriter) settles(want verdict, now time.Time) time.Time {
	if want.status != statusDunno {
		c.unknownSince = time.Time{}
		return time.Time{}
	}
	if c.unknownSince.IsZero() {
		c.unknownSince = now
	}
	if believed := c.unknownSince.Add(patience); now.Before(believed) {
		return believed
	}
	return time.Time{}
}
