// Package ready holds back GPUs that are well but that no container could be given yet: its CDI device is not
// written, its MPS daemon does not run, an IMEX channel that is required is missing. Everything that shows GPUs sees the same reason, for it stands where
// the health of the hardware does.
package ready

import (
	"context"
	"maps"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// Source is where the snapshots come from. The channel is closed once a newer one is there.
type Source interface {
	Watch() (*gpu.Snapshot, <-chan struct{})
}

// Part says of each GPU of a snapshot why no container could be given it now, for people; a GPU that is not in
// the map could. It must answer at once. When its answer may have changed, it pokes the gate.
type Part func(*gpu.Snapshot) map[gpu.UUID]string

// Gate republishes the snapshots of a source with what the parts say. All but Run is safe for concurrent use.
type Gate struct {
	source Source
	parts  []Part
	poked  chan struct{} // holds one; more say no more
	latest watch.Value[*gpu.Snapshot]

	since map[gpu.UUID]gpu.Health // what is held back, as last published; owned by Run
}

// New is a gate before which nothing has been published.
func New(source Source) *Gate {
	g := &Gate{source: source, poked: make(chan struct{}, 1)}
	s, _ := source.Watch()
	g.latest.Set(s)
	return g
}

// Add adds a part, before Run.
func (g *Gate) Add(p Part) {
	g.parts = append(g.parts, p)
	g.publish()
}

// Poke makes Run ask the parts again. It never blocks.
func (g *Gate) Poke() {
	select {
	case g.poked <- struct{}{}:
	default:
	}
}

// Get is the latest snapshot.
func (g *Gate) Get() *gpu.Snapshot { return g.latest.Get() }

// Watch is the latest snapshot, and a channel that is closed once a newer one is there.
func (g *Gate) Watch() (*gpu.Snapshot, <-chan struct{}) { return g.latest.Watch() }

// Run republishes until ctx is done; it returns nil.
func (g *Gate) Run(ctx context.Context) error {
	for {
		changed := g.publish()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-g.poked:
		}
	}
}

func (g *Gate) publish() (changed <-chan struct{}) {
	s, changed := g.source.Watch()
	if s == nil {
		return changed
	}
	why := map[gpu.UUID]string{}
	for i := len(g.parts) - 1; i >= 0; i-- { // the first part's reason stands
		maps.Copy(why, g.parts[i](s))
	}
	out := *s
	out.Devices = append([]gpu.Device(nil), s.Devices...)
	held := map[gpu.UUID]gpu.Health{}
	for i := range out.Devices {
		d := &out.Devices[i]
		text := why[d.UUID]
		if text == "" || !d.Health.OK() {
			continue
		}
		since := time.Now()
		if was, ok := g.since[d.UUID]; ok {
			since = was.Since
		}
		d.Health = gpu.Health{Reason: gpu.NotReady, Text: text, Since: since}
		held[d.UUID] = d.Health
	}
	g.since = held
	g.latest.Set(&out)
	return changed
}
