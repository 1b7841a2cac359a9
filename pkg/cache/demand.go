package cache

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// InUse replaces what is known of the pods that run on this node with models. What one of them asks for is
// pulled, before all else, and stays; what it uses stays: the model, an old revision that it names, or one that it
// may have opened because it began before the revision was replaced.
func (c *Cache) InUse(pods []model.Use) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blind = ""
	c.pods = slices.Clone(pods)
	c.recall()
}

// Unsure says that it is not known what the pods on this node use, and why: what could be in use stays, and so do
// partial downloads, until InUse says more. Call it before Run, where InUse is to come.
func (c *Cache) Unsure(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blind = why
	c.changed()
}

// Unseen says why pods are not seen now, "" where they are. What InUse or Unsure said last holds all the same.
func (c *Cache) Unseen(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unseen != why {
		c.unseen = why
		c.publish()
	}
}

func (c *Cache) blindness() string {
	return "which models the pods on this node use is not known, so nothing is evicted: " + c.blind
}

// recall reckons anew what pods ask for, and lets go of pulls that they asked for. c.mu is held.
func (c *Cache) recall() {
	before := map[*entry]model.Ref{}
	for _, e := range c.models {
		if e.asked() {
			before[e] = e.ref()
		}
	}
	c.call()
	for e, old := range before {
		if !e.asked() || e.ref() != old {
			e.restart()
		}
	}
	c.roomChanged()
	c.changed()
}

// call reckons what the pods ask for and use. c.mu is held.
func (c *Cache) call() {
	for _, e := range c.models {
		e.called, e.calledAt, e.pods = false, model.Ref{}, nil
	}
	was := c.refused
	c.refused = map[string]string{}
	pods := slices.Clone(c.pods)
	slices.SortStableFunc(pods, func(a, b model.Use) int { return a.Since.Compare(b.Since) }) // who came first decides on the source
	for _, u := range pods {
		if u.Repo != "" {
			for _, e := range c.models {
				if e.meant(u) && e.current(u.Revision) {
					e.pods = append(e.pods, u.By)
				}
			}
			continue
		}
		e, why := c.answer(u)
		if e != nil && (u.Pull || e.current(u.Revision)) {
			e.pods = append(e.pods, u.By)
		}
		if why != "" && c.refused[u.Model] == "" {
			c.refused[u.Model] = fmt.Sprintf("pod %s asks for model %s: %s", u.By, u.Model, why)
			if was[u.Model] != c.refused[u.Model] {
				c.log.Warn("a pod asks for a model that it does not get", "pod", u.By, "model", u.Model, "why", why)
			}
		}
	}
	for _, e := range c.models {
		slices.Sort(e.pods)
		e.pods = slices.Compact(e.pods)
		if e.job != nil {
			c.streams.prefer(e.job, e.rank())
		}
	}
}

// refusals are what pods ask for and do not get, of one model or ("") of all. c.mu is held.
func (c *Cache) refusals(name string) (texts []string) {
	for of, text := range c.refused {
		if name == "" || name == of {
			texts = append(texts, text)
		}
	}
	for _, u := range c.pods {
		if e := c.models[u.Model]; u.Pull && e != nil && c.refused[u.Model] == "" && (name == "" || name == e.name) {
			if why := e.lacks(u.Revision); why != "" {
				texts = append(texts, fmt.Sprintf("pod %s asks for %s@%s, %s", u.By, u.Model, u.Revision, why))
			}
		}
	}
	slices.Sort(texts)
	return slices.Compact(texts)
}

// lacks says why a revision that a pod names does not come; "" where it is here, or may come. A pod has twelve
// characters of it, and by those no origin finds one.
func (e *entry) lacks(revision string) string {
	origin := cmp.Or(e.seen, e.memory.Origin)
	if revision == "" || origin == "" && e.visible == nil {
		return ""
	}
	short := model.Revision12(revision)
	var here []string
	for _, r := range e.records() {
		if r.short() == short {
			return ""
		}
		here = append(here, r.short())
	}
	if model.Revision12(origin) == short && !e.held() {
		return "" // on its way
	}
	has := "which is not on this node"
	if len(here) > 0 {
		has += " (here is " + strings.Join(here, ", ") + ")"
	}
	return fmt.Sprintf("%s and not what %s stands for: pull it from a source that names the whole revision", has, e.origin())
}

// meant reports whether a pod uses e, in whatever revision.
func (e *entry) meant(u model.Use) bool {
	if u.Repo == "" {
		return u.Model == e.name
	}
	return slices.ContainsFunc(e.records(), func(r *record) bool { return r.Hub.Repo == u.Repo })
}

// current reports whether a revision that a pod names is the one that is visible; "" is.
func (e *entry) current(revision string) bool {
	return revision == "" || e.visible != nil && e.visible.short() == model.Revision12(revision)
}

func (e *entry) rank() rank { return rank{called: e.called, priority: e.priority()} }

// answer is the entry that a pod means, nil where there is none, called if the pod asks for it; why says why not.
func (c *Cache) answer(u model.Use) (e *entry, why string) {
	e = c.models[u.Model]
	if !u.Pull {
		return e, ""
	}
	if e == nil && u.Source == (model.Ref{}) || e != nil && u.Source == (model.Ref{}) && e.origin() == (model.Ref{}) {
		return e, "the config does not name it, and nobody pulled it"
	}
	if e != nil && e.listed && e.spec.Unfit != "" {
		return e, "it is " + e.spec.Unfit
	}
	if e == nil {
		if _, ok := c.sources[u.Source.Scheme]; !ok {
			return nil, c.unknownScheme(u.Source).Error()
		}
		e = c.entry(u.Model)
	}
	from := e.calledAt
	if from == (model.Ref{}) {
		from = e.origin()
	}
	switch {
	case u.Source == (model.Ref{}):
	case from == (model.Ref{}):
		e.calledAt = u.Source
	case from != u.Source:
		return e, fmt.Sprintf("it comes from %s here, not from %s: give the other another name", from, u.Source)
	}
	if e.listed || e.memory.Ref != (model.Ref{}) || e.calledAt != (model.Ref{}) {
		e.called = true
	}
	return e, ""
}

// priority is 0 of what the config does not name.
func (e *entry) priority() int {
	if e.listed {
		return e.spec.Priority
	}
	return 0
}

// skipped is the status of a model that the config names and that nobody asks for here.
func (c *Cache) skipped(e *entry, s *model.Status) {
	s.State = model.Skipped
	s.Reason, s.Message = "OnDemand", "it comes when a pod on this node asks for it"
	if e.spec.Unfit != "" {
		s.Reason, s.Message = "NotForThisNode", e.spec.Unfit
	}
}

// spared reports whether m must not be evicted for the sake of e, nil where it is for the limit's. What the config
// asks for goes only for what has a higher priority: two models that do not fit together would evict each other for
// ever. What nobody asks for goes for all that a pod asks for, and else for what has no lower priority. c.mu is held.
func (c *Cache) spared(m, e *entry) bool {
	switch {
	case m.visible == nil, m == e, m.pinned(), m.removing, m.busy != nil, m.kept > 0, m.called, len(m.pods) > 0, c.blind != "":
		return true
	case m.wanted:
		return e == nil || e.priority() <= m.priority()
	}
	return e != nil && !e.called && e.priority() < m.priority()
}

// remedy is what may help a model for which there is no room; keeps is what of the disk stays free, "" where the
// limit is reached first.
func (c *Cache) remedy(keeps string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blind != "" {
		return c.blindness()
	}
	if keeps != "" {
		return keeps + ": make room on the disk, or unpin or remove models"
	}
	return "raise the limit, or unpin or remove models"
}
