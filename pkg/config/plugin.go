package config

import (
	"cmp"
	"errors"
	"os"
	"path"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// DevicePlugin is what the kubelet is offered.
type DevicePlugin struct {
	NVIDIAConfig        string    `yaml:"nvidiaConfig"`
	NVIDIAConfigDir     string    `yaml:"nvidiaConfigDir"`
	Resource            string    `yaml:"resource"`
	Resources           Resources `yaml:"resources"`
	Include             []string  `yaml:"include"`
	Exclude             []string  `yaml:"exclude"`
	MIGStrategy         string    `yaml:"migStrategy"`
	Sharing             Sharing   `yaml:"sharing"`
	MPSRoot             string    `yaml:"mpsRoot"`
	MPSBinDir           string    `yaml:"mpsBinDir"`
	Strategies          []string  `yaml:"strategies"`
	IDStrategy          string    `yaml:"idStrategy"`
	PassDeviceSpecs     bool      `yaml:"passDeviceSpecs"`
	DevRoot             string    `yaml:"devRoot"`
	CDIKind             string    `yaml:"cdiKind"`
	CDIAnnotationPrefix string    `yaml:"cdiAnnotationPrefix"`
	IMEX                IMEX      `yaml:"imex"`
	GDRCopy             bool      `yaml:"gdrcopy"`
	GDS                 bool      `yaml:"gds"`
	MOFED               bool      `yaml:"mofed"`
	KubeletDir          string    `yaml:"kubeletDir"`

	InjectModelsMount InjectModelsMount `yaml:"injectModelsMount"`
}

// InjectModelsMount gives every container with a GPU the cache's models, read-only.
type InjectModelsMount struct {
	Enabled  bool   `yaml:"enabled"`
	Path     string `yaml:"path"`     // in the container
	HostRoot string `yaml:"hostRoot"` // cache.root as the host sees it; "" where that is the same
}

// Resources are resource names by GPU model and by MIG profile. The keys of this type and of those below
// are NVIDIA's, so that parts of its files can be copied.
type Resources struct {
	GPUs []ResourceName `yaml:"gpus"`
	MIG  []ResourceName `yaml:"mig"`
}

// ResourceName is the name of all that match a pattern.
type ResourceName struct {
	Pattern string `yaml:"pattern"`
	Name    string `yaml:"name"`
}

// Sharing is how GPUs are shared; at most one of the two ways.
type Sharing struct {
	TimeSlicing *Shares `yaml:"timeSlicing"` // nil: not
	MPS         *Shares `yaml:"mps"`         // nil: not
	Allocation  string  `yaml:"allocation"`
}

// Shares is one way of sharing.
type Shares struct {
	RenameByDefault            bool     `yaml:"renameByDefault"`
	FailRequestsGreaterThanOne *bool    `yaml:"failRequestsGreaterThanOne"` // nil: false for time-slicing, true for MPS
	Resources                  []Shared `yaml:"resources"`
}

// Shared is what of a resource is shared, and how often.
type Shared struct {
	Name     string  `yaml:"name"`
	Rename   string  `yaml:"rename,omitempty"`
	Devices  Devices `yaml:"devices"`
	Replicas int     `yaml:"replicas"`
}

// Devices are some of a resource's GPUs; the zero value is all of them.
type Devices struct {
	Count int      // the first so many
	List  []string // by index, MIG index or UUID
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Devices) UnmarshalYAML(n *yaml.Node) error {
	const want = "want all, a number of GPUs, or a list of indexes and UUIDs"
	switch n.Kind {
	case yaml.SequenceNode:
		if len(n.Content) == 0 {
			return bad(n, want+", got an empty list")
		}
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				return bad(item, want)
			}
			d.List = append(d.List, item.Value)
		}
		return nil
	case yaml.ScalarNode:
		if n.Value == "all" {
			return nil
		}
		if count, err := strconv.Atoi(n.Value); err == nil && count > 0 {
			d.Count = count
			return nil
		}
	}
	return bad(n, want+", got %q", n.Value)
}

// MarshalYAML implements yaml.Marshaler.
func (d Devices) MarshalYAML() (any, error) {
	switch {
	case len(d.List) > 0:
		return d.List, nil
	case d.Count > 0:
		return d.Count, nil
	}
	return "all", nil
}

// IMEX are the IMEX channels that every container with a GPU gets.
type IMEX struct {
	ChannelIDs []int `yaml:"channelIDs"`
	Required   bool  `yaml:"required"`
}

// Policy decides what is offered. Where somebody else gives the GPUs to pods, whatever is configured of sharing
// is not offered, and no label may say that it is.
func (c Config) Policy() resource.Config {
	p := c.DevicePlugin.Policy()
	if c.Allocation == AllocateNone {
		p.TimeSlicing, p.MPS = nil, nil
	}
	if inject := c.DevicePlugin.InjectModelsMount; inject.Enabled {
		p.Models = path.Join(cmp.Or(inject.HostRoot, c.Cache.Root), "models")
		for _, d := range c.Cache.Disks {
			p.ModelsDisks = append(p.ModelsDisks, resource.ModelsDisk{
				Name: d.Name, HostPath: path.Join(d.Root, "models"), Point: path.Join(c.Cache.Root, "models/disks", d.Name)})
		}
	}
	return p
}

// Policy is the part of the device plugin's configuration that decides what is offered.
func (d DevicePlugin) Policy() resource.Config {
	return resource.Config{
		Resource: d.Resource, GPUNames: names(d.Resources.GPUs), MIGNames: names(d.Resources.MIG),
		Include: d.Include, Exclude: d.Exclude, MIGStrategy: d.MIGStrategy,
		TimeSlicing: d.Sharing.TimeSlicing.policy(false), MPS: d.Sharing.MPS.policy(true),
		MPSRoot: d.MPSRoot, Allocation: d.Sharing.Allocation,
		Strategies: d.Strategies, IDStrategy: d.IDStrategy, PassDeviceSpecs: d.PassDeviceSpecs, DevRoot: d.DevRoot,
		CDIKind: d.CDIKind, CDIAnnotationPrefix: d.CDIAnnotationPrefix,
		IMEXChannels: d.IMEX.ChannelIDs, IMEXRequired: d.IMEX.Required, GDRCopy: d.GDRCopy, GDS: d.GDS, MOFED: d.MOFED,
		ModelsPath: d.InjectModelsMount.Path,
		Exists:     func(path string) bool { _, err := os.Stat(path); return err == nil },
	}
}

func names(list []ResourceName) []resource.Name {
	var out []resource.Name
	for _, n := range list {
		out = append(out, resource.Name{Pattern: n.Pattern, Resource: n.Name})
	}
	return out
}

func (s *Shares) policy(failByDefault bool) *resource.Sharing {
	if s == nil {
		return nil
	}
	out := &resource.Sharing{RenameByDefault: s.RenameByDefault, FailRequestsGreaterThanOne: failByDefault}
	if s.FailRequestsGreaterThanOne != nil {
		out.FailRequestsGreaterThanOne = *s.FailRequestsGreaterThanOne
	}
	for _, r := range s.Resources {
		out.Resources = append(out.Resources, resource.Shared{
			Name: r.Name, Rename: r.Rename, Replicas: r.Replicas, Count: r.Devices.Count, Devices: slices.Clone(r.Devices.List),
		})
	}
	return out
}

func (c *Config) checkPlugin(f *file) {
	_, err := resource.NewPolicy(c.DevicePlugin.Policy())
	var faults resource.Faults
	if errors.As(err, &faults) {
		for _, fault := range faults {
			f.wrong("devicePlugin."+fault.Path, "%s", fault.Text)
		}
	}
	if c.DevicePlugin.NVIDIAConfig != "" {
		f.absolute("devicePlugin.nvidiaConfig", c.DevicePlugin.NVIDIAConfig)
	}
	if inject := c.DevicePlugin.InjectModelsMount; inject.Enabled {
		switch {
		case !c.Cache.Enabled:
			f.wrong("devicePlugin.injectModelsMount.enabled", "want cache.enabled with it: without the cache there are no models to mount")
		case c.Allocation != AllocateByPlugin:
			f.wrong("devicePlugin.injectModelsMount.enabled", "want allocation device-plugin with it: the mount comes with the GPUs")
		}
		if root := cmp.Or(inject.HostRoot, c.Cache.Root); !path.IsAbs(root) || path.Clean(root) == "/" {
			f.wrong("devicePlugin.injectModelsMount.hostRoot", "want an absolute path of the host that is not its root, such as /var/lib/gpu-agent, got %q", root)
		}
	}
	c.checkChoice(f)
	f.absolute("devicePlugin.mpsBinDir", c.DevicePlugin.MPSBinDir)
	f.absolute("devicePlugin.kubeletDir", c.DevicePlugin.KubeletDir)
}
