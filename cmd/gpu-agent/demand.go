package main

import (
	"cmp"
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/kube"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// need is what the pods of this node need, as it was last told.
type need struct {
	off     bool // nobody looks
	unknown string
	uses    []model.Use
	unseen  string // why uses may be out of date, or are none
}

// addDemand adds the parts that see what the pods of this node need, and that judge which models are for it.
func (a *agent) addDemand(w, before *wiring) (err error) {
	c := w.config
	type of struct {
		source, socket string
		node           any
	}
	p := part{"demand", c.Cache.Enabled && c.Cache.Demand.Source != config.DemandByNone, of{c.Cache.Demand.Source, c.Cache.Demand.Socket, w.made["node"]}}
	w.seen, err = again(w, before, p, before.seen, func() (*kube.Pods, error) {
		if c.Cache.Demand.Source == config.DemandByServer {
			return kube.NewPodsOf(a.door(c), w.node), nil
		}
		return kube.NewPods(a.door(c)), nil
	})
	if err != nil {
		return err
	}
	if w.seen != nil {
		w.task(before, p, w.seen.Run)
	}
	type judged struct {
		models []config.Model
		demand config.Demand
		roots  []string
		node   any
	}
	w.task(before, part{"needs", c.Cache.Enabled, judged{c.Cache.Models, c.Cache.Demand, hostModels(c), w.made["node"]}}, func(ctx context.Context) error { return a.runNeeds(ctx, w) })
	return nil
}

// hostModels is where the host has the cache's models, of each disk once or twice.
func hostModels(c config.Config) []string {
	all := []string{path.Join(cmp.Or(c.DevicePlugin.InjectModelsMount.HostRoot, c.Cache.Root), "models")}
	for _, d := range c.Cache.Disks {
		all = append(all, path.Join(d.Root, "models"), path.Join(all[0], "disks", d.Name))
	}
	return all
}

// runNeeds tells the cache what it should hold and what pods use, as the GPUs, the Node's labels and the pods change.
func (a *agent) runNeeds(ctx context.Context, w *wiring) error {
	c := w.config
	selects := slices.ContainsFunc(c.Cache.Models, func(m config.Model) bool { return len(m.NodeSelector) > 0 })
	next, failing := time.Now(), false
	said := map[string]bool{}
	for {
		if selects && !time.Now().Before(next) {
			labels, err := w.node.Labels(ctx)
			if err == nil {
				a.nodeLabels.Set(labels)
			} else if ctx.Err() == nil && !failing {
				a.log.Warn("the node's labels cannot be read: models stay as they are", "error", err)
			}
			failing, next = err != nil, time.Now().Add(choiceInterval)
		}
		_, regpu := a.gate.Watch()
		a.want(a.fitted(c))
		var seen <-chan struct{}
		told := need{off: true}
		if w.seen != nil {
			var list kube.PodList
			list, seen = w.seen.Watch()
			told = a.needOf(c, list, said)
		}
		told.tell(a.caches)
		var tick <-chan time.Time
		if selects {
			tick = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-regpu:
		case <-seen:
		case <-tick:
		}
	}
}

func (a *agent) fitted(c config.Config) []model.Spec {
	return fitted(c.Cache, a.gate.Get(), a.nodeLabels.Get())
}

// needOf is what a list of pods needs. said are the complaints that were logged.
func (a *agent) needOf(c config.Config, list kube.PodList, said map[string]bool) need {
	if !list.Known {
		return need{unknown: cmp.Or(list.Problem, "the pods of this node have not been listed yet")}
	}
	n := need{unseen: list.Problem}
	for _, p := range list.Pods {
		uses, problems := usesOf(p, c.Cache.Demand, hostModels(c)...)
		n.uses = append(n.uses, uses...)
		for _, err := range problems {
			if line := p.UID + err.Error(); !said[line] {
				said[line] = true
				a.log.Warn("a pod's annotation is not followed", "annotation", kube.ModelsAnnotation, "pod", p.String(), "error", err)
			}
		}
	}
	return n
}

// usesOf is what a pod asks for in its annotation and mounts by its volumes.
func usesOf(p kube.Pod, d config.Demand, models ...string) (uses []model.Use, problems []error) {
	needs, problems := model.ParseNeeds(p.Models)
	for _, n := range needs {
		if n.Source != (model.Ref{}) && (!d.References || !n.Source.Under(d.Prefixes)) {
			problems = append(problems, errors.New(n.Source.String()+": not among what pods may ask for: see cache.demand.prefixes, or name a model of the config"))
			continue
		}
		uses = append(uses, model.Use{Model: n.Name, Revision: n.Revision, Since: p.Created, By: p.String(), Pull: true, Source: n.Source})
	}
	for _, at := range p.HostPaths {
		for _, folder := range models {
			if use, ok := useOf(strings.TrimPrefix(path.Clean(at), folder+"/")); ok {
				use.Since, use.By = p.Created, p.String()
				uses = append(uses, use)
			}
		}
	}
	return uses, problems
}

// useOf is what a mount of a folder below models/ uses. Of several models at once it does not tell which.
func useOf(folder string) (use model.Use, ok bool) {
	parts := append(strings.Split(folder, "/"), "", "")
	switch repo, isRepo := strings.CutPrefix(parts[1], "models--"); {
	case parts[0] == "by-name" && parts[1] != "":
		use.Model, use.Revision, _ = strings.Cut(parts[1], "@")
		return use, true
	case parts[0] == "hub" && isRepo:
		use.Repo = strings.ReplaceAll(repo, "--", "/") // the hub has no names with two
		if parts[2] == "snapshots" && len(parts) > 5 {
			use.Revision = parts[3]
		}
		return use, true
	}
	return use, false
}

// tell has the cache know what pods need, now and when a disk opens.
func (n need) tell(c *cache.Set) {
	switch {
	case n.off:
		c.InUse(nil)
	case n.unknown != "":
		c.Unsure(n.unknown)
	default:
		c.InUse(n.uses)
	}
	c.Unseen(n.unseen)
}
