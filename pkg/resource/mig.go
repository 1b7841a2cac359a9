package resource

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// thing is a GPU or one of its MIG instances: what is offered when nothing is shared.
type thing struct {
	device   *gpu.Device
	instance *gpu.Instance // nil: the GPU whole
	resource string
}

func (t thing) uuid() gpu.UUID {
	if t.instance != nil {
		return t.instance.UUID
	}
	return t.device.UUID
}

// index is the thing's name where GPUs go by index: "0", of an instance "0:1".
func (t thing) index() string {
	if t.instance != nil {
		return strconv.Itoa(t.device.Index) + ":" + strconv.Itoa(t.instance.Index)
	}
	return strconv.Itoa(t.device.Index)
}

// things is all that can be offered of the GPUs, in the order of their indexes.
func (p Policy) things(devices []*gpu.Device, found *findings) []thing {
	if p.cfg.MIGStrategy == MIGSingle {
		return p.single(devices, found)
	}
	var things []thing
	for _, d := range devices {
		switch {
		case !d.MIGEnabled:
			things = append(things, p.whole(d, found))
		case p.cfg.MIGStrategy == MIGNone:
			found.note("GPU %d is in MIG mode and is not offered: migStrategy is none; set it to single or mixed, or turn MIG off", d.Index)
		case len(d.Instances) == 0 && d.Health.OK():
			found.note("GPU %d is in MIG mode and has no instance: nothing of it is offered", d.Index)
		}
		if p.cfg.MIGStrategy == MIGMixed && d.MIGEnabled {
			things = append(things, p.split(d, "", found)...)
		}
	}
	return things
}

func (p Policy) whole(d *gpu.Device, found *findings) thing {
	return thing{device: d, resource: named(p.cfg.GPUNames, d.Name, p.cfg.Resource, "resources.gpus", found)}
}

// split is the GPU's instances. Without a name given they go by NVIDIA's for their profile.
func (p Policy) split(d *gpu.Device, name string, found *findings) []thing {
	var things []thing
	for i := range d.Instances {
		in := &d.Instances[i]
		if in.UUID == "" {
			continue
		}
		otherwise := name
		if name == "" && !partial(in) {
			otherwise = "nvidia.com/mig-" + strings.ReplaceAll(in.Profile, "+", ".")
		}
		t := thing{device: d, instance: in, resource: named(p.cfg.MIGNames, in.Profile, otherwise, "resources.mig", found)}
		if !isResourceName(t.resource) {
			found.note("instance %s of GPU %d (%s) is not offered: NVIDIA has a resource name only for compute instances as large as their GPU instance; give it one in resources.mig",
				t.index(), d.Index, in.Profile)
			continue
		}
		things = append(things, t)
	}
	return things
}

// partial: the compute instance is smaller than its GPU instance, as "1c.3g.20gb" is.
func partial(in *gpu.Instance) bool {
	return in.CISlices != in.GISlices || strings.Contains(in.Profile, "c.")
}

// single is all GPUs whole, or the instances of all, which must then have one profile. Of a layout that
// is neither, nothing is offered: whichever part was picked, pods would get what they did not ask for.
// The kubelet then sees an empty list, running pods go on, and what is wrong is said. An unhealthy GPU
// has no vote: what it says of its instances may be old or missing, and it must not cost the others
// their pods.
func (p Policy) single(devices []*gpu.Device, found *findings) []thing {
	voters := slices.DeleteFunc(slices.Clone(devices), func(d *gpu.Device) bool { return !d.Health.OK() })
	if len(voters) == 0 {
		voters = devices
	}
	profile, why := layout(voters)
	if why != "" {
		found.unfit("migStrategy single: nothing is offered: %s", why)
		return nil
	}
	var things []thing
	for _, d := range devices {
		switch {
		case profile == "" && !d.MIGEnabled:
			things = append(things, p.whole(d, found))
		case profile != "" && d.MIGEnabled:
			for _, t := range p.split(d, p.cfg.Resource, found) {
				if t.instance.Profile == profile {
					things = append(things, t)
				}
			}
		}
	}
	return things
}

// layout is the profile that all GPUs are split into, "" when none is split; or why it is neither.
func layout(devices []*gpu.Device) (profile, why string) {
	var whole, split *gpu.Device
	var first string // where profile was seen
	for _, d := range devices {
		if !d.MIGEnabled {
			whole = d
			continue
		}
		split = d
		if len(d.Instances) == 0 {
			return "", fmt.Sprintf("GPU %d is in MIG mode and has no instance", d.Index)
		}
		for i := range d.Instances {
			t := thing{device: d, instance: &d.Instances[i]}
			if first == "" {
				profile, first = t.instance.Profile, t.index()
			}
			if t.instance.Profile != profile {
				return "", fmt.Sprintf("instance %s is %s and instance %s is %s: want one profile on all", first, profile, t.index(), t.instance.Profile)
			}
		}
	}
	if whole != nil && split != nil {
		return "", fmt.Sprintf("GPU %d is in MIG mode and GPU %d is not: want all or none", split.Index, whole.Index)
	}
	return profile, ""
}
