package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/supervise"
	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/az"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/file"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/gs"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hf"
	httpsource "github.com/gpu-agent/gpu-agent/pkg/cache/source/http"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/oci"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/s3"
	"github.com/gpu-agent/gpu-agent/pkg/cdi"
	"github.com/gpu-agent/gpu-agent/pkg/condition"
	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin"
	"github.com/gpu-agent/gpu-agent/pkg/exporter"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/kube"
	"github.com/gpu-agent/gpu-agent/pkg/labels"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/mps"
	"github.com/gpu-agent/gpu-agent/pkg/nvml"
	"github.com/gpu-agent/gpu-agent/pkg/ready"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// agent is the whole wiring of one configuration. Building one starts nothing.
type agent struct {
	config  config.Config
	file    string
	log     *slog.Logger
	started time.Time

	monitor *nvml.Monitor
	gate    *ready.Gate                  // what everything but the monitor sees of the GPUs
	specs   *cdi.Writer                  // nil: off
	daemons *mps.Daemons                 // nil: nothing is shared by MPS
	policy  watch.Value[resource.Policy] // in force; an edit sets another
	choice  watch.Value[string]          // of NVIDIA's files, by the node's label; "" is none
	offered config.DevicePlugin          // that policy was made of; used by runEdition alone
	plugin  *deviceplugin.Plugin         // nil: off
	dra     *kube.DRA                    // nil: off
	owners  *kube.Owners                 // nil: off
	node    *kube.Node                   // nil: labels do not go to the API server
	sink    labels.Sink                  // nil: off
	pages   *exporter.Collector
	sources map[string]cache.Source

	cache     atomic.Pointer[cache.Cache]    // nil: off, or not open yet
	cacheHeld time.Time                      // since when another agent holds it; used by runCache alone
	inventory watch.Value[*model.Inventory]  // nil: the cache is not open
	promised  watch.Value[*model.Inventory]  // what labels may promise; nil: not known yet
	applied   watch.Value[map[string]string] // labels as last applied; nil before
	group     atomic.Pointer[supervise.Group]

	mu        sync.Mutex
	models    []model.Spec // wanted by the configuration in force
	configErr error        // of the newest file, when it is not in force
}

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

func newAgent(c config.Config, file string, log *slog.Logger) (*agent, error) {
	a := &agent{config: c, file: file, log: log, started: time.Now(), models: c.Cache.Specs()}
	var err error
	if a.monitor, err = nvml.New(nvmlConfig(c, log.With("part", "nvml"))); err != nil {
		return nil, usageError{err}
	}
	policy, err := resource.NewPolicy(c.Policy())
	if err != nil {
		return nil, usageError{fmt.Errorf("devicePlugin: %w", err)}
	}
	a.policy.Set(policy)
	a.offered = c.DevicePlugin
	if err := a.buildGate(); err != nil {
		return nil, err
	}
	door := kube.Config{
		NodeName: c.NodeName, Kubeconfig: c.Labels.Kubeconfig, PodResourcesSocket: c.PodResources.Socket,
		PodResourcesInterval: time.Duration(c.PodResources.Interval), Log: log.With("part", "kube"),
		Ours: func(name string) bool { return a.policy.Get().Ours(name) },
	}
	if c.PodResources.Enabled {
		a.owners = kube.NewOwners(door)
	}
	switch c.Labels.Sink {
	case "node":
		if a.node, err = kube.NewNode(door); err != nil {
			return nil, usageError{fmt.Errorf("labels.sink is node, but the API server cannot be reached: %w; set labels.sink to file or none where there is no cluster", err)}
		}
		a.sink = a.node
	case "file":
		a.sink = labels.FileSink{Path: c.Labels.File}
	}
	if c.Allocation == config.AllocateByPlugin {
		a.buildPlugin()
	}
	if err := a.buildSources(); err != nil {
		return nil, err
	}
	return a, a.buildExporter()
}

func (a *agent) buildPlugin() {
	plugin := deviceplugin.Config{Dir: a.config.DevicePlugin.KubeletDir, Log: a.log.With("part", "deviceplugin")}
	if a.owners != nil {
		plugin.Allocated = a.owners.Poke
	}
	if a.node != nil {
		a.dra = kube.NewDRA(a.node)
		plugin.Elsewhere = a.dra
	}
	a.plugin = deviceplugin.New(plugin, &a.policy, a.gate)
}

func (a *agent) buildSources() error {
	c := a.config.Cache.Sources
	web, err := httpsource.New(httpsource.Config{
		CAFile: c.HTTP.CAFile, TokenFile: c.HTTP.TokenFile, Hosts: c.HTTP.TokenHosts,
		AllowPlain: c.HTTP.AllowPlain, UserAgent: "gpu-agent/" + version, Streams: a.config.Cache.Streams,
	})
	if err != nil {
		return usageError{fmt.Errorf("cache.sources.http: %w", err)}
	}
	bucket, err := s3.New(s3.Config{
		Endpoint: c.S3.Endpoint, Region: c.S3.Region, PathStyle: c.S3.PathStyle, Anonymous: c.S3.Anonymous,
		CredentialsFile: c.S3.CredentialsFile, CAFile: c.S3.CAFile, Streams: a.config.Cache.Streams,
	})
	if err != nil {
		return usageError{fmt.Errorf("cache.sources.s3: %w", err)}
	}
	registry, err := oci.New(oci.Config{
		CredentialsFile: c.OCI.CredentialsFile, CAFile: c.OCI.CAFile, PlainHosts: c.OCI.PlainHosts,
		UserAgent: "gpu-agent/" + version, Streams: a.config.Cache.Streams,
	})
	if err != nil {
		return usageError{fmt.Errorf("cache.sources.oci: %w", err)}
	}
	hub, err := hf.New(hf.Config{
		Endpoint: c.HF.Endpoint, Mirrors: c.HF.Mirrors, TokenFile: c.HF.TokenFile, CAFile: c.HF.CAFile,
		AllowPickle: c.HF.AllowPickle, UserAgent: "gpu-agent/" + version, Streams: a.config.Cache.Streams,
	})
	if err != nil {
		return usageError{fmt.Errorf("cache.sources.hf: %w", err)}
	}
	local, err := file.New(file.Config{Roots: c.File.Roots})
	if err != nil {
		return usageError{fmt.Errorf("cache.sources.file: %w", err)}
	}
	google, err := gs.New(gs.Config{
		Endpoint: c.GS.Endpoint, Anonymous: c.GS.Anonymous, CredentialsFile: c.GS.CredentialsFile, CAFile: c.GS.CAFile,
		UserAgent: "gpu-agent/" + version, Streams: a.config.Cache.Streams,
	})
	if err != nil {
		return usageError{fmt.Errorf("cache.sources.gs: %w", err)}
	}
	azure, err := az.New(az.Config{
		Endpoint: c.AZ.Endpoint, Anonymous: c.AZ.Anonymous, CredentialsFile: c.AZ.CredentialsFile, CAFile: c.AZ.CAFile,
		UserAgent: "gpu-agent/" + version, Streams: a.config.Cache.Streams,
	})
	if err != nil {
		return usageError{fmt.Errorf("cache.sources.az: %w", err)}
	}
	a.sources = map[string]cache.Source{"https": web, "http": web, "s3": bucket, "oci": registry, "hf": hub, "file": local, "gs": google, "az": azure}
	return nil
}

func (a *agent) buildExporter() (err error) {
	sources := exporter.Sources{Snapshot: a.gate.Get, Tasks: a.tasksUp}
	if a.owners != nil {
		sources.Owners = a.owners.Owners
	}
	if a.plugin != nil {
		sources.Plugin = a.pluginStatus
	}
	if a.config.Cache.Enabled {
		sources.Inventory = a.inventory.Get
	}
	a.pages, err = exporter.New(exporter.Config{
		Schemas: a.config.Exporter.Schemas, Hostname: a.config.NodeName, Version: version,
		XIDHold: time.Duration(a.config.Exporter.XIDHold), Log: a.log.With("part", "exporter"),
	}, sources)
	return err
}

// run supervises every part until ctx is done.
func (a *agent) run(ctx context.Context) error {
	g := supervise.New(ctx, a.log)
	a.group.Store(g)
	a.log.Info("gpu-agent", "version", version, "node", a.config.NodeName, "simulated", a.config.NVML.Simulate.On())

	g.Must("nvml", a.monitor.Run)
	g.Must("ready", a.gate.Run)
	if a.specs != nil {
		g.Keep("cdi", a.specs.Run)
	}
	if a.daemons != nil {
		g.Keep("mps", a.daemons.Run)
	}
	if a.plugin != nil {
		g.Must("deviceplugin", a.plugin.Run)
	}
	if a.dra != nil {
		g.Keep("dra", a.dra.Run)
	}
	if a.config.Labels.StartupTaint {
		g.Keep("taint", a.runTaint)
	}
	if a.config.DevicePlugin.NVIDIAConfigDir != "" {
		g.Keep("choice", a.runChoice)
	}
	if a.config.Cache.Enabled {
		g.Keep("cache", a.runCache)
	}
	if a.owners != nil {
		g.Keep("pods", a.owners.Run)
	}
	if a.sink != nil {
		g.Keep("labels", a.runLabels)
	}
	if a.node != nil {
		g.Keep("condition", a.runCondition)
	}
	g.Keep("http", a.runHTTP)
	g.Keep("socket", a.runSocket)
	return g.Wait()
}

// offers is what the policy in force makes of a snapshot.
func (a *agent) offers(s *gpu.Snapshot) []resource.Offer { return a.policy.Get().Offers(s) }

// offer puts an edit of what is offered into force, without a moment in which the kubelet has no list.
func (a *agent) offer(c config.Config) error {
	if reflect.DeepEqual(a.offered, c.DevicePlugin) {
		return nil
	}
	policy, err := resource.NewPolicy(c.Policy())
	if err != nil {
		return fmt.Errorf("devicePlugin: %w", err)
	}
	for _, note := range c.Notes {
		a.log.Info("configuration", "note", note)
	}
	a.log.Info("configuration changed: what is offered to the kubelet")
	a.offered = c.DevicePlugin
	a.policy.Set(policy)
	if a.daemons != nil {
		a.daemons.Poke()
	}
	a.gate.Poke()
	return nil
}

// want tells the cache of an edited list of models.
func (a *agent) want(models []model.Spec) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Equal(a.models, models) {
		return
	}
	a.models = models
	if opened := a.cache.Load(); opened != nil {
		opened.Want(a.models)
	}
	a.log.Info("configuration changed: models", "count", len(a.models))
}

func (a *agent) runLabels(ctx context.Context) error {
	var inventories labels.Inventories
	if a.config.Cache.Enabled {
		inventories = &a.promised
	}
	return labels.Run(ctx, labels.Config{
		Machine: labels.Machine(machineFile), Log: a.log.With("part", "labels"), Applied: a.applied.Set,
	}, a.gate, inventories, &a.policy, a.sink)
}

func (a *agent) runCondition(ctx context.Context) error {
	return condition.Run(ctx, condition.Config{
		Condition: a.config.Labels.Condition, Events: a.config.Labels.Events, Log: a.log.With("part", "condition"),
	}, a.gate, a.node)
}

func (a *agent) runHTTP(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.config.HTTP.Listen)
	if err != nil {
		return fmt.Errorf("http.listen: %w", err)
	}
	a.log.Info("listening", "address", l.Addr().String())
	return serve(ctx, l, a.web(a.pages.Handler()), a.config.HTTP.WebConfigFile, a.log)
}

func (a *agent) configError(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.configErr = err
}

func (a *agent) tasks() map[string]supervise.Task {
	if g := a.group.Load(); g != nil {
		return g.Status()
	}
	return nil
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
	s := a.plugin.Status()
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

// state is everything that there is to show.
func (a *agent) state() *state {
	snapshot := a.gate.Get()
	s := &state{
		Version: version, Node: a.config.NodeName, Started: a.started, Tasks: a.tasks(),
		Allocation: a.config.Allocation,
		Snapshot:   snapshot, Offers: a.offers(snapshot), Problems: a.policy.Get().Problems(snapshot), Cache: a.cached(),
		Labels: maps.Clone(a.applied.Get()), Owners: map[gpu.UUID][]resource.Owner{},
	}
	if opened := a.cache.Load(); opened != nil {
		s.Cache = opened.Get() // a caller who just asked for a model must find it: the relay may be a moment late
	}
	if snapshot.StateError != "" {
		s.Problems = append(s.Problems, snapshot.StateError)
	}
	if n := snapshot.Unidentified; n > 0 {
		s.Problems = append(s.Problems, fmt.Sprintf("%d GPUs that the driver counts have not said who they are: they are in no list", n))
	}
	a.mu.Lock()
	s.Config.File = a.file
	if a.configErr != nil {
		s.Config.Error = strings.ReplaceAll(a.configErr.Error(), "\n", "; ")
	}
	a.mu.Unlock()
	if a.specs != nil {
		if err := a.specs.Err(); err != nil {
			s.CDIError = err.Error()
		}
	}
	if a.owners != nil {
		s.Owners, s.PodsKnown = a.owners.Owners()
	}
	if a.node != nil {
		s.Foreign = a.node.Foreign()
	}
	if a.plugin != nil {
		st := a.plugin.Status()
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
