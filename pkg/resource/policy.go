package resource

import (
	"cmp"
	"fmt"
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
func (p Policy) Problems(s *gpu.Snapshot) []string { return p.findings(s).all }

// Unfit is of the Problems those that name what is not on this node or contradict each other there. The others may be
// meant: a rule for nodes of another kind, a GPU in MIG mode that is not to be offered.
func (p Policy) Unfit(s *gpu.Snapshot) []string { return p.findings(s).wrong }

func (p Policy) findings(s *gpu.Snapshot) *findings {
	if s == nil || !s.Driver.Loaded {
		return &findings{} // not known yet, or to be said of the driver
	}
	_, f := p.items(s)
	return f
}

// findings are what of the configuration does not fit a node, each once.
type findings struct{ all, wrong []string }

// note adds what may be meant.
func (f *findings) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(f.all, text) {
		f.all = append(f.all, text)
	}
}

// unfit adds what cannot be.
func (f *findings) unfit(format string, args ...any) {
	f.note(format, args...)
	if text := fmt.Sprintf(format, args...); !slices.Contains(f.wrong, text) {
		f.wrong = append(f.wrong, text)
	}
}

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
