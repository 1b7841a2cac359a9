package resource

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// A Policy is a checked Config. It is a value without state, safe for concurrent use.
type Policy struct {
	cfg Config
}

// NewPolicy checks cfg and fills in its defaults. Its error is a Faults, meant for the administrator.
func NewPolicy(cfg Config) (Policy, error) {
	cfg.finish()
	if faults := cfg.faults(); len(faults) > 0 {
		return Policy{}, faults
	}
	return Policy{cfg}, nil
}

// Config is what the policy was made of, with its defaults filled in. It must not be changed.
func (p Policy) Config() Config { return p.cfg }

// Resource is the resource name that whole GPUs are offered under, unless another is given by model.
func (p Policy) Resource() string { return p.cfg.Resource }

// Ours reports whether a resource is of a domain that GPUs go by here: pods may still hold what was offered
// under a name that the policy no longer gives.
func (p Policy) Ours(resource string) bool {
	domain, _, _ := strings.Cut(resource, "/")
	ours := []string{"nvidia.com/", p.cfg.Resource}
	for _, n := range slices.Concat(p.cfg.GPUNames, p.cfg.MIGNames) {
		ours = append(ours, n.Resource)
	}
	if sharing, _, _ := p.cfg.sharing(); sharing != nil {
		for _, r := range sharing.Resources {
			ours = append(ours, r.Rename)
		}
	}
	return slices.ContainsFunc(ours, func(name string) bool { return strings.HasPrefix(name, domain+"/") })
}

// MIGStrategy is MIGNone, MIGSingle or MIGMixed.
func (p Policy) MIGStrategy() string { return p.cfg.MIGStrategy }

// Offers is what the node offers, sorted by resource: every GPU or MIG instance, healthy or not, for the
// kubelet counts the unhealthy ones in the capacity. A resource without a unit is no offer.
func (p Policy) Offers(s *gpu.Snapshot) []Offer {
	items, _ := p.items(s)
	offers := map[string]*Offer{}
	for _, it := range items {
		o := offers[it.resource]
		if o == nil {
			o = &Offer{Resource: it.resource}
			offers[it.resource] = o
		}
		if it.kind != "" {
			o.Sharing, o.Renamed = it.kind, it.resource != it.thing.resource
		}
		o.Units = append(o.Units, it.Unit)
	}
	var sorted []Offer
	for _, name := range slices.Sorted(maps.Keys(offers)) {
		sorted = append(sorted, *offers[name])
	}
	return sorted
}

// Problems is what of the configuration cannot hold on this node, one line each, for people; the rest
// of it holds. It depends on the GPUs that there are, so a check of the configuration cannot know it.
func (p Policy) Problems(s *gpu.Snapshot) []string {
	if s == nil || !s.Driver.Loaded {
		return nil // not known yet, or to be said of the driver
	}
	_, problems := p.items(s)
	return problems
}

// say notes one problem, for people.
type say func(format string, args ...any)

// unfit says why the GPU must not be given to a pod now; empty when it may.
func unfit(s *gpu.Snapshot, d *gpu.Device) string {
	switch {
	case !d.Health.OK():
		return cmp.Or(d.Health.Text, string(d.Health.Reason))
	case !s.Driver.Loaded:
		return "driver not loaded: " + cmp.Or(s.Driver.Error, "no reason given")
	}
	return ""
}
