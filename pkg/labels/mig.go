package labels

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// addMIG adds GFD's labels for the MIG strategy to those of whole GPUs. With single they stand in place
// of some of them.
func addMIG(l map[string]string, devices []gpu.Device, offers []resource.Offer, strategy string) {
	if strategy == resource.MIGSingle || strategy == resource.MIGMixed {
		l[nvidiaPrefix+"mig.strategy"] = strategy
	}
	split := slices.IndexFunc(devices, func(d gpu.Device) bool { return d.MIGEnabled })
	switch {
	case split < 0:
	case strategy == resource.MIGMixed:
		for profile, group := range byProfile(devices) {
			maps.Copy(l, instanceLabels("mig-"+profile, profile, group, offers))
		}
	case strategy == resource.MIGSingle:
		delete(l, nvidiaPrefix+"gpu.memory") // of the whole GPU
		// The instances that are offered have one profile, or none is offered.
		for profile, group := range byProfile(devices) {
			if group.offered(offers) {
				maps.Copy(l, instanceLabels("gpu", profile, group, offers))
				return
			}
		}
		for name, value := range map[string]string{
			"product": product(share{}, devices[split].Name, "MIG", "INVALID"),
			"count":   "0", "replicas": "0", "sharing-strategy": "", "memory": "0",
		} {
			l[nvidiaPrefix+"gpu."+name] = value
		}
	}
}

// instances are all of one profile, in the order of their GPUs.
type instances struct {
	model string // of the first one's GPU
	all   []gpu.Instance
}

// byProfile goes by NVIDIA's names of profiles, in which "+" is written ".".
func byProfile(devices []gpu.Device) map[string]*instances {
	groups := map[string]*instances{}
	for _, d := range slices.SortedFunc(slices.Values(devices), func(a, b gpu.Device) int { return a.Index - b.Index }) {
		for _, in := range d.Instances {
			profile := sanitise(strings.ReplaceAll(in.Profile, "+", "."))
			if !d.MIGEnabled || profile == "" {
				continue
			}
			if groups[profile] == nil {
				groups[profile] = &instances{model: d.Name}
			}
			groups[profile].all = append(groups[profile].all, in)
		}
	}
	return groups
}

func (g *instances) has(u resource.Unit) bool {
	return u.Instance != "" && slices.ContainsFunc(g.all, func(in gpu.Instance) bool { return in.UUID == u.Instance })
}

func (g *instances) offered(offers []resource.Offer) bool {
	return slices.ContainsFunc(offers, func(o resource.Offer) bool { return slices.ContainsFunc(o.Units, g.has) })
}

// instanceLabels are those of one profile. What the driver does not say of an instance is absent.
func instanceLabels(name, profile string, g *instances, offers []resource.Offer) map[string]string {
	share := sharing(offers, g.has)
	first := g.all[0]
	key := func(suffix string) string {
		return nvidiaPrefix + fit(name, maxLength-len(".sharing-strategy")) + "." + suffix
	}
	l := map[string]string{
		key("product"):          product(share, g.model, "MIG", profile),
		key("count"):            strconv.Itoa(len(g.all)),
		key("replicas"):         strconv.Itoa(share.replicas),
		key("sharing-strategy"): share.strategy,
	}
	if first.Memory > 0 {
		l[key("memory")] = strconv.FormatUint(first.Memory>>20, 10)
	}
	if first.Multiprocessors > 0 {
		for suffix, n := range map[string]int{
			"multiprocessors": first.Multiprocessors, "slices.gi": first.GISlices, "slices.ci": first.CISlices,
			"engines.copy": first.Engines.Copy, "engines.decoder": first.Engines.Decoder, "engines.encoder": first.Engines.Encoder,
			"engines.jpeg": first.Engines.JPEG, "engines.ofa": first.Engines.OFA,
		} {
			l[key(suffix)] = strconv.Itoa(n)
		}
	}
	return l
}
