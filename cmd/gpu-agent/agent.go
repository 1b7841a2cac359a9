package main

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/supervise"
	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/exporter"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/kube"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/nvml"
	"github.com/gpu-agent/gpu-agent/pkg/ready"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// agent is what outlives an edit of the configuration: values that the parts publish and watch. The parts
// themselves are in wiring. Building one starts nothing.
type agent struct {
	file    string
	log     *slog.Logger
	logging *logging
	started time.Time

	unfitRetry time.Duration // between two tries of an edit that does not fit the node

	wired     atomic.Pointer[wiring]       // the parts in force; set by newAgent and by edit alone
	gate      *ready.Gate                  // what everything but the monitor sees of the GPUs
	policy    watch.Value[resource.Policy] // in force; an edit sets another
	choice    watch.Value[string]          // of NVIDIA's files, by the node's label; "" is none
	elsewhere watch.Value[string]          // why somebody else offers the GPUs; "" is that nobody does

	caches  *cache.Set                     // of all disks; of none where the cache is off
	memory  *cache.Memory                  // that they share
	applied watch.Value[map[string]string] // labels as last applied; nil before
	group   *supervise.Group               // set by run, before there is a part

	nodeLabels watch.Value[map[string]string] // the Node's; nil before they are read, and where no model selects by them

	mu        sync.Mutex
	models    []model.Spec        // of the configuration in force, as they fit this node
	configErr error               // of the newest file, when it is not in force
	opened    map[string]*opening // by disk
}

// now is the parts in force.
func (a *agent) now() *wiring { return a.wired.Load() }

func nvmlConfig(c config.Config, log *slog.Logger) nvml.Config {
	n := nvml.Config{
		Library: c.NVML.Library, Interval: time.Duration(c.NVML.Interval),
		Deadline: time.Duration(c.NVML.Deadline), Health: c.Health.NVML(), Log: log,
	}
	skipped := n.Health.HealthChecks(os.Getenv("DP_DISABLE_HEALTHCHECKS"), os.Getenv("DP_ENABLE_HEALTHCHECKS"))
	if len(skipped) > 0 {
		log.Warn("DP_DISABLE_HEALTHCHECKS or DP_ENABLE_HEALTHCHECKS: want all, xids or a list of XIDs; skipped", "words", skipped)
	}
	if c.NVML.Simulate.On() {
		n.Simulate = new(c.NVML.Simulate.NVML())
	}
	return n
}

func newAgent(c config.Config, file string, log *logging) (*agent, error) {
	a := &agent{file: file, started: time.Now(), logging: log, log: slog.New(log), unfitRetry: time.Minute, opened: map[string]*opening{}}
	a.memory = cache.NewMemory()
	a.caches = cache.NewSet(a.log.With("part", "cache"))
	need{unknown: "the pods of this node have not been listed yet"}.tell(a.caches)
	w, err := a.wire(c)
	if err != nil {
		return nil, err
	}
	policy, err := resource.NewPolicy(c.Policy())
	if err != nil {
		return nil, usageError{fmt.Errorf("devicePlugin: %w", err)}
	}
	if w.dra != nil {
		a.elsewhere.Set(kube.AskingDRA)
	}
	a.span(c.Cache)
	a.models = a.fitted(c)
	a.caches.Want(a.models)
	a.policy.Set(policy)
	a.wired.Store(w)
	return a, nil
}

// offers is what the policy in force makes of a snapshot.
func (a *agent) offers(s *gpu.Snapshot) []resource.Offer { return a.policy.Get().Offers(s) }

// want tells the cache of an edited list of models.
func (a *agent) want(models []model.Spec) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Equal(a.models, models) {
		return
	}
	a.models = models
	a.caches.Want(models)
	a.log.Info("the models that this node should hold have changed", "count", len(a.models))
}

func (a *agent) configError(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.configErr = err
}

func (a *agent) tasks() map[string]supervise.Task {
	if a.group == nil {
		return nil
	}
	return a.group.Status()
}

func (a *agent) tasksUp() map[string]bool {
	up := map[string]bool{}
	for name, task := range a.tasks() {
		up[name] = task.Up
	}
	return up
}

// pluginStatus has a row for each resource that is offered or registered. Before there is any, the one that
// the node should have is not registered.
func (a *agent) pluginStatus() exporter.PluginStatus {
	plugin := a.now().plugin
	if plugin == nil {
		return exporter.PluginStatus{} // it was just switched off
	}
	s := plugin.Status()
	rows := map[string]exporter.ResourceStatus{}
	for _, e := range s.Endpoints {
		rows[e.Resource] = exporter.ResourceStatus{Resource: e.Resource, Registered: true}
	}
	for _, offer := range a.offers(a.gate.Get()) {
		r := rows[offer.Resource]
		r.Resource, r.Devices = offer.Resource, len(offer.Units)
		for _, u := range offer.Units {
			if u.Healthy {
				r.Healthy++
			}
		}
		rows[r.Resource] = r
	}
	if name := a.policy.Get().Resource(); len(rows) == 0 {
		rows[name] = exporter.ResourceStatus{Resource: name}
	}
	return exporter.PluginStatus{Allocations: s.Allocations, ModelsMounts: s.ModelsMounts, Resources: slices.Collect(maps.Values(rows))}
}

// owners is which pod holds which GPU, as far as the kubelet says it.
func (a *agent) owners() (map[gpu.UUID][]resource.Owner, bool) {
	if owners := a.now().owners; owners != nil {
		return owners.Owners()
	}
	return nil, false // it was just switched off
}

// state is everything that there is to show.
func (a *agent) state() *state {
	snapshot, now := a.gate.Get(), a.now()
	s := &state{
		Version: version, Node: now.config.NodeName, Started: a.started, Tasks: a.tasks(),
		Allocation: now.config.Allocation,
		Snapshot:   snapshot, Offers: a.offers(snapshot), Problems: a.policy.Get().Problems(snapshot), Cache: a.cached(),
		Labels: maps.Clone(a.applied.Get()), Owners: map[gpu.UUID][]resource.Owner{},
	}
	a.mu.Lock()
	s.Config.File = a.file
	if a.configErr != nil {
		s.Config.Error = strings.ReplaceAll(a.configErr.Error(), "\n", "; ")
	}
	a.mu.Unlock()
	if now.specs != nil {
		if err := now.specs.Err(); err != nil {
			s.CDIError = err.Error()
		}
	}
	if now.owners != nil {
		s.Owners, s.PodsKnown = now.owners.Owners()
	}
	if now.node != nil {
		s.Foreign = now.node.Foreign()
	}
	if now.plugin != nil {
		st := now.plugin.Status()
		p := &pluginState{Registered: st.Registered, Allocations: st.Allocations}
		if st.Err != nil {
			p.Error = st.Err.Error()
		}
		for _, e := range st.Endpoints {
			p.Since = e.Since
		}
		s.Plugin = p
	}
	return s
}
