// Package exporter shows Prometheus what the owners published: the GPUs in the names and units that
// dcgm-exporter's dashboards already use, in names of our own with base units, or both; the model
// cache; and the agent itself.
//
// A scrape reads published values and nothing else: no driver, no kubelet, no disk. What is not
// known is an absent series, never 0 and never the last value.
//
// To add a metric, add one row to the table it belongs to: dcgm.go, native.go, mig.go, agent.go or cache.go.
// docs/METRICS.md is generated from those tables.
package exporter

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// The schemas that Config.Schemas may name.
const (
	// DCGM is dcgm-exporter's default families up to 4.8.2 with their names, types, units and labels.
	DCGM = "dcgm"
	// Native is the gpu_* families: base units, few labels, clean under promlint.
	Native = "native"
)

// DefaultXIDHold is long enough for an alert on DCGM_FI_DEV_XID_ERRORS to be seen, and short enough
// that it clears by itself: DCGM holds the code until the driver is reloaded.
const DefaultXIDHold = time.Hour

// Config is what the exporter shows and how it names the node.
type Config struct {
	Schemas  []string      // of the GPU families: DCGM, Native; empty means both
	Hostname string        // of the node; empty leaves the dcgm schema's host labels out
	XIDHold  time.Duration // how long DCGM_FI_DEV_XID_ERRORS keeps the last code; 0 is forever
	Version  string        // of the agent
	Log      *slog.Logger  // nil discards
}

// Sources are asked once a scrape for what was last published. Each returns at once and may be called
// concurrently; what it returns is not changed afterwards. Only Snapshot is required: the families
// of a nil source are absent.
type Sources struct {
	// Snapshot returns nil before the first one was published.
	Snapshot func() *gpu.Snapshot
	// Inventory returns nil before the cache knows what it holds.
	Inventory func() *model.Inventory
	// Owners returns the containers that hold each GPU and each MIG instance, and whether the kubelet's last answer came. While
	// it does not come, owners is what may still be shown: nil says that nothing is known.
	Owners func() (owners map[gpu.UUID][]resource.Owner, up bool)
	// Tasks returns whether each of the agent's tasks runs, by name.
	Tasks func() map[string]bool
	// Plugin returns how the device plugin stands with the kubelet.
	Plugin func() PluginStatus
}

// PluginStatus is how the device plugin stands with the kubelet.
type PluginStatus struct {
	Resources []ResourceStatus
	// Since the agent started: containers answered by Allocate, and of those the ones that were given the
	// cache's folder of models.
	Allocations, ModelsMounts uint64
}

// ResourceStatus is one resource that the device plugin offers.
type ResourceStatus struct {
	Resource   string // "nvidia.com/gpu"
	Registered bool   // the kubelet accepted it and its stream is open
	Devices    int    // units on offer, healthy or not
	Healthy    int    // units that the kubelet may give away
}

// Collector is a prometheus.Collector over the Sources. It keeps no state between scrapes and is
// safe for concurrent use.
type Collector struct {
	config  Config
	sources Sources
	log     *slog.Logger
	schemas []func(chan<- prometheus.Metric, *device)
	node    []series[*node] // about the agent and the cache
	hasDCGM bool            // names that OpenMetrics would change
}

// New checks the config and lays out the families. It asks no source.
func New(c Config, s Sources) (*Collector, error) {
	if s.Snapshot == nil {
		return nil, fmt.Errorf("exporter has no source of snapshots: set Sources.Snapshot")
	}
	if c.XIDHold < 0 {
		return nil, fmt.Errorf("xid hold %s is negative: want a duration such as 1h, or 0 to hold a code forever", c.XIDHold)
	}
	if len(c.Schemas) == 0 {
		c.Schemas = []string{DCGM, Native}
	}
	e := &Collector{config: c, sources: s, log: c.Log}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	for i, name := range c.Schemas {
		if slices.Contains(c.Schemas[:i], name) {
			return nil, fmt.Errorf("metrics schema %q is named twice: name it once", name)
		}
		switch name {
		case DCGM:
			e.hasDCGM = true
			e.schemas = append(e.schemas, dcgmSchema(c.Hostname))
		case Native:
			e.schemas = append(e.schemas, nativeSchema())
		default:
			return nil, fmt.Errorf("metrics schema %q is unknown: want %s", name, strings.Join([]string{DCGM, Native}, " or "))
		}
	}
	for _, f := range slices.Concat(agentFamilies(), cacheFamilies()) {
		e.node = append(e.node, newSeries(f, nil))
	}
	return e, nil
}
