// Package labels is what the scheduler sees: the node's GPUs and models as labels of the Node object.
//
// The keys and values under nvidia.com/ are those of NVIDIA's GPU feature discovery (GFD) for whole,
// shared and split GPUs, bit for bit, so that selectors, dashboards and Karpenter or Kueue
// configurations keep working. Deliberate differences: no gfd.timestamp, which changes at every
// restart; a node with two models always shows the same one; texts are cut to the 63 characters that
// the API server accepts. docs/LABELS.md is generated from the table in keys.go.
package labels

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// The prefixes of the keys.
const (
	nvidiaPrefix = "nvidia.com/"
	ownPrefix    = "gpu-agent.dev/"
	modelPrefix  = "models.gpu-agent.dev/"
)

// Input is all that the labels are made of. Nothing in it is changed.
type Input struct {
	Snapshot    *gpu.Snapshot    // the GPUs that pods can get; nil: nothing is known
	Offers      []resource.Offer // what the kubelet sees of Snapshot: shares show as replicas
	MIGStrategy string           // "" is resource.MIGNone
	Inventory   *model.Inventory // nil: there is no cache
	Machine     string           // DMI product name, see Machine; "" reads as "unknown"
}

// Of is what the policy makes of a snapshot: GPUs that it leaves out are in no label.
func Of(policy resource.Policy, s *gpu.Snapshot) Input {
	return Input{Snapshot: policy.Visible(s), Offers: policy.Offers(s), MIGStrategy: policy.MIGStrategy()}
}

// ModelKey is the key of the label of a model that is ready on the node.
func ModelKey(name string) string { return modelPrefix + fit(name, maxLength) }

// For is the node's labels. It is a pure function: equal inputs, in whatever order their GPUs and
// models come, give equal labels. A snapshot without GPUs gives no GPU labels.
func For(in Input) map[string]string {
	l := map[string]string{}
	if in.Snapshot != nil && len(in.Snapshot.Devices) > 0 {
		maps.Copy(l, nodeLabels(in.Snapshot, in.Machine))
		maps.Copy(l, driverLabels(in.Snapshot.Driver))
		maps.Copy(l, productLabels(in.Snapshot.Devices, in.Offers))
		addMIG(l, in.Snapshot.Devices, in.Offers, in.MIGStrategy)
		l[nvidiaPrefix+"mps.capable"] = strconv.FormatBool(byMPS(in.Snapshot.Devices, in.Offers))
	}
	if in.Inventory != nil {
		for _, m := range in.Inventory.Models {
			if m.State == model.Ready {
				l[ModelKey(m.Name)] = model.Revision12(m.Revision)
			}
		}
	}
	return l
}

// nodeLabels are about all GPUs of the node together.
func nodeLabels(s *gpu.Snapshot, machine string) map[string]string {
	capable := slices.ContainsFunc(s.Devices, func(d gpu.Device) bool { return d.MIGCapable })
	l := map[string]string{
		nvidiaPrefix + "gpu.machine":  cmp.Or(fit(sanitise(machine), maxLength), unknown),
		nvidiaPrefix + "gpu.mode":     mode(s.Devices),
		nvidiaPrefix + "mig.capable":  strconv.FormatBool(capable),
		nvidiaPrefix + "vgpu.present": "false",
		ownPrefix + "gpu.healthy":     strconv.Itoa(s.HealthyCount()),
	}
	if c := clique(s.Devices); c != "" {
		l[nvidiaPrefix+"gpu.clique"] = c
	}
	if !s.Driver.Loaded {
		l[ownPrefix+"gpu.healthy"] = "0"
	}
	if s.Simulated {
		l[ownPrefix+"simulated"] = "true"
	}
	return l
}

// driverLabels come twice, under GFD's present names and under its deprecated ones.
func driverLabels(d gpu.Driver) map[string]string {
	l := map[string]string{}
	both := func(present, deprecated, value string) {
		value = fit(trim(value), maxLength)
		l[nvidiaPrefix+"cuda."+present], l[nvidiaPrefix+"cuda."+deprecated] = value, value
	}
	if v := strings.Split(sanitise(d.Version), "."); len(v) == 2 || len(v) == 3 {
		both("driver-version.major", "driver.major", v[0])
		both("driver-version.minor", "driver.minor", v[1])
		both("driver-version.revision", "driver.rev", strings.Join(v[2:], ""))
		l[nvidiaPrefix+"cuda.driver-version.full"] = fit(strings.Join(v, "."), maxLength)
	}
	if v := d.CUDAVersion; v > 0 {
		major, minor := strconv.Itoa(v/1000), strconv.Itoa(v%1000/10)
		both("runtime-version.major", "runtime.major", major)
		both("runtime-version.minor", "runtime.minor", minor)
		l[nvidiaPrefix+"cuda.runtime-version.full"] = major + "." + minor
	}
	return l
}

// productLabels are about the node's main model, and how many GPUs there are of each.
func productLabels(devices []gpu.Device, offers []resource.Offer) map[string]string {
	l := map[string]string{}
	group := mainModel(devices)
	if len(group) == 0 {
		return l
	}
	gpuKey := func(name string) string { return nvidiaPrefix + "gpu." + name }
	share := sharing(offers, func(u resource.Unit) bool {
		return u.Instance == "" && slices.ContainsFunc(group, is(u.Device))
	})
	if !slices.ContainsFunc(group, func(d gpu.Device) bool { return !d.MIGEnabled }) {
		share.replicas = 0 // all split into instances: as GFD, none is there to be given whole
	}
	l[gpuKey("product")] = product(share, group[0].Name)
	// A lost GPU stays in the count, as with GFD: gpu-agent.dev/gpu.healthy says how many can be used.
	l[gpuKey("count")] = strconv.Itoa(len(group))
	l[gpuKey("replicas")] = strconv.Itoa(share.replicas)
	l[gpuKey("sharing-strategy")] = share.strategy
	// A GPU that was lost before it was read says 0: any other of its model knows better.
	if memory := largest(group, func(d gpu.Device) uint64 { return d.Memory }); memory > 0 {
		l[gpuKey("memory")] = strconv.FormatUint(memory>>20, 10)
	}
	cc := largest(group, func(d gpu.Device) int { return d.ComputeMajor<<8 | d.ComputeMinor })
	if major, minor := cc>>8, cc&0xff; major > 0 {
		l[gpuKey("family")] = family(major, minor)
		l[gpuKey("compute.major")] = strconv.Itoa(major)
		l[gpuKey("compute.minor")] = strconv.Itoa(minor)
	}
	for slug, n := range slugCounts(devices) {
		l[ownPrefix+"product."+slug+".count"] = strconv.Itoa(n)
	}
	return l
}

// mainModel is the GPUs of the model that most of the node's GPUs are; on a tie the one with more
// memory, then the first by name. GFD takes whichever its map yields first, so its labels flap.
func mainModel(devices []gpu.Device) []gpu.Device {
	models := map[string][]gpu.Device{}
	for _, d := range devices {
		if sanitise(d.Name) != "" { // nameless: lost before it could be read
			models[d.Name] = append(models[d.Name], d)
		}
	}
	memory := func(d gpu.Device) uint64 { return d.Memory }
	var best []gpu.Device
	for _, name := range slices.Sorted(maps.Keys(models)) {
		group := models[name]
		if best == nil || cmp.Or(cmp.Compare(len(group), len(best)),
			cmp.Compare(largest(group, memory), largest(best, memory))) > 0 {
			best = group
		}
	}
	return best
}

func largest[T cmp.Ordered](devices []gpu.Device, of func(gpu.Device) T) T {
	var top T
	for _, d := range devices {
		top = max(top, of(d))
	}
	return top
}

type share struct {
	replicas int
	strategy string
	suffix   bool // the shares go by the unshared resource's name, so the product's name must tell
}

// sharing reads from the offers into how many units each of those that which picks is shared.
func sharing(offers []resource.Offer, which func(resource.Unit) bool) share {
	units, s := map[gpu.UUID]int{}, share{replicas: 1, strategy: "none"}
	for _, o := range offers {
		for _, u := range o.Units {
			if !u.ID.Shared() || !which(u) {
				continue
			}
			thing := u.ID.Device()
			units[thing]++
			s.replicas = max(s.replicas, units[thing])
			s.strategy, s.suffix = o.Sharing, s.suffix || !o.Renamed
		}
	}
	return s
}

// product is a label's value of several parts; however long they are, it tells that it is shared.
func product(s share, parts ...string) string {
	for i := range parts {
		parts[i] = sanitise(parts[i])
	}
	name, suffix := strings.Join(parts, "-"), ""
	if s.suffix {
		suffix = "-SHARED"
	}
	return fit(name, maxLength-len(suffix)) + suffix
}

// byMPS is what GFD calls MPS-capable: that sharing is by MPS, which MIG rules out.
func byMPS(devices []gpu.Device, offers []resource.Offer) bool {
	return slices.ContainsFunc(offers, func(o resource.Offer) bool { return o.Sharing == resource.ByMPS }) &&
		!slices.ContainsFunc(devices, func(d gpu.Device) bool { return d.MIGEnabled })
}

func is(id gpu.UUID) func(gpu.Device) bool {
	return func(d gpu.Device) bool { return d.UUID == id }
}

// family follows GFD 0.20; what it does not know (11.x, say) it calls undefined.
func family(major, minor int) string {
	switch {
	case major == 1:
		return "tesla"
	case major == 2:
		return "fermi"
	case major == 3:
		return "kepler"
	case major == 5:
		return "maxwell"
	case major == 6:
		return "pascal"
	case major == 7 && minor < 5:
		return "volta"
	case major == 7:
		return "turing"
	case major == 8 && minor < 9:
		return "ampere"
	case major == 8:
		return "ada-lovelace"
	case major == 9:
		return "hopper"
	case major == 10, major == 12:
		return "blackwell"
	case major == 13:
		return "rubin"
	}
	return "undefined"
}

// mode is by PCI class; GPUs of two modes, or of none that is known, are unknown.
func mode(devices []gpu.Device) string {
	var seen []uint32
	for _, d := range devices {
		if class := d.PCIClass >> 8; !slices.Contains(seen, class) {
			seen = append(seen, class)
		}
	}
	switch {
	case len(seen) == 1 && seen[0] == 0x0300:
		return "graphics"
	case len(seen) == 1 && seen[0] == 0x0302:
		return "compute"
	}
	return unknown
}

// clique is the NVLink clique of the node's GPUs; "" if they are on none or on several.
func clique(devices []gpu.Device) string {
	found := ""
	for _, d := range devices {
		if d.Fabric == nil || d.Fabric.ClusterUUID == "" {
			continue
		}
		c := fmt.Sprintf("%s.%d", d.Fabric.ClusterUUID, d.Fabric.CliqueID)
		if found != "" && c != found {
			return ""
		}
		found = c
	}
	return fit(sanitise(found), maxLength)
}

func slugCounts(devices []gpu.Device) map[string]int {
	counts := map[string]int{}
	for _, d := range devices {
		if name := sanitise(d.Name); name != "" {
			counts[fit(strings.ToLower(name), maxLength-len("product.")-len(".count"))]++
		}
	}
	return counts
}
