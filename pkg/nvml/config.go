package nvml

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// Defaults of Config.
const (
	DefaultInterval = 10 * time.Second
	DefaultDeadline = 5 * time.Second

	DefaultProbes        = 3
	DefaultProbeInterval = 10 * time.Second
	DefaultRelapses      = 3
)

// maxSimulated is the largest node sold today (16 GPUs, HGX-2 and p2.16xlarge).
const maxSimulated = 16

// Config is what a Monitor needs. The zero value asks the node's own driver every DefaultInterval.
type Config struct {
	// Library is the path or soname of libnvidia-ml; empty means libnvidia-ml.so.1 on the default search path.
	Library string
	// Interval is the time between two samples of a GPU; 0 means DefaultInterval.
	Interval time.Duration
	// Deadline is how long one sample of one GPU may take before the GPU counts as hung; 0 means DefaultDeadline.
	Deadline time.Duration
	// Simulate, if set, makes the GPUs up; no driver is asked.
	Simulate *Simulation
	// Health says how health is judged and regained; the zero value follows NVIDIA's catalog.
	Health Health
	// Log is where what a person should know goes; nil discards it.
	Log *slog.Logger
}

// Health is how the health of GPUs is judged, regained and kept.
type Health struct {
	// StateDir is where health is kept across restarts; empty means that a restart forgets it.
	StateDir string
	// ReadOnly leaves StateDir as it is: for a second look beside the agent that owns it.
	ReadOnly bool
	// Probes are how many good samples in a row end a trouble once there is evidence that it is over;
	// 0 means DefaultProbes.
	Probes int
	// ProbeInterval is the least time between two of them; 0 means DefaultProbeInterval.
	ProbeInterval time.Duration
	// Relapses is how often a day a GPU may fall ill again before an operator must look; 0 means DefaultRelapses.
	Relapses int
	// XIDs are policies for single codes, OtherXIDs that for all others.
	XIDs      map[uint64]XIDPolicy
	OtherXIDs XIDPolicy
	// Ignore are reasons out of IgnorableReasons that are notices only.
	Ignore []gpu.Reason
}

// IgnorableReasons are the reasons that may be notices only: the GPU answers all the same.
func IgnorableReasons() []gpu.Reason { return conditionReasons() }

// rules are the finished rules.
func (h Health) rules() (rules, error) {
	r := rules{
		xids: xidRules{h.XIDs, h.OtherXIDs}, ignore: map[gpu.Reason]bool{},
		probes: cmp.Or(h.Probes, DefaultProbes), every: cmp.Or(h.ProbeInterval, DefaultProbeInterval),
		relapses: cmp.Or(h.Relapses, DefaultRelapses),
	}
	if r.probes < 0 || r.every < 0 || r.relapses < 0 {
		return r, errors.New("nvml health: probes, probe interval and relapses must be positive")
	}
	for _, reason := range h.Ignore {
		if !slices.Contains(conditionReasons(), reason) {
			return r, fmt.Errorf("nvml health ignore %q: must be one of %v", reason, conditionReasons())
		}
		r.ignore[reason] = true
	}
	return r, nil
}

// Simulation describes made-up GPUs.
type Simulation struct {
	GPU   string // one of SimulatedGPUs
	Count int    // 1 to 16
	// MIG splits GPUs; those in no entry stay whole.
	MIG []SimulatedMIG
}

// SimulatedGPUs are the names that Simulation.GPU may have.
func SimulatedGPUs() []string {
	names := make([]string, len(simModels))
	for i, m := range simModels {
		names[i] = m.short
	}
	return names
}

// A Monitor publishes snapshots of the node's GPUs while Run runs. Its other methods are safe for concurrent use.
type Monitor struct {
	interval  time.Duration
	deadline  time.Duration
	log       *slog.Logger
	driver    driver
	simulated bool
	host      host
	rules     rules
	keeper    keeper
	calls     chan func(*inventory)       // for the loop, from everybody else
	latest    *watch.Value[*gpu.Snapshot] // shared by Monitors that follow each other

	made   made
	held   string     // the library that Monitors before this one have loaded; "" is none
	before *Monitor   // whose inventory Run begins with; nil after that
	left   *inventory // what Run ended with, for the one that follows
}

// New checks cfg and returns a Monitor whose snapshot is empty. It starts nothing and loads nothing.
func New(cfg Config) (*Monitor, error) {
	switch {
	case cfg.Interval < 0:
		return nil, fmt.Errorf("nvml interval %s: must be positive", cfg.Interval)
	case cfg.Deadline < 0:
		return nil, fmt.Errorf("nvml deadline %s: must be positive", cfg.Deadline)
	case cfg.Simulate != nil && cfg.Library != "":
		return nil, errors.New("nvml library and nvml simulate are both set: a simulation loads no library; remove one of them")
	}
	m := &Monitor{
		interval: cfg.Interval, deadline: cfg.Deadline, log: cfg.Log, host: host{sysfs: "/sys", procfs: "/proc"},
		latest: &watch.Value[*gpu.Snapshot]{},
	}
	m.calls = make(chan func(*inventory))
	var err error
	if m.rules, err = cfg.Health.rules(); err != nil {
		return nil, err
	}
	if m.interval == 0 {
		m.interval = DefaultInterval
	}
	if m.deadline == 0 {
		m.deadline = DefaultDeadline
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.keeper.log = m.log
	if cfg.Simulate != nil {
		sim, err := newSimDriver(*cfg.Simulate)
		if err != nil {
			return nil, err
		}
		// Nothing is kept of GPUs that are made up.
		m.driver, m.simulated, m.host = sim, true, host{}
		m.made = made{cfg.Simulate.GPU, cfg.Simulate.Count}
	} else {
		m.driver, m.keeper.dir, m.keeper.readOnly = newDriver(cfg.Library), cfg.Health.StateDir, cfg.Health.ReadOnly
	}
	m.publishNothing()
	return m, nil
}

func (m *Monitor) publishNothing() {
	m.latest.Set(&gpu.Snapshot{Time: time.Now(), Simulated: m.simulated, Driver: gpu.Driver{Error: gpu.NotAsked}})
}

// Get is the latest snapshot, never nil.
func (m *Monitor) Get() *gpu.Snapshot { return m.latest.Get() }

// Watch is the latest snapshot, and a channel that is closed once a newer one is there.
func (m *Monitor) Watch() (*gpu.Snapshot, <-chan struct{}) { return m.latest.Watch() }

func newSimDriver(s Simulation) (driver, error) {
	if !slices.Contains(SimulatedGPUs(), s.GPU) {
		return nil, fmt.Errorf("nvml simulate gpu %q: must be one of %s", s.GPU, strings.Join(SimulatedGPUs(), ", "))
	}
	if s.Count < 1 || s.Count > maxSimulated {
		return nil, fmt.Errorf("nvml simulate count %d: must be 1 to %d", s.Count, maxSimulated)
	}
	d := simDriver{model: simModelNamed(s.GPU), count: s.Count, mig: map[int][]gpu.Instance{}}
	for i := range s.MIG {
		split, err := s.split(i)
		if err != nil {
			return nil, fmt.Errorf("nvml simulate mig entry %d: %w", i, err)
		}
		maps.Copy(d.mig, split)
	}
	return d, nil
}
