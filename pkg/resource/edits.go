package resource

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// Edits is what a container gets with the given units of one resource, GPUs in the order of their
// indexes and each once, however many shares of it are asked for. A unit that is unknown, or whose GPU
// must not be used, is an error: the kubelet picks from a list that may be one update old, and a pod
// refused at admission is replaced at once, while one started on a dead GPU fails late and without a
// reason.
func (p Policy) Edits(s *gpu.Snapshot, ids []ID) (Edits, error) {
	picked, err := p.pick(s, ids)
	if err != nil {
		return Edits{}, err
	}
	e := Edits{Env: map[string]string{}}
	p.cdiEdits(&e, picked)
	// Shares and whole GPUs may go by one name.
	if i := slices.IndexFunc(picked, func(it item) bool { return it.kind == ByMPS }); i >= 0 {
		p.mpsEdits(&e, picked[i].resource)
	}
	for name, on := range map[string]bool{"NVIDIA_GDRCOPY": p.cfg.GDRCopy, "NVIDIA_GDS": p.cfg.GDS, "NVIDIA_MOFED": p.cfg.MOFED} {
		if on {
			e.Env[name] = "enabled"
		}
	}
	// With CDI alone the specs bring the device nodes along, and NVIDIA_VISIBLE_DEVICES would make
	// NVIDIA's runtime inject the GPUs a second time.
	if p.uses(EnvVar) || p.uses(VolumeMounts) {
		p.legacyEdits(&e, picked)
		if p.cfg.PassDeviceSpecs {
			if e.DeviceNodes, err = p.deviceNodes(picked); err != nil {
				return Edits{}, err
			}
		}
	}
	p.modelsEdits(&e)
	if len(e.Env) == 0 {
		e.Env = nil
	}
	return e, nil
}

func (p Policy) uses(strategy string) bool { return slices.Contains(p.cfg.Strategies, strategy) }

// pick finds one unit of each GPU or instance that the ids are of.
func (p Policy) pick(s *gpu.Snapshot, ids []ID) ([]item, error) {
	items, _ := p.items(s)
	var picked []item
	for _, id := range ids {
		i := slices.IndexFunc(items, func(it item) bool { return it.ID == id })
		if i < 0 {
			return nil, fmt.Errorf("device %s is not offered on this node", id)
		}
		it := items[i]
		if !it.Healthy {
			return nil, fmt.Errorf("device %s is unhealthy: %s", id, it.Reason)
		}
		if sharing, _, _ := p.cfg.sharing(); it.kind != "" && len(ids) > 1 && sharing.FailRequestsGreaterThanOne {
			// Word for word what NVIDIA's plugin says, which people search for.
			return nil, fmt.Errorf("invalid allocation request for %q: invalid request: maximum request size for shared resources is 1; found %d",
				it.resource, len(ids))
		}
		if !slices.ContainsFunc(picked, func(o item) bool { return o.uuid() == it.uuid() }) {
			picked = append(picked, it)
		}
	}
	slices.SortFunc(picked, func(a, b item) int {
		return cmp.Or(cmp.Compare(a.device.Index, b.device.Index), cmp.Compare(a.place(), b.place()))
	})
	return picked, nil
}

// place is the thing's place on its GPU.
func (t thing) place() int {
	if t.instance != nil {
		return t.instance.Index
	}
	return 0
}

func (p Policy) names(picked []item) []string {
	names := make([]string, len(picked))
	for i, it := range picked {
		names[i] = string(it.uuid())
		if p.cfg.IDStrategy == ByIndex {
			names[i] = it.index()
		}
	}
	return names
}

func (p Policy) cdiEdits(e *Edits, picked []item) {
	if !p.uses(CDIAnnotations) && !p.uses(CDICRI) || len(picked) == 0 {
		return
	}
	var devices []string
	for _, name := range p.names(picked) {
		devices = append(devices, p.cfg.CDIKind+"="+name)
	}
	vendor, _, _ := strings.Cut(p.cfg.CDIKind, "/")
	for _, channel := range p.imexChannels() {
		devices = append(devices, vendor+"/imex-channel="+channel)
	}
	for _, extra := range []struct {
		class string
		on    bool
	}{{"gdrcopy", p.cfg.GDRCopy}, {"gds", p.cfg.GDS}, {"mofed", p.cfg.MOFED}} {
		if extra.on {
			devices = append(devices, vendor+"/"+extra.class+"=all")
		}
	}
	list := strings.Join(devices, ",")
	if p.uses(CDIAnnotations) {
		// Two resources of one container must not have one key. NVIDIA's plugin takes a random UUID; the
		// devices tell as well, and the same request then gets the same answer.
		sum := sha256.Sum256([]byte(list))
		id := fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
		e.Annotations = map[string]string{p.cfg.CDIAnnotationPrefix + "nvidia-device-plugin_" + id: list}
	}
	if p.uses(CDICRI) {
		e.CDIDevices = devices
	}
}

// mountedDevices is where NVIDIA's runtime looks for mounts that name GPUs.
const mountedDevices = "/var/run/nvidia-container-devices"

// legacyEdits are for NVIDIA's container runtime. With both strategies the mounts decide.
func (p Policy) legacyEdits(e *Edits, picked []item) {
	names, channels := p.names(picked), p.imexChannels()
	if p.uses(EnvVar) {
		e.Env["NVIDIA_VISIBLE_DEVICES"] = strings.Join(names, ",")
		if len(channels) > 0 {
			e.Env["NVIDIA_IMEX_CHANNELS"] = strings.Join(channels, ",")
		}
	}
	if p.uses(VolumeMounts) {
		e.Env["NVIDIA_VISIBLE_DEVICES"] = mountedDevices
		for _, channel := range channels {
			names = append(names, "imex/"+channel)
		}
		for _, name := range names {
			e.Mounts = append(e.Mounts, Mount{HostPath: "/dev/null", ContainerPath: path.Join(mountedDevices, name)})
		}
	}
}

// deviceNodes lists the control nodes that the host has, then those of each GPU and instance, then
// those of the IMEX channels, as NVIDIA's plugin does.
func (p Policy) deviceNodes(picked []item) ([]DeviceNode, error) {
	var nodes []DeviceNode
	add := func(name string) {
		n := DeviceNode{HostPath: path.Join(p.cfg.DevRoot, name), ContainerPath: path.Join("/dev", name), Permissions: "rw"}
		if !slices.Contains(nodes, n) {
			nodes = append(nodes, n)
		}
	}
	for _, name := range []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"} {
		if p.cfg.Exists(path.Join(p.cfg.DevRoot, name)) {
			add(name)
		}
	}
	for _, it := range picked {
		if it.device.Minor < 0 {
			return nil, fmt.Errorf("device %s: its minor number is unknown, so its device node cannot be named", it.device.UUID)
		}
		add("nvidia" + strconv.Itoa(it.device.Minor))
		if it.instance == nil {
			continue
		}
		for _, minor := range []int{it.instance.GIMinor, it.instance.CIMinor} {
			if minor < 0 {
				return nil, fmt.Errorf("device %s: the minor number of its capability is unknown, so its device node cannot be named", it.uuid())
			}
			add("nvidia-caps/nvidia-cap" + strconv.Itoa(minor))
		}
	}
	for _, channel := range p.imexChannels() {
		add(imexNode(channel))
	}
	return nodes, nil
}

func imexNode(channel string) string { return "nvidia-caps-imex-channels/channel" + channel }

// imexChannels are the channels that are asked for and there.
func (p Policy) imexChannels() []string {
	var channels []string
	for _, n := range p.cfg.IMEXChannels {
		if channel := strconv.Itoa(n); p.cfg.Exists(path.Join(p.cfg.DevRoot, imexNode(channel))) {
			channels = append(channels, channel)
		}
	}
	return channels
}

// Missing says of each GPU in s that is offered why no container could be given it now, for want of what every
// container must get; a GPU that is not in the map could.
func (p Policy) Missing(s *gpu.Snapshot) map[gpu.UUID]string {
	missing := map[gpu.UUID]string{}
	quiet := &findings{}
	why := p.lacking(quiet)
	if why == "" || !s.Driver.Loaded {
		return missing
	}
	for _, d := range p.visible(s, quiet) {
		missing[d.UUID] = why
	}
	return missing
}

// lacking says which part of every container's edits is required and not there; "" when none is.
func (p Policy) lacking(found *findings) string {
	for _, n := range p.cfg.IMEXChannels {
		node := path.Join(p.cfg.DevRoot, imexNode(strconv.Itoa(n)))
		switch {
		case p.cfg.Exists(node):
		case p.cfg.IMEXRequired:
			return fmt.Sprintf("IMEX channel %d is required, but there is no %s", n, node)
		default:
			found.note("imex.channelIDs: there is no %s: pods start without IMEX channel %d", node, n)
		}
	}
	return ""
}
