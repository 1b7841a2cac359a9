package resource

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// How the units of an offer are shared, as node labels say it.
const (
	TimeSliced = "time-slicing"
	ByMPS      = "mps"
)

// sharing is the one kind of sharing that is in force, its name, and the key that configures it.
func (c *Config) sharing() (s *Sharing, kind, path string) {
	switch {
	case c.MPS != nil:
		return c.MPS, ByMPS, "sharing.mps"
	case c.TimeSlicing != nil:
		return c.TimeSlicing, TimeSliced, "sharing.timeSlicing"
	}
	return nil, "", ""
}

// maxReplicas is far above what a GPU can serve. Each share is a device in every list to the kubelet, and
// a slip of the keyboard must not cost the node its memory.
const maxReplicas = 1000

var deviceRef = lazyregexp.New(`^([0-9]{1,4}(:[0-9]{1,4})?|(GPU|MIG)-[-0-9A-Za-z]+)$`) // read-only

func (c *Config) sharingFaults(f *Faults) {
	if c.TimeSlicing != nil && c.MPS != nil {
		f.add("sharing", "timeSlicing and mps are both there: want one of the two")
		return
	}
	s, kind, path := c.sharing()
	if s == nil {
		return
	}
	if kind == ByMPS {
		c.mpsFaults(f, path)
	}
	if len(s.Resources) == 0 {
		f.add(path+".resources", "want at least one resource to share")
	}
	for i, r := range s.Resources {
		at := fmt.Sprintf("%s.resources[%d]", path, i)
		f.name(at+".name", r.Name)
		if renamed := s.rename(r); renamed != r.Name {
			f.name(at+".rename", renamed)
		}
		if r.Replicas < 2 {
			f.add(at+".replicas", "want 2 or more, got %d", r.Replicas)
		}
		if r.Replicas > maxReplicas {
			f.add(at+".replicas", "want at most %d, got %d", maxReplicas, r.Replicas)
		}
		for j, ref := range r.Devices {
			if !deviceRef().MatchString(ref) {
				f.add(fmt.Sprintf("%s.devices[%d]", at, j), "%q: want an index such as 0, of a MIG instance 0:1, or a UUID", ref)
			}
		}
		if j, what := overlap(s.Resources[:i], r); what != "" {
			f.add(at+".devices", "two rules for %s of %s: it is shared by %s.resources[%d] already", what, r.Name, path, j)
		}
	}
}

// overlap finds a rule before r that shares the same, as far as the configuration alone can tell.
func overlap(before []Shared, r Shared) (int, string) {
	for i, b := range before {
		switch {
		case b.Name != r.Name:
		case len(b.Devices) == 0 && b.Count == 0, len(r.Devices) == 0 && r.Count == 0:
			return i, "all GPUs"
		case b.Count > 0 && r.Count > 0:
			return i, "the first GPU"
		default:
			for _, ref := range r.Devices {
				if slices.Contains(b.Devices, ref) {
					return i, "GPU " + ref
				}
			}
		}
	}
	return 0, ""
}

// rename is what r's shares go by.
func (s *Sharing) rename(r Shared) string {
	switch {
	case r.Rename != "":
		return r.Rename
	case s.RenameByDefault:
		return r.Name + ".shared"
	}
	return r.Name
}

// rules says which rule of sharing holds for each of the things: an index into Resources, or -1.
func (p Policy) rules(things []thing, found *findings) []int {
	rules := slices.Repeat([]int{-1}, len(things))
	s, _, path := p.cfg.sharing()
	if s == nil {
		return rules
	}
	for i, r := range s.Resources {
		at := fmt.Sprintf("%s.resources[%d]", path, i)
		for _, t := range r.selected(at, things, found) {
			if j := rules[t]; j >= 0 {
				found.unfit("%s.devices: two rules for GPU %s: it is shared by %s.resources[%d]", at, things[t].index(), path, j)
				continue
			}
			rules[t] = i
		}
	}
	return rules
}

// selected are the things that r shares, by their place in the list.
func (r Shared) selected(at string, things []thing, found *findings) []int {
	var of []int // those of the resource
	for i, t := range things {
		if t.resource == r.Name {
			of = append(of, i)
		}
	}
	switch {
	case len(r.Devices) > 0:
		return r.listed(at, things, found)
	case len(of) == 0:
		found.note("%s.name: nothing on this node is offered as %s, so nothing is shared", at, r.Name)
	case r.Count > len(of):
		found.note("%s.devices: want %d of %s, but this node has %d: all are shared", at, r.Count, r.Name, len(of))
	case r.Count > 0:
		return of[:r.Count]
	}
	return of
}

func (r Shared) listed(at string, things []thing, found *findings) []int {
	var of []int
	for j, ref := range r.Devices {
		i := slices.IndexFunc(things, func(t thing) bool { return t.index() == ref || string(t.uuid()) == ref })
		switch {
		case i < 0:
			found.unfit("%s.devices[%d]: there is no %s to share on this node", at, j, describe(ref))
		case things[i].resource != r.Name:
			found.unfit("%s.devices[%d]: %s is offered as %s, not as %s", at, j, describe(ref), things[i].resource, r.Name)
		case !slices.Contains(of, i):
			of = append(of, i)
		}
	}
	return of
}

func describe(ref string) string {
	if strings.HasPrefix(ref, "MIG-") || strings.Contains(ref, ":") {
		return "MIG instance " + ref
	}
	return "GPU " + ref
}

// item is one unit with what it is made of.
type item struct {
	Unit
	thing
	resource string // that it is offered as
	kind     string // of sharing; "" for a unit that is no share
	replicas int    // of the thing; 1 unless shared
}

// items are all units in the order of their GPUs, instances and shares; and, for people, what of the
// configuration does not fit this node. What does not fit costs only those whom it is about.
func (p Policy) items(s *gpu.Snapshot) (items []item, found *findings) {
	if s == nil {
		return nil, &findings{}
	}
	found = &findings{}
	things := p.things(p.visible(s, found), found)
	rules := p.rules(things, found)
	sharing, kind, path := p.cfg.sharing()
	lacking := p.lacking(found)
	for i, t := range things {
		why := unfit(s, t.device)
		if why == "" {
			why = lacking
		}
		u := Unit{ID: ID(t.uuid()), Device: t.device.UUID, Healthy: why == "", Reason: why, NUMANode: t.device.NUMANode}
		if t.instance != nil {
			u.Instance = t.instance.UUID
		}
		if rules[i] < 0 {
			items = append(items, item{u, t, t.resource, "", 1})
			continue
		}
		r := sharing.Resources[rules[i]]
		if no := t.unshareable(kind, r.Replicas); no != "" {
			found.unfit("%s.resources[%d]: GPU %s is not offered: %s", path, rules[i], t.index(), no)
			continue
		}
		for n := range r.Replicas {
			u.ID = share(t.uuid(), n)
			items = append(items, item{u, t, sharing.rename(r), kind, r.Replicas})
		}
	}
	return items, found
}
