package resource

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// The ways in which a container is told of its GPUs, named as NVIDIA's device plugin names them.
const (
	EnvVar = "envvar"  // NVIDIA_VISIBLE_DEVICES, read by NVIDIA's container runtime
	CDICRI = "cdi-cri" // CDI names in the kubelet's answer to the runtime; Kubernetes 1.31 and newer
)

// The ways in which a GPU is named inside a container's edits. The kubelet always sees UUIDs: an
// index moves when a GPU is lost, and the kubelet's checkpoint would then name another one.
const (
	ByUUID  = "uuid"
	ByIndex = "index"
)

// Config is what an administrator can decide. The zero value is NVIDIA's defaults.
type Config struct {
	Resource        string   // default "nvidia.com/gpu"
	Strategies      []string // EnvVar, CDICRI or both; default EnvVar
	IDStrategy      string   // ByUUID (default) or ByIndex
	PassDeviceSpecs bool     // also list the device nodes: the CPU manager's cgroup updates drop unlisted ones
	DevRoot         string   // the host's device folder; default "/dev"
	// CDIKind is the vendor and class of the CDI names; default "nvidia.com/gpu", whose specs the host's
	// own nvidia-ctk or nvidia-cdi-refresh keeps current. Nothing is written here.
	CDIKind string
	// Exists reports whether a path below DevRoot is there on the host; required with PassDeviceSpecs.
	Exists func(path string) bool
}

// A Policy is a checked Config. It is a value without state, safe for concurrent use.
type Policy struct {
	cfg Config
}

var ( // read-only
	resourceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$`)
	cdiKind      = regexp.MustCompile(`^[A-Za-z]([-_.A-Za-z0-9]*[A-Za-z0-9])?/[A-Za-z]([-_A-Za-z0-9]*[A-Za-z0-9])?$`)
)

// NewPolicy checks cfg and fills in its defaults. Its errors are meant for the administrator.
func NewPolicy(cfg Config) (Policy, error) {
	cfg.Resource = cmp.Or(cfg.Resource, "nvidia.com/gpu")
	cfg.IDStrategy = cmp.Or(cfg.IDStrategy, ByUUID)
	cfg.DevRoot = cmp.Or(cfg.DevRoot, "/dev")
	cfg.CDIKind = cmp.Or(cfg.CDIKind, "nvidia.com/gpu")
	cfg.Strategies = slices.Clone(cfg.Strategies)
	if len(cfg.Strategies) == 0 {
		cfg.Strategies = []string{EnvVar}
	}
	for _, s := range cfg.Strategies {
		switch s {
		case EnvVar, CDICRI:
		case "volume-mounts", "cdi-annotations":
			return Policy{}, fmt.Errorf("device list strategy %q is not there yet: use %q or %q", s, EnvVar, CDICRI)
		default:
			return Policy{}, fmt.Errorf("device list strategy %q is unknown: use %q or %q", s, EnvVar, CDICRI)
		}
	}
	switch {
	case !resourceName.MatchString(cfg.Resource):
		return Policy{}, fmt.Errorf("resource name %q: want <domain>/<name> with a name of at most 63 characters, such as nvidia.com/gpu", cfg.Resource)
	case cfg.IDStrategy != ByUUID && cfg.IDStrategy != ByIndex:
		return Policy{}, fmt.Errorf("device id strategy %q is unknown: use %q or %q", cfg.IDStrategy, ByUUID, ByIndex)
	case !path.IsAbs(cfg.DevRoot):
		return Policy{}, fmt.Errorf("device root %q: want an absolute path of the host, such as /dev", cfg.DevRoot)
	case !cdiKind.MatchString(cfg.CDIKind):
		return Policy{}, fmt.Errorf("CDI kind %q: want <vendor>/<class>, such as nvidia.com/gpu", cfg.CDIKind)
	case cfg.PassDeviceSpecs && cfg.Exists == nil:
		return Policy{}, fmt.Errorf("device nodes are to be passed, but nothing says which of them exist")
	}
	return Policy{cfg}, nil
}

// Resource is the resource name that whole GPUs are offered under.
func (p Policy) Resource() string { return p.cfg.Resource }

// Offers is what the node offers: every GPU that is not split by MIG, healthy or not, for the kubelet
// counts the unhealthy ones in the capacity. A resource without a unit is no offer.
func (p Policy) Offers(s *gpu.Snapshot) []Offer {
	if s == nil {
		return nil
	}
	var units []Unit
	for i := range s.Devices {
		d := &s.Devices[i]
		if !offered(d) {
			continue
		}
		why := unfit(s, d)
		units = append(units, Unit{ID: ID(d.UUID), Device: d.UUID, Healthy: why == "", Reason: why, NUMANode: d.NUMANode})
	}
	if len(units) == 0 {
		return nil
	}
	return []Offer{{Resource: p.cfg.Resource, Units: units}}
}

// offered: a GPU whose UUID could not be read has no name that would survive a restart.
func offered(d *gpu.Device) bool { return d.UUID != "" && !d.MIGEnabled }

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

// Edits is what a container gets with the given units, GPUs in the order of their indexes and each
// once, however many shares of it are asked for. A unit that is unknown, or whose GPU must not be
// used, is an error: the kubelet picks from a list that may be one update old, and a pod refused at
// admission is replaced at once, while one started on a dead GPU fails late and without a reason.
func (p Policy) Edits(s *gpu.Snapshot, ids []ID) (Edits, error) {
	devices, err := pick(s, ids)
	if err != nil {
		return Edits{}, err
	}
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = string(d.UUID)
		if p.cfg.IDStrategy == ByIndex {
			names[i] = strconv.Itoa(d.Index)
		}
	}
	var e Edits
	if slices.Contains(p.cfg.Strategies, EnvVar) {
		e.Env = map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(names, ",")}
	}
	if slices.Contains(p.cfg.Strategies, CDICRI) {
		for _, name := range names {
			e.CDIDevices = append(e.CDIDevices, p.cfg.CDIKind+"="+name)
		}
	}
	if p.cfg.PassDeviceSpecs {
		if e.DeviceNodes, err = p.deviceNodes(devices); err != nil {
			return Edits{}, err
		}
	}
	return e, nil
}

func pick(s *gpu.Snapshot, ids []ID) ([]*gpu.Device, error) {
	var devices []*gpu.Device
	for _, id := range ids {
		d := s.Device(id.Device())
		if d == nil || !offered(d) {
			return nil, fmt.Errorf("device %s is not offered on this node", id)
		}
		if why := unfit(s, d); why != "" {
			return nil, fmt.Errorf("device %s is unhealthy: %s", id, why)
		}
		if !slices.Contains(devices, d) {
			devices = append(devices, d)
		}
	}
	slices.SortFunc(devices, func(a, b *gpu.Device) int { return cmp.Compare(a.Index, b.Index) })
	return devices, nil
}

// deviceNodes lists the control nodes that the host has, then a node for each GPU, as NVIDIA's plugin does.
func (p Policy) deviceNodes(devices []*gpu.Device) ([]DeviceNode, error) {
	var nodes []DeviceNode
	add := func(name string) {
		nodes = append(nodes, DeviceNode{
			HostPath: path.Join(p.cfg.DevRoot, name), ContainerPath: path.Join("/dev", name), Permissions: "rw",
		})
	}
	for _, name := range []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"} {
		if p.cfg.Exists(path.Join(p.cfg.DevRoot, name)) {
			add(name)
		}
	}
	for _, d := range devices {
		if d.Minor < 0 {
			return nil, fmt.Errorf("device %s: its minor number is unknown, so its device node cannot be named", d.UUID)
		}
		add("nvidia" + strconv.Itoa(d.Minor))
	}
	return nodes, nil
}
