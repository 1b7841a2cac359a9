package condition

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/time/rate"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

const (
	// Events live for an hour in the API server: with these, one node keeps 76 of them at the most.
	eventBurst = 16 // all GPUs of a node may fall ill together
	eventEvery = time.Minute

	warning = "Warning"
	normal  = "Normal"
)

// teller turns changes of health into Events. It compares states: what changed and changed back while it
// was not allowed to speak is not told, and there is no queue that could grow.
type teller struct {
	sink   Sink
	log    *slog.Logger
	bucket *rate.Limiter

	told      map[gpu.UUID]gpu.Health // unhealthy GPUs that were told of
	failing   bool
	notBefore time.Time // of the next try after a failure
}

func newTeller(sink Sink, log *slog.Logger) *teller {
	return &teller{
		sink: sink, log: log, bucket: rate.NewLimiter(rate.Every(eventEvery), eventBurst),
		told: map[gpu.UUID]gpu.Health{},
	}
}

// act tells what has changed, and says when to call again at the latest; zero is when the next snapshot
// comes. Nothing is told while the driver is away: that is not a GPU's health, unless an operator released it.
func (t *teller) act(ctx context.Context, s *gpu.Snapshot, now time.Time) time.Time {
	if s == nil || !s.Driver.Loaded && !released(s) {
		return time.Time{}
	}
	if now.Before(t.notBefore) {
		return t.notBefore
	}
	t.forget(s)
	for i := range s.Devices {
		d := &s.Devices[i]
		before := t.told[d.UUID]
		if d.Health.Reason == before.Reason && d.Health.Since.Equal(before.Since) || d.Health.OK() && before.OK() {
			continue
		}
		if !t.bucket.Allow() {
			return now.Add(eventEvery)
		}
		if err := t.tell(ctx, d, before, now); err != nil {
			if ctx.Err() == nil && !t.failing {
				t.log.Warn("event not told, tried again until it is", "uuid", d.UUID, "error", err)
			}
			t.failing, t.notBefore = true, now.Add(backoffMax)
			return t.notBefore
		}
		t.failing = false
		if d.Health.OK() {
			delete(t.told, d.UUID)
		} else {
			t.told[d.UUID] = d.Health
		}
	}
	return time.Time{}
}

// tell makes one Event. Its id says which occurrence it is, so that a restart of the agent, or a second
// one during an upgrade, does not tell it twice.
func (t *teller) tell(ctx context.Context, d *gpu.Device, before gpu.Health, now time.Time) error {
	id := func(what string, since time.Time) string {
		return fmt.Sprintf("%s %s %d", d.UUID, what, since.UnixNano())
	}
	if d.Health.OK() {
		message := fmt.Sprintf("GPU %d (%s) is healthy again, after %s: %s", d.Index, d.UUID, before.Reason, before.Text)
		return t.sink.Event(ctx, id("healthy after", before.Since), normal, "GPUHealthy", cut(message), now)
	}
	return t.sink.Event(ctx, id(string(d.Health.Reason), d.Health.Since), warning, "GPUUnhealthy", cut(describe(d)), d.Health.Since)
}

// forget drops GPUs that are no longer there.
func (t *teller) forget(s *gpu.Snapshot) {
	for id := range t.told {
		if s.Device(id) == nil {
			delete(t.told, id)
		}
	}
}
