package resource

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
)

// The ways in which a container is told of its GPUs, named as NVIDIA's device plugin names them.
const (
	EnvVar         = "envvar"          // NVIDIA_VISIBLE_DEVICES, read by NVIDIA's container runtime
	VolumeMounts   = "volume-mounts"   // mounts of /dev/null named after the GPUs, which a pod cannot forge as it can a variable
	CDIAnnotations = "cdi-annotations" // CDI names in an annotation of the container, for runtimes older than cdi-cri
	CDICRI         = "cdi-cri"         // CDI names in the kubelet's answer to the runtime; Kubernetes 1.31 and newer
)

// The ways in which a GPU is named inside a container's edits. The kubelet always sees UUIDs: an
// index moves when a GPU is lost, and the kubelet's checkpoint would then name another one.
const (
	ByUUID  = "uuid"
	ByIndex = "index" // "0"; of a MIG instance "0:1"
)

// What becomes of GPUs that are split by MIG.
const (
	MIGNone   = "none"   // they are not offered
	MIGSingle = "single" // all GPUs are split alike, and their instances go by the name of whole GPUs
	MIGMixed  = "mixed"  // each profile has a name of its own
)

// Which shares are preferred.
const (
	Distributed = "distributed" // of the GPUs with the fewest shares in use
	Packed      = "packed"      // of the GPUs with the most
)

// The vendor and class of CDI names.
const (
	HostCDIKind = "nvidia.com/gpu"                   // of the specs that the host's own nvidia-ctk or nvidia-cdi-refresh keeps
	OwnCDIKind  = "k8s.device-plugin.nvidia.com/gpu" // of the specs that NVIDIA's plugin writes, and so do we when asked to
)

// Config is what an administrator can decide. The zero value is NVIDIA's defaults.
type Config struct {
	Resource string // of whole GPUs that no entry of GPUNames matches; default "nvidia.com/gpu"
	GPUNames []Name // by model, "NVIDIA H100*"; the first match counts
	MIGNames []Name // by profile, "1g.10gb+me"; the first match counts

	// Include and Exclude name GPUs by UUID, index, PCI address or model pattern. A GPU that is excluded,
	// or not included where Include says anything, is as if it was not there.
	Include, Exclude []string

	MIGStrategy string // MIGNone (default), MIGSingle or MIGMixed

	TimeSlicing *Sharing // nil: none; at most one of the two
	MPS         *Sharing
	MPSRoot     string // folder of the host for the control daemons' pipes; default "/run/nvidia/mps"
	Allocation  string // Distributed (default) or Packed

	Strategies      []string // default EnvVar
	IDStrategy      string   // ByUUID (default) or ByIndex
	PassDeviceSpecs bool     // also list the device nodes: the CPU manager's cgroup updates drop unlisted ones
	DevRoot         string   // the host's device folder; default "/dev"
	// CDIKind is the vendor and class of the CDI names; default HostCDIKind. Nothing is written here.
	CDIKind             string
	CDIAnnotationPrefix string // default "cdi.k8s.io/"

	IMEXChannels []int // none, or 0 alone: the channel that NVIDIA's plugin knows
	IMEXRequired bool  // without its device node no GPU may be given out
	GDRCopy      bool
	GDS          bool
	MOFED        bool

	// Models is the folder of the host that every container with a GPU gets read-only at ModelsPath, which
	// MODEL_CACHE_DIR names; "": none. The mount is in no pod's spec, so that Pod Security does not see it.
	Models     string
	ModelsPath string // default "/models"
	// ModelsDisks are further folders of models, mounted within that one.
	ModelsDisks []ModelsDisk

	// Exists reports whether a path below DevRoot is there on the host; required with PassDeviceSpecs and
	// IMEXChannels.
	Exists func(path string) bool
}

// A Name is the resource name of all that match a pattern, in which * stands for any text.
type Name struct {
	Pattern, Resource string
}

// Sharing is one way of giving a GPU to several containers.
type Sharing struct {
	RenameByDefault            bool // shares go by "<name>.shared" unless they have a Rename
	FailRequestsGreaterThanOne bool // a container that asks for two shares is refused: it would get no more than with one
	Resources                  []Shared
}

// Shared is some GPUs or MIG instances of one resource, and how often each is offered.
type Shared struct {
	Name     string   // of the resource, before Rename
	Rename   string   // "": as RenameByDefault says
	Replicas int      // 2 and more
	Count    int      // only the first so many; 0: see Devices
	Devices  []string // only these, by index ("0", of an instance "0:1") or UUID; none: all
}

// A Fault is one thing that is wrong with a Config. Path is the key as configuration files have it.
type Fault struct {
	Path, Text string
}

func (f Fault) Error() string { return f.Path + ": " + f.Text }

// Faults are everything that is wrong with a Config.
type Faults []Fault

func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].Error()
	}
	return strings.Join(lines, "\n")
}

func (f *Faults) add(path, format string, args ...any) {
	*f = append(*f, Fault{path, fmt.Sprintf(format, args...)})
}

func (f *Faults) oneOf(path, value string, want ...string) {
	if !slices.Contains(want, value) {
		f.add(path, "%q is unknown: use %s", value, strings.Join(want, ", "))
	}
}

var ( // read-only; lengths are checked apart, for a count of 251 takes milliseconds of every start to compile
	resourceName = lazyregexp.New(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$`)
	cdiKind      = lazyregexp.New(`^[A-Za-z]([-_.A-Za-z0-9]*[A-Za-z0-9])?/[A-Za-z]([-_A-Za-z0-9]*[A-Za-z0-9])?$`)
	cdiPrefix    = lazyregexp.New(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/$`)
)

// isResourceName reports whether s is a domain of at most 253 bytes, a slash and a name of at most 63.
func isResourceName(s string) bool {
	domain, name, _ := strings.Cut(s, "/")
	return len(domain) <= 253 && len(name) <= 63 && resourceName().MatchString(s)
}

func (f *Faults) name(path, value string) {
	if !isResourceName(value) {
		f.add(path, "resource name %q: want <domain>/<name> with a name of at most 63 characters, such as nvidia.com/gpu", value)
	}
}

// finish fills in the defaults.
func (c *Config) finish() {
	c.Resource = cmp.Or(c.Resource, "nvidia.com/gpu")
	c.MIGStrategy = cmp.Or(c.MIGStrategy, MIGNone)
	c.Allocation = cmp.Or(c.Allocation, Distributed)
	c.MPSRoot = cmp.Or(c.MPSRoot, "/run/nvidia/mps")
	c.IDStrategy = cmp.Or(c.IDStrategy, ByUUID)
	c.DevRoot = cmp.Or(c.DevRoot, "/dev")
	c.CDIKind = cmp.Or(c.CDIKind, HostCDIKind)
	c.CDIAnnotationPrefix = cmp.Or(c.CDIAnnotationPrefix, "cdi.k8s.io/")
	c.ModelsPath = cmp.Or(c.ModelsPath, "/models")
	c.Strategies = slices.Clone(c.Strategies)
	if len(c.Strategies) == 0 {
		c.Strategies = []string{EnvVar}
	}
}

// faults says what is wrong, in the order of the fields.
func (c *Config) faults() Faults {
	var f Faults
	f.name("resource", c.Resource)
	f.names("resources.gpus", c.GPUNames)
	f.names("resources.mig", c.MIGNames)
	f.selectors("include", c.Include)
	f.selectors("exclude", c.Exclude)
	f.oneOf("migStrategy", c.MIGStrategy, MIGNone, MIGSingle, MIGMixed)
	c.sharingFaults(&f)
	f.oneOf("sharing.allocation", c.Allocation, Distributed, Packed)
	for i, s := range c.Strategies {
		f.oneOf(fmt.Sprintf("strategies[%d]", i), s, EnvVar, VolumeMounts, CDIAnnotations, CDICRI)
	}
	f.oneOf("idStrategy", c.IDStrategy, ByUUID, ByIndex)
	if !path.IsAbs(c.DevRoot) {
		f.add("devRoot", "%q: want an absolute path of the host, such as /dev", c.DevRoot)
	}
	if !cdiKind().MatchString(c.CDIKind) {
		f.add("cdiKind", "%q: want <vendor>/<class>, such as nvidia.com/gpu", c.CDIKind)
	}
	if len(c.CDIAnnotationPrefix) > 254 || !cdiPrefix().MatchString(c.CDIAnnotationPrefix) {
		f.add("cdiAnnotationPrefix", "%q: want <domain>/, such as cdi.k8s.io/", c.CDIAnnotationPrefix)
	}
	if len(c.IMEXChannels) > 1 || len(c.IMEXChannels) == 1 && c.IMEXChannels[0] != 0 {
		f.add("imex.channelIDs", "want [] or [0], got %v", c.IMEXChannels)
	}
	if c.IMEXRequired && len(c.IMEXChannels) == 0 {
		f.add("imex.required", "required, but no channel is named: want channelIDs: [0]")
	}
	c.modelsFaults(&f)
	if c.Exists == nil && (c.PassDeviceSpecs || len(c.IMEXChannels) > 0) {
		f.add("passDeviceSpecs", "device nodes are to be passed, but nothing says which of them exist")
	}
	return f
}

func (f *Faults) names(path string, names []Name) {
	for i, n := range names {
		at := fmt.Sprintf("%s[%d]", path, i)
		f.name(at+".name", n.Resource)
		if n.Pattern == "" {
			f.add(at+".pattern", "want a pattern, such as *H100* or 1g.10gb")
		}
		first := slices.IndexFunc(names, func(o Name) bool { return o.Pattern == n.Pattern })
		if first < i && names[first].Resource != n.Resource {
			f.add(at+".pattern", "two names for what matches %q: %s, and by %s[%d] %s", n.Pattern, n.Resource, path, first, names[first].Resource)
		}
	}
}
