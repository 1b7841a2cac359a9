package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/supervise"
	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/cache"
	httpsource "github.com/gpu-agent/gpu-agent/pkg/cache/source/http"
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
	gate    *ready.Gate  // what everything but the monitor sees of the GPUs
	specs   *cdi.Writer  // nil: off
	daemons *mps.Daemons // nil: nothing is shared by MPS
	policy  resource.Policy
	plugin  *deviceplugin.Plugin // nil: off
	owners  *kube.Owners         // nil: off
	node    *kube.Node           // nil: labels do not go to the API server
	sink    labels.Sink          // nil: off
	pages   *exporter.Collector
	sources map[string]cache.Source

	cache     atomic.Pointer[cache.Cache] // nil: off, or not open yet
	inventory watch.Value[*model.Inventory]
	applied   watch.Value[map[string]string] // labels as last applied; nil before
	group     atomic.Pointer[supervise.Group]

	mu        sync.Mutex
	models    []model.Spec // wanted by the configuration in force
	configErr error        // of the newest file, when it is not in force
}

func nvmlConfig(c config.Config, log *slog.Logger) nvml.Config {
	n := nvml.Config{
		Library: c.NVML.Library, Interval: time.Duration(c.NVML.Interval),
		Deadline: time.Duration(c.NVML.Deadline), Log: log,
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
	if a.policy, err = resource.NewPolicy(c.DevicePlugin.Policy()); err != nil {
		return nil, usageError{fmt.Errorf("devicePlugin: %w", err)}
	}
	if err := a.buildGate(); err != nil {
		return nil, err
	}
	door := kube.Config{
		NodeName: c.NodeName, Kubeconfig: c.Labels.Kubeconfig, PodResourcesSocket: c.PodResources.Socket,
		PodResourcesInterval: time.Duration(c.PodResources.Interval), Log: log.With("part", "kube"),
	}
	if c.PodResources.Enabled {
		a.owners = kube.NewOwners(door)
	}
	if c.DevicePlugin.Enabled {
		plugin := deviceplugin.Config{Dir: c.DevicePlugin.KubeletDir, Log: log.With("part", "deviceplugin")}
		if a.owners != nil {
			plugin.Allocated = a.owners.Poke
		}
		a.plugin = deviceplugin.New(plugin, a.policy, a.gate)
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
	if err := a.buildSources(); err != nil {
		return nil, err
	}
	return a, a.buildExporter()
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
	a.sources = map[string]cache.Source{"https": web, "http": web, "s3": bucket}
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

// runCache opens the cache and runs it. A root that cannot be opened is this task's failure alone.
func (a *agent) runCache(ctx context.Context) error {
	c := a.config.Cache
	opened, err := cache.Open(cache.Config{
		Root: c.Root, Limit: int64(c.Limit), Streams: c.Streams,
		Unlabelled: a.unlabelled, Log: a.log.With("part", "cache"),
	}, a.sources)
	if err != nil {
		return err
	}
	defer func() {
		a.cache.Store(nil)
		a.inventory.Set(nil)
		if err := opened.Close(); err != nil {
			a.log.Error("close the cache", "error", err)
		}
	}()
	a.mu.Lock()
	opened.Want(a.models)
	a.cache.Store(opened)
	a.mu.Unlock()

	ctx, stop := context.WithCancel(ctx)
	relayed := make(chan struct{})
	go func() {
		defer close(relayed)
		for {
			inventory, changed := opened.Watch()
			a.inventory.Set(inventory)
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	err = opened.Run(ctx)
	stop()
	<-relayed
	return err
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

// unlabelPatience bounds the wait for a label to go. Without an API server it never goes, and a model
// must be removable all the same.
const unlabelPatience = 30 * time.Second

// unlabelled waits until the node no longer promises the named model.
func (a *agent) unlabelled(ctx context.Context, name string) error {
	if a.sink == nil {
		return nil
	}
	patience := time.After(unlabelPatience)
	for {
		now, changed := a.applied.Watch()
		if _, promised := now[labels.ModelKey(name)]; !promised {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-patience:
			a.log.Warn("removing a model whose node label is still there: the labels could not be applied", "model", name)
			return nil
		}
	}
}

func (a *agent) runLabels(ctx context.Context) error {
	var inventories labels.Inventories
	if a.config.Cache.Enabled {
		inventories = &a.inventory
	}
	return labels.Run(ctx, labels.Config{
		Machine: labels.Machine(machineFile), Log: a.log.With("part", "labels"), Applied: a.applied.Set,
	}, a.gate, inventories, a.policy, a.sink)
}

func (a *agent) runCondition(ctx context.Context) error {
	return condition.Run(ctx, condition.Config{
		Condition: a.config.Labels.Condition, Events: a.config.Labels.Events, Log: a.log.With("part", "condition"),
	}, a.gate, a.node)
}

func (a *agent) runHTTP(ctx context.Context) error {
	handler, err := a.web(a.pages.Handler())
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.config.HTTP.Listen)
	if err != nil {
		return fmt.Errorf("http.listen: %w", err)
	}
	a.log.Info("listening", "address", l.Addr().String())
	return serve(ctx, l, handler, a.config.HTTP.WebConfigFile, a.log)
}

// runSocket answers the command line on a unix socket that only root may open.
func (a *agent) runSocket(ctx context.Context) error {
	path := a.config.HTTP.Socket
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("http.socket: %w", err)
	}
	if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close()
		return fmt.Errorf("http.socket: another agent answers on %s: stop it, or give this one another path", path)
	}
	l, err := listenPrivate(ctx, path)
	if err != nil {
		return fmt.Errorf("http.socket: %w", err)
	}
	return until(ctx, a.api(), a.log, func(srv *http.Server) error { return srv.Serve(l) })
}

// listenPrivate listens under another name until the mode is set: there is no moment at which
// somebody else could connect.
func listenPrivate(ctx context.Context, path string) (net.Listener, error) {
	fresh := path + ".new"
	for _, old := range []string{path, fresh} {
		if err := removeSocket(old); err != nil {
			return nil, err
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socket{Listener: l, path: path}, nil
}

// removeSocket removes what a killed agent left, and nothing that is not a socket.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is there and is no socket: remove it, or name another path", path)
	}
	return os.Remove(path)
}

// socket removes its file when it is closed.
type socket struct {
	net.Listener
	path string
	once sync.Once
}

func (s *socket) Close() error {
	err := s.Listener.Close()
	s.once.Do(func() { err = errors.Join(err, os.Remove(s.path)) })
	return err
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
	for _, offer := range a.policy.Offers(a.gate.Get()) {
		r := rows[offer.Resource]
		r.Resource, r.Devices = offer.Resource, len(offer.Units)
		for _, u := range offer.Units {
			if u.Healthy {
				r.Healthy++
			}
		}
		rows[r.Resource] = r
	}
	if name := a.policy.Resource(); len(rows) == 0 {
		rows[name] = exporter.ResourceStatus{Resource: name}
	}
	return exporter.PluginStatus{Allocations: s.Allocations, Resources: slices.Collect(maps.Values(rows))}
}

// state is everything that there is to show.
func (a *agent) state() *state {
	snapshot := a.gate.Get()
	s := &state{
		Version: version, Node: a.config.NodeName, Started: a.started, Tasks: a.tasks(),
		Snapshot: snapshot, Offers: a.policy.Offers(snapshot), Problems: a.policy.Problems(snapshot), Cache: a.inventory.Get(),
		Labels: maps.Clone(a.applied.Get()), Owners: map[gpu.UUID][]resource.Owner{},
	}
	if opened := a.cache.Load(); opened != nil {
		s.Cache = opened.Get() // a caller who just asked for a model must find it: the relay may be a moment late
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
