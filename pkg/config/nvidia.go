package config

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// nvidiaFile is the configuration of NVIDIA's device plugin and of its GPU feature discovery, version v1.
// A key that is not given is nil, and leaves what it stands for as it is.
type nvidiaFile struct {
	Version   string        `yaml:"version"`
	Flags     nvidiaFlags   `yaml:"flags"`
	Resources Resources     `yaml:"resources"`
	Sharing   nvidiaSharing `yaml:"sharing"`
	IMEX      *IMEX         `yaml:"imex"`
}

type nvidiaFlags struct {
	MIGStrategy             *string      `yaml:"migStrategy"`
	FailOnInitError         *bool        `yaml:"failOnInitError"`
	MPSRoot                 *string      `yaml:"mpsRoot"`
	DriverRoot              *string      `yaml:"nvidiaDriverRoot"`
	DevRoot                 *string      `yaml:"nvidiaDevRoot"`
	GDRCopy                 *bool        `yaml:"gdrcopyEnabled"`
	GDS                     *bool        `yaml:"gdsEnabled"`
	MOFED                   *bool        `yaml:"mofedEnabled"`
	UseNodeFeatureAPI       *bool        `yaml:"useNodeFeatureAPI"`
	DeviceDiscoveryStrategy *string      `yaml:"deviceDiscoveryStrategy"`
	Plugin                  nvidiaPlugin `yaml:"plugin"`
	GFD                     nvidiaGFD    `yaml:"gfd"`
}

type nvidiaPlugin struct {
	PassDeviceSpecs     *bool   `yaml:"passDeviceSpecs"`
	DeviceListStrategy  texts   `yaml:"deviceListStrategy"`
	DeviceIDStrategy    *string `yaml:"deviceIDStrategy"`
	CDIAnnotationPrefix *string `yaml:"cdiAnnotationPrefix"`
	CTKPath             *string `yaml:"nvidiaCTKPath"`
	ContainerDriverRoot *string `yaml:"containerDriverRoot"`
	AllocationPolicy    *string `yaml:"sharedDevicesAllocationPolicy"`
}

type nvidiaGFD struct {
	Oneshot         *bool   `yaml:"oneshot"`
	NoTimestamp     *bool   `yaml:"noTimestamp"`
	SleepInterval   *string `yaml:"sleepInterval"`
	OutputFile      *string `yaml:"outputFile"`
	MachineTypeFile *string `yaml:"machineTypeFile"`
}

type nvidiaSharing struct {
	TimeSlicing *Shares `yaml:"timeSlicing"`
	MPS         *Shares `yaml:"mps"`
}

// texts is one text or a list of them.
type texts []string

// UnmarshalYAML implements yaml.Unmarshaler.
func (t *texts) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*t = texts{n.Value}
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		return bad(n, "want a text or a list of texts")
	}
	return n.Decode((*[]string)(t))
}

const nvidiaVersion = "v1"

// isNVIDIA tells NVIDIA's files from ours. A file of theirs need not name its version.
func isNVIDIA(root *yaml.Node) bool {
	keys := map[string]bool{}
	for i := 0; root.Kind == yaml.MappingNode && i+1 < len(root.Content); i += 2 {
		keys[root.Content[i].Value] = true
	}
	return !keys["apiVersion"] && !keys["kind"] && (keys["version"] || keys["flags"] || keys["sharing"])
}

// WithNVIDIA is c with what the content of NVIDIA's file decides; name stands before each line of an
// error, which is an Errors. What the file does not say stays as it is in c. What it says and the agent
// does not do is in Notes.
func (c Config) WithNVIDIA(name string, data []byte) (Config, error) {
	f, _, err := open(name, data, "version: "+nvidiaVersion)
	if err != nil {
		return Config{}, err
	}
	f.unknown = "unknown key: NVIDIA's version v1 has none of this name"
	var n nvidiaFile
	if f.strict(data, &n); len(f.found) > 0 {
		return Config{}, f.err()
	}
	if v := cmp.Or(n.Version, nvidiaVersion); v != nvidiaVersion {
		f.wrong("version", "want %s, got %q", nvidiaVersion, v)
	}
	m := merge{file: f, plugin: c.DevicePlugin, standard: Default().DevicePlugin}
	m.flags(n.Flags)
	m.pluginFlags(n.Flags.Plugin)
	m.rest(n)
	m.told(n.Flags)
	m.check()
	if err := f.err(); err != nil {
		return Config{}, err
	}
	c.DevicePlugin = m.plugin
	c.Notes = slices.Concat(c.Notes, m.notes)
	return c, nil
}

// merge lays NVIDIA's file over the device plugin's part of ours.
type merge struct {
	*file
	plugin, standard DevicePlugin
	notes            []string
}

func (m *merge) note(path, format string, args ...any) {
	m.notes = append(m.notes, fmt.Sprintf("%s:%d: %s: ", m.name, m.line(path), path)+fmt.Sprintf(format, args...))
}

// override sets a key of ours to what NVIDIA's file says, if it says anything, and notes it where ours
// had said otherwise.
func override[T any](m *merge, path string, own *T, standard T, value *T) {
	if value == nil {
		return
	}
	if !reflect.DeepEqual(*own, standard) && !reflect.DeepEqual(*own, *value) {
		m.note(path, "wins over what the agent's own configuration says")
	}
	*own = *value
}

func (m *merge) flags(n nvidiaFlags) {
	own, standard := &m.plugin, &m.standard
	override(m, "flags.migStrategy", &own.MIGStrategy, standard.MIGStrategy, n.MIGStrategy)
	override(m, "flags.gdrcopyEnabled", &own.GDRCopy, standard.GDRCopy, n.GDRCopy)
	override(m, "flags.gdsEnabled", &own.GDS, standard.GDS, n.GDS)
	override(m, "flags.mofedEnabled", &own.MOFED, standard.MOFED, n.MOFED)
	if n.MPSRoot != nil && *n.MPSRoot != "" {
		override(m, "flags.mpsRoot", &own.MPSRoot, standard.MPSRoot, n.MPSRoot)
	}
	// Device nodes are below the driver's root unless they have one of their own.
	path, root := "flags.nvidiaDriverRoot", n.DriverRoot
	if n.DevRoot != nil && *n.DevRoot != "" {
		path, root = "flags.nvidiaDevRoot", n.DevRoot
	}
	if root != nil && *root != "" {
		override(m, path, &own.DevRoot, standard.DevRoot, new(filepath.Join(*root, "dev")))
	}
	if s := n.DeviceDiscoveryStrategy; s != nil {
		m.oneOf("flags.deviceDiscoveryStrategy", *s, "auto", "nvml")
	}
}

func (m *merge) pluginFlags(n nvidiaPlugin) {
	own, standard := &m.plugin, &m.standard
	override(m, "flags.plugin.passDeviceSpecs", &own.PassDeviceSpecs, standard.PassDeviceSpecs, n.PassDeviceSpecs)
	override(m, "flags.plugin.deviceIDStrategy", &own.IDStrategy, standard.IDStrategy, n.DeviceIDStrategy)
	override(m, "flags.plugin.cdiAnnotationPrefix", &own.CDIAnnotationPrefix, standard.CDIAnnotationPrefix, n.CDIAnnotationPrefix)
	override(m, "flags.plugin.sharedDevicesAllocationPolicy", &own.Sharing.Allocation, standard.Sharing.Allocation, n.AllocationPolicy)
	if len(n.DeviceListStrategy) > 0 {
		override(m, "flags.plugin.deviceListStrategy", &own.Strategies, standard.Strategies, new([]string(n.DeviceListStrategy)))
	}
}

// rest is what stands beside the flags.
func (m *merge) rest(n nvidiaFile) {
	own, standard := &m.plugin, &m.standard
	if len(n.Resources.GPUs)+len(n.Resources.MIG) > 0 {
		override(m, "resources", &own.Resources, standard.Resources, new(n.Resources.prefixed()))
	}
	override(m, "imex", &own.IMEX, standard.IMEX, n.IMEX)
	slicing, mps := n.Sharing.TimeSlicing.prefixed(), n.Sharing.MPS.prefixed()
	if slicing != nil && mps != nil {
		m.note("sharing.timeSlicing", "has no effect: sharing.mps wins where both are there, as in NVIDIA's plugin")
		slicing = nil
	}
	if slicing != nil || mps != nil {
		override(m, "sharing", &own.Sharing, Sharing{Allocation: own.Sharing.Allocation},
			&Sharing{TimeSlicing: slicing, MPS: mps, Allocation: own.Sharing.Allocation})
	}
}

// told notes the keys that stand for nothing here.
func (m *merge) told(n nvidiaFlags) {
	set := func(path string, on bool, text string) {
		if on {
			m.note(path, "%s", text)
		}
	}
	other := func(value *string, usual ...string) bool {
		return value != nil && !slices.Contains(append(usual, ""), *value)
	}
	isTrue := func(b *bool) bool { return b != nil && *b }
	set("flags.failOnInitError", isTrue(n.FailOnInitError), "has no effect: without a driver the agent waits for one, and says so")
	set("flags.nvidiaDriverRoot", other(n.DriverRoot, "/"), "holds for device nodes alone: name the driver's library with nvml.library, and the root for CDI specs with cdi.driverRoot")
	set("flags.useNodeFeatureAPI", isTrue(n.UseNodeFeatureAPI), "has no effect: labels go to the Node itself, see labels.sink")
	set("flags.plugin.nvidiaCTKPath", other(n.Plugin.CTKPath, "/usr/bin/nvidia-ctk", "/usr/bin/nvidia-cdi-hook"), "has no effect: CDI specs are the host's own, or see cdi.hook")
	set("flags.plugin.containerDriverRoot", other(n.Plugin.ContainerDriverRoot, "/driver-root"), "has no effect: name the driver's library with nvml.library, and the root for CDI specs with cdi.driverRootMount")
	set("flags.gfd.oneshot", isTrue(n.GFD.Oneshot), "has no effect: see gpu-agent labels --once")
	set("flags.gfd.noTimestamp", n.GFD.NoTimestamp != nil && !*n.GFD.NoTimestamp, "has no effect: the label nvidia.com/gfd.timestamp is never set")
	set("flags.gfd.sleepInterval", n.GFD.SleepInterval != nil, "has no effect: labels follow each change")
	set("flags.gfd.outputFile", other(n.GFD.OutputFile), "has no effect: see labels.sink and labels.file")
	set("flags.gfd.machineTypeFile", other(n.GFD.MachineTypeFile, "/sys/class/dmi/id/product_name"), "has no effect: the machine's name is that of /sys/class/dmi/id/product_name")
	for _, s := range n.Plugin.DeviceListStrategy {
		if s == resource.CDICRI || s == resource.CDIAnnotations {
			m.note("flags.plugin.deviceListStrategy", "CDI names are of the kind %s: see devicePlugin.cdiKind", cmp.Or(m.plugin.CDIKind, resource.HostCDIKind))
			break
		}
	}
}

// check says what is wrong with the whole, in the words of NVIDIA's file.
func (m *merge) check() {
	_, err := resource.NewPolicy(m.plugin.Policy())
	var faults resource.Faults
	if !errors.As(err, &faults) {
		return
	}
	for _, fault := range faults {
		path := fault.Path
		for own, theirs := range map[string]string{
			"migStrategy": "flags.migStrategy", "mpsRoot": "flags.mpsRoot", "devRoot": "flags.nvidiaDevRoot",
			"strategies": "flags.plugin.deviceListStrategy", "idStrategy": "flags.plugin.deviceIDStrategy",
			"cdiAnnotationPrefix": "flags.plugin.cdiAnnotationPrefix",
			"sharing.allocation":  "flags.plugin.sharedDevicesAllocationPolicy",
		} {
			if rest, ok := strings.CutPrefix(path, own); ok && (rest == "" || rest[0] == '[') {
				path = theirs + rest
				break
			}
		}
		m.wrong(path, "%s", fault.Text)
	}
}

// prefixed are the names as NVIDIA's plugin reads them: without a domain they are NVIDIA's.
func prefixed(name string) string {
	if name == "" || strings.Contains(name, "/") {
		return name
	}
	return "nvidia.com/" + name
}

func (r Resources) prefixed() Resources {
	names := func(list []ResourceName) []ResourceName {
		list = slices.Clone(list)
		for i := range list {
			list[i].Name = prefixed(list[i].Name)
		}
		return list
	}
	return Resources{GPUs: names(r.GPUs), MIG: names(r.MIG)}
}

func (s *Shares) prefixed() *Shares {
	if s == nil {
		return nil
	}
	out := *s
	out.Resources = slices.Clone(s.Resources)
	for i := range out.Resources {
		r := &out.Resources[i]
		r.Name, r.Rename = prefixed(r.Name), prefixed(r.Rename)
	}
	return &out
}
