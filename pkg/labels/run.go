package labels

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// Config of Run.
type Config struct {
	Resync  time.Duration // how often unchanged labels are applied again, which heals deletions by hand; default 5 min
	Machine string        // see Input
	// Applied, if set, is told after every successful Apply of a whole set what is on the node now; it
	// must not block or change the map. The cache waits for a set without a model's label before it removes the
	// model's files. It must not wait for ever: without an API server, or before the first driver, there
	// is no such set.
	Applied func(labels map[string]string)
	Log     *slog.Logger // nil discards
}

// Snapshots is where the GPUs are watched: the latest, and a channel that closes when a newer is there.
type Snapshots interface {
	Watch() (*gpu.Snapshot, <-chan struct{})
}

// Policies is where the policy in force is watched, in the same way.
type Policies interface {
	Watch() (resource.Policy, <-chan struct{})
}

// Inventories is where the models are watched, in the same way.
type Inventories interface {
	Watch() (*model.Inventory, <-chan struct{})
}

const (
	backoffMin = time.Second
	backoffMax = time.Minute
)

// Run keeps the labels true: it derives them from the newest values, compares, and applies only what
// changed. inventories may be nil. It returns nil once ctx is done and leaves the labels in place, so
// that an upgrade of the agent does not make the node unschedulable.
//
// Until the first snapshot with a loaded driver it applies nothing: the labels of an earlier run stay
// while the driver comes up. Where no driver ever loads they therefore stay as they are, and models
// are not labelled. When a driver that was loaded goes away, the node keeps its labels and
// gpu-agent.dev/gpu.healthy becomes 0.
//
// While inventories holds none, the labels of models stay as they are: at a restart they must not go and
// come back, and during an upgrade the agent that still holds the cache goes on promising them.
func Run(ctx context.Context, cfg Config, snapshots Snapshots, inventories Inventories,
	policies Policies, sink Sink,
) error {
	r := &runner{cfg: cfg, sink: sink, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))}
	r.cfg.Resync = cmp.Or(r.cfg.Resync, 5*time.Minute)
	timer := time.NewTimer(0)
	defer timer.Stop()
	waiting := false
	var known *gpu.Snapshot // the last with a loaded driver
	for ctx.Err() == nil {
		snapshot, gpusChanged := snapshots.Watch()
		policy, edited := policies.Watch()
		var inventory *model.Inventory
		var modelsChanged <-chan struct{}
		if inventories != nil {
			inventory, modelsChanged = inventories.Watch()
		}
		if snapshot != nil && snapshot.Driver.Loaded {
			known = snapshot
		}
		if known == nil {
			if !waiting {
				r.log.Info("node labels stay as they are until a driver is loaded")
				waiting = true
			}
		} else {
			in := Of(policy, held(snapshot, known))
			in.Inventory, in.Machine = inventory, cfg.Machine
			keep := ""
			if inventories != nil && inventory == nil {
				keep = modelPrefix // the cache is not open yet, or another agent still holds it
			}
			r.act(ctx, For(in), keep)
			timer.Reset(time.Until(r.due))
		}
		select {
		case <-ctx.Done():
		case <-gpusChanged:
		case <-edited:
		case <-modelsChanged:
		case <-timer.C:
		}
	}
	return nil
}

// runner is the memory of one Run, used by its goroutine alone.
type runner struct {
	cfg     Config
	sink    Sink
	log     *slog.Logger
	applied map[string]string // nil before the first success
	kept    string            // the keys that it left as they were
	backoff time.Duration     // 0 after a success
	due     time.Time         // of the retry after a failure, of the resync after a success
}

// act applies want if it differs from what is on the node, or if the resync or a retry is due.
func (r *runner) act(ctx context.Context, want map[string]string, keep string) {
	failing := r.backoff > 0
	same := maps.Equal(want, r.applied) && keep == r.kept
	if now := time.Now(); now.Before(r.due) && (failing || same) {
		return
	}
	if err := r.sink.Apply(ctx, want, keep); err != nil {
		if ctx.Err() != nil {
			return
		}
		r.backoff = min(max(2*r.backoff, backoffMin), backoffMax)
		r.due = time.Now().Add(r.backoff)
		r.log.Warn("node labels not applied", "error", err, "again in", r.backoff)
		return
	}
	if failing || !same {
		r.log.Info("node labels applied", "labels", len(want), "changed", changed(r.applied, want))
	}
	r.applied, r.kept, r.backoff, r.due = want, keep, 0, time.Now().Add(r.cfg.Resync)
	if r.cfg.Applied != nil && keep == "" {
		r.cfg.Applied(want)
	}
}

// changed is the keys that were added, removed or got another value, sorted.
func changed(old, now map[string]string) []string {
	var keys []string
	for key, value := range now {
		if was, ok := old[key]; !ok || was != value {
			keys = append(keys, key)
		}
	}
	for key := range old {
		if _, ok := now[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// held is now, unless its driver is gone: then the hardware as it was last known, none of it usable.
func held(now, known *gpu.Snapshot) *gpu.Snapshot {
	if now != nil && now.Driver.Loaded {
		return now
	}
	s := *known
	s.Driver.Loaded = false
	return &s
}
