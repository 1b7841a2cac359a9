package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/cdi"
	"github.com/gpu-agent/gpu-agent/pkg/condition"
	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin"
	"github.com/gpu-agent/gpu-agent/pkg/exporter"
	"github.com/gpu-agent/gpu-agent/pkg/kube"
	"github.com/gpu-agent/gpu-agent/pkg/labels"
	"github.com/gpu-agent/gpu-agent/pkg/mps"
	"github.com/gpu-agent/gpu-agent/pkg/nvml"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// wiring is the parts of one configuration. It is not changed once it is in force: an edit makes another one, which
// takes over the parts whose own configuration is the same.
type wiring struct {
	config config.Config
	made   map[string]any // by part, all of the configuration that it is made of; a part that is off has none

	monitor *nvml.Monitor
	specs   *cdi.Writer          // nil: off
	daemons *mps.Daemons         // nil: nothing is shared by MPS
	plugin  *deviceplugin.Plugin // nil: off
	dra     *kube.DRA            // nil: off
	owners  *kube.Owners         // nil: off
	seen    *kube.Pods           // nil: off
	node    *kube.Node           // nil: labels do not go to the API server
	sink    labels.Sink          // nil: off
	metrics http.Handler
	origins origins // none: the cache is off
	tasks   []task
}

// task is a part that runs.
type task struct {
	part string
	must bool // its failure ends the process
	run  func(context.Context) error
}

// part is whether and of what a part is made: anything that reflect.DeepEqual can compare.
type part struct {
	name string
	on   bool
	of   any
}

// wire makes the parts of a configuration, with those of the one in force that are the same. It starts nothing, and
// where it fails nothing has changed.
func (a *agent) wire(c config.Config) (*wiring, error) {
	w, before := &wiring{config: c, made: map[string]any{}}, a.now()
	if before == nil {
		before = &wiring{}
	}
	// What others are made of comes first.
	for _, add := range []func(w, before *wiring) error{
		a.addMonitor, a.addSpecs, a.addDaemons, a.addNode, a.addOwners, a.addPlugin, a.addDemand, a.addCache, a.addLabels, a.addPages,
	} {
		if err := add(w, before); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// keep notes a part. It reports whether it is on, and whether that of the wiring before is the same.
func (w *wiring) keep(before *wiring, p part) (on, same bool) {
	if !p.on {
		return false, false
	}
	w.made[p.name] = p.of
	of, was := before.made[p.name]
	return true, was && reflect.DeepEqual(of, p.of)
}

// again is a part as it was, or a new one where its configuration differs; the zero value where it is off.
func again[T any](w, before *wiring, p part, had T, build func() (T, error)) (made T, err error) {
	switch on, same := w.keep(before, p); {
	case !on:
		return made, nil
	case same:
		return had, nil
	}
	return build()
}

// task notes that a part runs; without a configuration of its own it runs from the first to the last day.
func (w *wiring) task(before *wiring, p part, run func(context.Context) error) {
	if on, _ := w.keep(before, p); on {
		w.tasks = append(w.tasks, task{part: p.name, run: run})
	}
}

// must is task for what the agent cannot be without.
func (w *wiring) must(before *wiring, p part, run func(context.Context) error) {
	if on, _ := w.keep(before, p); on {
		w.tasks = append(w.tasks, task{part: p.name, must: true, run: run})
	}
}

// changed are the parts that are not in both, or of another configuration, sorted.
func (w *wiring) changed(before *wiring) []string {
	names := map[string]bool{}
	for name, of := range w.made {
		if was, ok := before.made[name]; !ok || !reflect.DeepEqual(was, of) {
			names[name] = true
		}
	}
	for name := range before.made {
		if _, ok := w.made[name]; !ok {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// edit puts another configuration into force: what is offered to the kubelet, the models and the log at once, and the
// parts whose own configuration differs by others in their place. The rest, the kubelet's streams among it, sees
// nothing of it. A configuration of which nothing can be made changes nothing.
func (a *agent) edit(c config.Config) error {
	before := a.now()
	w, err := a.wire(c)
	if err != nil {
		return err
	}
	policy, err := resource.NewPolicy(c.Policy())
	if err != nil {
		return fmt.Errorf("devicePlugin: %w", err)
	}
	if err := a.canFollow(w, before, policy); err != nil {
		return err
	}
	for _, note := range c.Notes {
		if !slices.Contains(before.config.Notes, note) {
			a.log.Info("configuration", "note", note)
		}
	}
	a.logging.set(c.Log)
	a.wired.Store(w)
	if !sameOffer(before.config, c) {
		a.log.Info("configuration changed: what is offered to the kubelet")
		a.policy.Set(policy)
	}
	changed := w.changed(before)
	if len(changed) > 0 {
		a.log.Info("configuration changed: other parts take over", "parts", changed)
	}
	if a.group != nil {
		a.group.Stop(changed...)
	}
	if w.dra == nil {
		a.elsewhere.Set("") // nobody is asked
	}
	a.span(c.Cache)
	a.want(a.fitted(c))
	if a.group != nil {
		a.start(before)
	}
	if w.daemons != nil {
		w.daemons.Poke()
	}
	a.gate.Poke()
	return nil
}

// start starts the parts in force that were not so before.
func (a *agent) start(before *wiring) {
	changed := a.now().changed(before)
	for _, t := range a.now().tasks {
		switch {
		case !slices.Contains(changed, t.part):
		case t.must:
			a.group.Must(t.part, t.run)
		default:
			a.group.Keep(t.part, t.run)
		}
	}
}

// sameOffer reports whether two configurations make the same policy.
func sameOffer(a, b config.Config) bool {
	p, q := a.Policy(), b.Policy()
	p.Exists, q.Exists = nil, nil
	return reflect.DeepEqual(p, q)
}

func (a *agent) addMonitor(w, before *wiring) (err error) {
	type of struct {
		nvml   config.NVML
		health config.Health
	}
	p := part{"nvml", true, of{w.config.NVML, w.config.Health}}
	w.monitor, err = again(w, before, p, before.monitor, func() (*nvml.Monitor, error) {
		m, err := nvml.New(nvmlConfig(w.config, a.log.With("part", "nvml")))
		if err != nil {
			return nil, usageError{err}
		}
		if before.monitor == nil {
			return m, nil
		}
		if err := m.Follow(before.monitor); err != nil {
			return nil, usageError{fmt.Errorf("nvml: %w", err)}
		}
		return m, nil
	})
	if err != nil {
		return err
	}
	if a.gate == nil {
		a.gate = a.newGate(w.monitor) // whoever follows this one publishes to the same watchers
	}
	w.must(before, p, w.monitor.Run)
	w.must(before, part{"ready", true, nil}, a.gate.Run)
	return nil
}

// nodeOf is what the way to the Node object is made of.
type nodeOf struct{ name, kubeconfig string }

func (a *agent) addNode(w, before *wiring) (err error) {
	c := w.config
	of := nodeOf{c.NodeName, c.Labels.Kubeconfig}
	w.node, err = again(w, before, part{"node", c.Labels.Sink == "node", of}, before.node, func() (*kube.Node, error) {
		n, err := kube.NewNode(a.door(c))
		if err != nil {
			return nil, usageError{fmt.Errorf("labels.sink is node, but the API server cannot be reached: %w; set labels.sink to file or none where there is no cluster", err)}
		}
		return n, nil
	})
	if err != nil {
		return err
	}
	w.task(before, part{"taint", c.Labels.StartupTaint, of}, func(ctx context.Context) error { return a.runTaint(ctx, w.node) })
	w.task(before, part{"choice", c.DevicePlugin.NVIDIAConfigDir != "", of}, func(ctx context.Context) error { return a.runChoice(ctx, w.node) })
	return nil
}

// door is where the kubelet and the API server are.
func (a *agent) door(c config.Config) kube.Config {
	return kube.Config{
		NodeName: c.NodeName, Kubeconfig: c.Labels.Kubeconfig, PodResourcesSocket: c.PodResources.Socket,
		PodResourcesInterval: time.Duration(c.PodResources.Interval), PodsSocket: c.Cache.Demand.Socket, Log: a.log.With("part", "kube"),
		Ours: func(name string) bool { return a.policy.Get().Ours(name) },
	}
}

func (a *agent) addOwners(w, before *wiring) (err error) {
	type of struct {
		node string
		pods config.PodResources
	}
	p := part{"pods", w.config.PodResources.Enabled, of{w.config.NodeName, w.config.PodResources}}
	w.owners, err = again(w, before, p, before.owners, func() (*kube.Owners, error) { return kube.NewOwners(a.door(w.config)), nil })
	if w.owners != nil {
		w.task(before, p, w.owners.Run)
	}
	return err
}

func (a *agent) addPlugin(w, before *wiring) (err error) {
	on := w.config.Allocation == config.AllocateByPlugin
	p := part{"deviceplugin", on, w.config.DevicePlugin.KubeletDir}
	w.plugin, err = again(w, before, p, before.plugin, func() (*deviceplugin.Plugin, error) {
		return deviceplugin.New(deviceplugin.Config{
			Dir: w.config.DevicePlugin.KubeletDir, Log: a.log.With("part", "deviceplugin"), Elsewhere: &a.elsewhere,
			Allocated: func() {
				if owners := a.now().owners; owners != nil {
					owners.Poke()
				}
			},
		}, &a.policy, a.gate), nil
	})
	if w.plugin != nil {
		w.must(before, p, w.plugin.Run)
	}
	p = part{"dra", on && w.node != nil, w.made["node"]}
	w.dra, _ = again(w, before, p, before.dra, func() (*kube.DRA, error) { return kube.NewDRA(w.node, &a.elsewhere), nil })
	if w.dra != nil {
		w.task(before, p, w.dra.Run)
	}
	return err
}

// origins is what the caches of all disks read from, and the way there, which they share.
type origins struct {
	sources map[string]cache.Source
	waiting []*unbuilt // of them
	line    *cache.Line
}

// faults is what is wrong with the settings of the sources.
func (o origins) faults() (all web.Faults) {
	for _, u := range o.waiting {
		all = append(all, u.faults...)
	}
	return all
}

// await fails while a source cannot be built: run again and again, it says so as long as it is so.
func (o origins) await(ctx context.Context) error {
	var all []string
	for _, u := range o.waiting {
		if _, err := u.source(); err != nil {
			all = append(all, err.Error())
		}
	}
	if len(all) > 0 {
		return errors.New(strings.Join(all, "; "))
	}
	<-ctx.Done()
	return nil
}

// addCache adds the caches, a part for each disk: what ails one is its own.
func (a *agent) addCache(w, before *wiring) (err error) {
	c := w.config.Cache
	c.Models, c.Demand = nil, config.Demand{} // an open cache takes these
	type of struct {
		sources   config.Sources
		streams   int
		bandwidth config.Bandwidth
	}
	p := part{"origins", c.Enabled, of{c.Sources, c.Streams, c.Bandwidth}}
	w.origins, err = again(w, before, p, before.origins, func() (origins, error) {
		sources, waiting := buildSources(c, func(f web.Faults) faultLines { return linesOf(a.now().config, f) })
		return origins{sources, waiting, cache.NewLine(c.Streams, bandwidth(c.Bandwidth))}, nil
	})
	o := w.origins
	w.task(before, part{"sources", len(o.waiting) > 0, p.of}, o.await)
	var wrong faultLines // that was not so before
	if c.Enabled {
		had := ""
		if before.config.Cache.Enabled {
			had = append(before.origins.faults(), referenceFaults(before.config.Cache)...).Error()
		}
		for _, f := range append(o.faults(), referenceFaults(w.config.Cache)...) {
			if !strings.Contains(had, f.Err.Error()) {
				wrong = append(wrong, linesOf(w.config, web.Faults{f})...)
			}
		}
	}
	switch {
	case len(wrong) > 0 && a.group != nil:
		return wrong
	case len(wrong) > 0: // the first configuration: what the cache lacks is no reason not to offer the GPUs
		for _, line := range wrong {
			a.log.Error("the configuration of the model cache is wrong", "fault", line)
		}
	}
	type one struct {
		cache   config.Cache
		apart   []string
		kubelet string
	}
	var apart []string
	for _, d := range append([]config.Disk{{Root: c.Root, Limit: c.Limit}}, c.Disks...) {
		on := one{c.Only(d), slices.Clone(apart), w.config.DevicePlugin.KubeletDir}
		w.task(before, part{diskPart(d.Name), c.Enabled, on}, func(ctx context.Context) error {
			return a.runCache(ctx, d.Name, on.cache, on.kubelet, o, on.apart)
		})
		apart = append(apart, d.Root)
	}
	return err
}

// diskPart is the part that keeps the cache of a disk.
func diskPart(name string) string {
	if name == "" {
		return "cache"
	}
	return "cache/" + name
}

func (a *agent) addLabels(w, before *wiring) error {
	c := w.config.Labels
	switch c.Sink {
	case "node":
		w.sink = w.node
	case "file":
		w.sink = labels.FileSink{Path: c.File}
	}
	type of struct {
		sink, file string
		node       any
		models     bool
	}
	w.task(before, part{"labels", w.sink != nil, of{c.Sink, c.File, w.made["node"], w.config.Cache.Enabled}}, func(ctx context.Context) error {
		var inventories labels.Inventories
		if w.config.Cache.Enabled {
			inventories = a.caches.Promised()
		}
		return labels.Run(ctx, labels.Config{
			Machine: labels.Machine(machineFile), Log: a.log.With("part", "labels"), Applied: a.applied.Set,
		}, a.gate, inventories, &a.policy, w.sink)
	})
	type tells struct {
		condition, events bool
		node              any
	}
	w.task(before, part{"condition", w.node != nil, tells{c.Condition, c.Events, w.made["node"]}}, func(ctx context.Context) error {
		return condition.Run(ctx, condition.Config{
			Condition: c.Condition, Events: c.Events, Log: a.log.With("part", "condition"),
		}, a.gate, w.node)
	})
	return nil
}

// addPages adds what can be asked of the agent.
func (a *agent) addPages(w, before *wiring) (err error) {
	c := w.config
	type of struct {
		exporter          config.Exporter
		node              string
		pods, plugin, has bool
	}
	shown := of{c.Exporter, c.NodeName, w.owners != nil, w.plugin != nil, c.Cache.Enabled}
	w.metrics, err = again(w, before, part{"exporter", true, shown}, before.metrics, func() (http.Handler, error) {
		e, err := exporter.New(exporter.Config{
			Schemas: c.Exporter.Schemas, Hostname: c.NodeName, Version: version,
			XIDHold: time.Duration(c.Exporter.XIDHold), Log: a.log.With("part", "exporter"),
		}, a.shown(w))
		if err != nil {
			return nil, err
		}
		return e.Handler(), nil
	})
	w.task(before, part{"http", true, [2]string{c.HTTP.Listen, c.HTTP.WebConfigFile}}, func(ctx context.Context) error { return a.runHTTP(ctx, c.HTTP) })
	w.task(before, part{"socket", true, c.HTTP.Socket}, func(ctx context.Context) error { return a.runSocket(ctx, c.HTTP.Socket) })
	return err
}

// shown is what the metrics are of. The parts are those in force at each scrape.
func (a *agent) shown(w *wiring) exporter.Sources {
	s := exporter.Sources{Snapshot: a.gate.Get, Tasks: a.tasksUp}
	if w.owners != nil {
		s.Owners = a.owners
	}
	if w.plugin != nil {
		s.Plugin = a.pluginStatus
	}
	if w.config.Cache.Enabled {
		s.Inventory = a.caches.Get
	}
	return s
}
