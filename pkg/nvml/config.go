package nvml

import (
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
	// Log is where what a person should know goes; nil discards it.
	Log *slog.Logger
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
	latest    watch.Value[*gpu.Snapshot]
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
	m := &Monitor{interval: cfg.Interval, deadline: cfg.Deadline, log: cfg.Log, host: host{sysfs: "/sys", procfs: "/proc"}}
	if m.interval == 0 {
		m.interval = DefaultInterval
	}
	if m.deadline == 0 {
		m.deadline = DefaultDeadline
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Simulate != nil {
		sim, err := newSimDriver(*cfg.Simulate)
		if err != nil {
			return nil, err
		}
		m.driver, m.simulated, m.host = sim, true, host{}
	} else {
		m.driver = newDriver(cfg.Library)
	}
	m.latest.Set(&gpu.Snapshot{
		Time:      time.Now(),
		Simulated: m.simulated,
		Driver:    gpu.Driver{Error: "the driver has not been asked yet"},
	})
	return m, nil
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
