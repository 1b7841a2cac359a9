package cdi

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

const (
	backoffMin = time.Second
	backoffMax = 5 * time.Minute
	// The files are looked at as often as this when no snapshot comes: somebody may have removed them.
	lookEvery = time.Minute
)

// Snapshots is where the newest snapshot comes from. The channel is closed once a newer one is there.
type Snapshots interface {
	Watch() (*gpu.Snapshot, <-chan struct{})
}

// Writer keeps the specs current while Run runs. Missing and Err are safe for concurrent use.
type Writer struct {
	cfg       Config
	folder    folder
	snapshots Snapshots

	// Owned by Run.
	settled string        // digest of the want and stamp of the folder when the files were last right
	tried   string        // digest of the last attempt
	backoff time.Duration // 0 after a success
	due     time.Time     // of the next attempt after a failure

	mu    sync.Mutex
	state state // guarded by mu
}

// state is what the files hold. It is replaced whole.
type state struct {
	driver string
	nodes  map[string]string // of the units described
	absent []string          // classes besides ClassGPU without a file
	failed map[string]string // why a unit or class could not be described
	err    error             // why nothing could be written
}

// New checks cfg and reads what an earlier run has written, so that a restart holds nothing back. It writes
// nothing.
func New(cfg Config, snapshots Snapshots) (*Writer, error) {
	cfg, err := cfg.finished()
	if err != nil {
		return nil, err
	}
	w := &Writer{cfg: cfg, folder: folder{path: cfg.Dir}, snapshots: snapshots}
	w.state = w.read(nil, nil)
	return w, nil
}

// Run writes the specs whenever the hardware, the driver or the files have changed, until ctx is done. It
// returns nil, and leaves the files: running pods name what they describe.
func (w *Writer) Run(ctx context.Context) error {
	for {
		snapshot, changed := w.snapshots.Watch()
		w.act(ctx, snapshot)
		wait := lookEvery
		if next := time.Until(w.due); next > 0 { // one that has passed was answered by act: nothing is to be tried
			wait = min(wait, next)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Check reports what no spec could be written without, or is in the way of one. Run waits until that changes.
func (w *Writer) Check() error {
	if _, err := w.cfg.hook(); err != nil {
		return err
	}
	return w.folder.foreign(w.classes())
}

// act makes the files what the snapshot calls for, if they are not. Without a driver nothing is known and
// nothing changes.
func (w *Writer) act(ctx context.Context, s *gpu.Snapshot) {
	if s == nil || !s.Driver.Loaded {
		return
	}
	hook, err := w.cfg.hook()
	if err != nil {
		w.publish(w.read(err, nil))
		return
	}
	now := w.wanted(s, hook)
	digest := now.digest()
	settled := digest + w.folder.stamp()
	if settled == w.settled {
		return
	}
	if err := w.folder.foreign(w.classes()); err != nil {
		w.publish(w.read(err, nil))
		return
	}
	if len(now.Units) == 0 || w.made(digest) {
		w.settle(digest)
		w.publish(w.read(nil, nil))
		return
	}
	if digest == w.tried && time.Now().Before(w.due) {
		return
	}
	failed, err := w.generate(ctx, now)
	if ctx.Err() != nil {
		return
	}
	w.tried = digest
	if err != nil || len(failed) > 0 {
		w.backoff = min(max(2*w.backoff, backoffMin), backoffMax)
		w.due = time.Now().Add(w.backoff)
	} else {
		w.settle(digest)
	}
	w.publish(w.read(err, failed))
}

// settle notes that the files, as they are now, are what is wanted.
func (w *Writer) settle(digest string) {
	w.settled, w.backoff = digest+w.folder.stamp(), 0
}

// made reports whether every file was made for the want of this digest.
func (w *Writer) made(digest string) bool {
	for _, class := range w.classes() {
		if s := w.folder.read(class); s == nil || s.Annotations[madeForKey] != digest {
			return false
		}
	}
	return true
}

// generate writes all specs.
func (w *Writer) generate(ctx context.Context, now want) (failed map[string]string, err error) {
	result, err := w.ask(ctx, now)
	if err != nil {
		return nil, fmt.Errorf("generate CDI specs: %w", err)
	}
	for _, class := range w.classes() {
		i := slices.IndexFunc(result.Specs, func(s *specs.Spec) bool { return s.Kind == Vendor+"/"+class })
		if i < 0 {
			continue // Failed says why
		}
		s := result.Specs[i]
		if class == ClassGPU {
			merge(s, w.folder.read(class), now)
		}
		if len(s.Devices) == 0 {
			continue // an empty spec is not valid
		}
		s.Annotations = map[string]string{ownerKey: ours, driverKey: now.Driver}
		if len(result.Failed) == 0 {
			s.Annotations[madeForKey] = now.digest()
		}
		if err := w.folder.write(s); err != nil {
			return result.Failed, fmt.Errorf("write CDI spec: %w", err)
		}
		w.cfg.Log.Info("CDI spec written", "kind", s.Kind, "driver", now.Driver, "devices", len(s.Devices))
	}
	return result.Failed, nil
}

// read is what the files hold, with what went wrong when they were last written.
func (w *Writer) read(err error, failed map[string]string) state {
	st := state{failed: failed, err: err, nodes: map[string]string{}}
	for _, class := range w.classes() {
		s := w.folder.read(class)
		switch {
		case s == nil && class != ClassGPU:
			st.absent = append(st.absent, class)
		case s != nil && class == ClassGPU:
			st.driver = s.Annotations[driverKey]
			for _, d := range s.Devices {
				st.nodes[d.Annotations[unitKey]] = d.Annotations[nodeKey]
			}
		}
	}
	return st
}

// publish replaces the state, and tells the log and the waiters when that changes anything.
func (w *Writer) publish(next state) {
	w.mu.Lock()
	last := w.state
	w.state = next
	w.mu.Unlock()
	if reflect.DeepEqual(last.text(), next.text()) && maps.Equal(last.nodes, next.nodes) && last.driver == next.driver {
		return
	}
	for _, line := range next.text() {
		if !slices.Contains(last.text(), line) {
			w.cfg.Log.Warn("CDI specs", "error", line)
		}
	}
	if w.cfg.Changed != nil {
		w.cfg.Changed()
	}
}

// text is everything that is wrong, sorted.
func (st state) text() []string {
	var lines []string
	if st.err != nil {
		lines = append(lines, st.err.Error())
	}
	for what, why := range st.failed {
		lines = append(lines, what+": "+why)
	}
	slices.Sort(lines)
	return lines
}

// Err is what is wrong with the specs as a whole; nil when nothing is. What ails single GPUs is in Missing.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.err
}

// Missing says of each GPU in s why no container could be given it, for want of a CDI device that fits the
// driver and the hardware of s; a GPU that is not in the map could.
func (w *Writer) Missing(s *gpu.Snapshot) map[gpu.UUID]string {
	w.mu.Lock()
	st := w.state
	w.mu.Unlock()
	missing := map[gpu.UUID]string{}
	if !s.Driver.Loaded {
		return missing // there is no telling, and a better reason
	}
	for i := range s.Devices {
		d := &s.Devices[i]
		for _, u := range unitsOf(d) {
			if why := st.lacks(u, s.Driver.Version); why != "" {
				missing[d.UUID] = why
				break
			}
		}
	}
	return missing
}

// lacks is why a unit cannot be named to the runtime; empty when it can.
func (st state) lacks(u unit, driver string) string {
	described := st.driver == driver && st.nodes[u.ID] == u.Node
	switch {
	case described && len(st.absent) == 0:
		return ""
	case described:
		return "no CDI device for " + st.absent[0] + ": " + cmp.Or(st.failed[st.absent[0]], "not written yet")
	case st.failed[u.ID] != "":
		return "no CDI device for " + u.ID + ": " + st.failed[u.ID]
	case st.err != nil:
		return "no CDI device: " + st.err.Error()
	}
	return "its CDI device is not written yet"
}
