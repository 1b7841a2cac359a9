package mps

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// Config of New. The zero value is that of a container that NVIDIA's runtime gave the driver's programs.
type Config struct {
	BinDir  string // of the driver's programs; default /usr/bin
	Shm     string // the daemons' shared memory; default /dev/shm, and CUDA knows no other
	Changed func() // if set, is told when Missing may answer otherwise; it must not block
	Log     *slog.Logger

	Poll     time.Duration // how often a daemon is asked whether it is there; default 5 s
	Patience time.Duration // from its start to its first answer; default 10 s
}

// Snapshots is where the newest snapshot comes from. The channel is closed once a newer one is there.
type Snapshots interface {
	Watch() (*gpu.Snapshot, <-chan struct{})
}

// Daemons keeps a daemon for each share running while Run runs. Missing is safe for concurrent use.
type Daemons struct {
	cfg       Config
	shares    func(*gpu.Snapshot) []resource.MPS
	snapshots Snapshots

	mu      sync.Mutex
	running map[string]*daemon // by key of the share; guarded by mu, changed by Run alone

	poked chan struct{} // holds one; more say no more

	ends map[string]func() // ends the daemon of a key and waits; owned by Run
}

// New checks cfg. shares says what is shared by MPS, as resource.Policy.MPS does. It starts nothing.
func New(cfg Config, shares func(*gpu.Snapshot) []resource.MPS, snapshots Snapshots) (*Daemons, error) {
	cfg.BinDir = cmp.Or(cfg.BinDir, "/usr/bin")
	cfg.Shm = cmp.Or(cfg.Shm, "/dev/shm")
	cfg.Poll = cmp.Or(cfg.Poll, 5*time.Second)
	cfg.Patience = cmp.Or(cfg.Patience, 10*time.Second)
	if !filepath.IsAbs(cfg.BinDir) {
		return nil, fmt.Errorf("binDir %q: want an absolute path", cfg.BinDir)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	return &Daemons{cfg: cfg, shares: shares, snapshots: snapshots, running: map[string]*daemon{},
		poked: make(chan struct{}, 1), ends: map[string]func(){}}, nil
}

// Check reports what no daemon could be started without: the driver's programs. Run waits for them.
func (m *Daemons) Check() error { return programs(m.cfg.BinDir) }

// Run starts and ends daemons as the snapshots call for, until ctx is done; it returns nil. What is shared
// of a GPU that is ill stays as it is, and without a driver nothing is known and nothing changes.
func (m *Daemons) Run(ctx context.Context) error {
	defer m.keep(nil)
	for {
		s, changed := m.snapshots.Watch()
		if s != nil && s.Driver.Loaded {
			m.reconcile(ctx, s)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-m.poked:
		}
	}
}

// Poke makes Run look at the shares again, after they have changed. It never blocks.
func (m *Daemons) Poke() {
	select {
	case m.poked <- struct{}{}:
	default:
	}
}

func (m *Daemons) reconcile(ctx context.Context, s *gpu.Snapshot) {
	shares := m.shares(s)
	var keys []string
	for _, share := range shares {
		keys = append(keys, key(share, s.Driver.Version))
	}
	m.keep(keys)
	for i, share := range shares {
		healthy := map[gpu.UUID]bool{}
		for _, d := range share.Devices {
			if d.Healthy {
				healthy[d.UUID] = true
			}
		}
		m.mu.Lock()
		d := m.running[keys[i]]
		m.mu.Unlock()
		if d != nil {
			d.want(healthy)
			continue
		}
		m.begin(ctx, keys[i], share, healthy)
	}
}

// key names what a daemon must be started anew for: its folders, its GPUs and their limits, the driver.
func key(share resource.MPS, driver string) string {
	share.Devices = slices.Clone(share.Devices)
	for i := range share.Devices {
		share.Devices[i].Healthy, share.Devices[i].Index = false, 0
	}
	return fmt.Sprintf("%s %+v", driver, share)
}

// keep ends all daemons but those of the given keys.
func (m *Daemons) keep(keys []string) {
	for k, end := range m.ends {
		if slices.Contains(keys, k) {
			continue
		}
		end()
		delete(m.ends, k)
		m.mu.Lock()
		delete(m.running, k)
		m.mu.Unlock()
	}
}

func (m *Daemons) begin(ctx context.Context, k string, share resource.MPS, healthy map[gpu.UUID]bool) {
	d := &daemon{
		control: control{bin: m.cfg.BinDir, share: share}, shm: m.cfg.Shm, poll: m.cfg.Poll, patience: m.cfg.Patience,
		changed: m.cfg.Changed, log: m.cfg.Log.With("resource", share.Resource),
		status: status{err: errStarting}, wanted: healthy,
	}
	m.mu.Lock()
	m.running[k] = d
	m.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.run(ctx)
	}()
	m.ends[k] = func() {
		cancel()
		<-ended
	}
}

// Missing says of each GPU in s that is shared by MPS why its clients would find no daemon; a GPU that is not
// in the map is not shared, or has one.
func (m *Daemons) Missing(s *gpu.Snapshot) map[gpu.UUID]string {
	missing := map[gpu.UUID]string{}
	if !s.Driver.Loaded {
		return missing // there is no telling, and a better reason
	}
	for _, share := range m.shares(s) {
		m.mu.Lock()
		d := m.running[key(share, s.Driver.Version)]
		m.mu.Unlock()
		for _, device := range share.Devices {
			why := "no MPS daemon: " + errStarting.Error()
			if d != nil {
				why = d.lacks(device.UUID)
			}
			if why != "" {
				missing[device.UUID] = why
			}
		}
	}
	return missing
}
