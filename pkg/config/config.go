// Package config turns one YAML file into finished values: every default is filled in, every unit is
// parsed, and whatever is wrong is said with its line and path. reference.yaml documents every key.
package config

import (
	_ "embed"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/nvml"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// Reference is the documented configuration with every key at its default.
//
//go:embed reference.yaml
var Reference []byte

// Config is the whole configuration. Its keys are those of reference.yaml, where each is explained.
type Config struct {
	NodeName     string       `yaml:"nodeName"`
	Log          Log          `yaml:"log"`
	NVML         NVML         `yaml:"nvml"`
	Allocation   string       `yaml:"allocation"`
	Health       Health       `yaml:"health"`
	DevicePlugin DevicePlugin `yaml:"devicePlugin"`
	CDI          CDI          `yaml:"cdi"`
	Exporter     Exporter     `yaml:"exporter"`
	HTTP         HTTP         `yaml:"http"`
	Labels       Labels       `yaml:"labels"`
	PodResources PodResources `yaml:"podResources"`
	Cache        Cache        `yaml:"cache"`

	// Notes are what NVIDIA's file says and the agent does not do, one line each, for people.
	Notes []string `yaml:"-"`

	places places
}

// Further checks what pkg/config does not know of values that parsed.
type Further func(Config) []Fault

// Fault is what is wrong with the value at a key.
type Fault struct {
	Key  string // such as cache.models[1].source
	Text string // what, and what was expected
	Note bool   // it may be right elsewhere, and is told and not refused
}

// At is where a key, or the innermost of its parents that is there, stands in the file, with the key itself.
func (c Config) At(key string) string { return c.places.at(key) }

// The ways in which pods get GPUs.
const (
	AllocateByPlugin = "device-plugin"
	AllocateNone     = "none" // somebody else gives them out
)

// Log is how the agent logs.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// NVML is how the driver is read.
type NVML struct {
	Library  string     `yaml:"library"`
	Interval Duration   `yaml:"interval"`
	Deadline Duration   `yaml:"deadline"`
	Simulate Simulation `yaml:"simulate"`
}

// Health is how the health of GPUs is judged, regained and kept.
type Health struct {
	StateDir      string            `yaml:"stateDir"` // "" keeps nothing
	Probes        int               `yaml:"probes"`
	ProbeInterval Duration          `yaml:"probeInterval"`
	Relapses      int               `yaml:"relapses"`
	XIDs          map[uint64]string `yaml:"xids"`
	Ignore        []string          `yaml:"ignore"`
}

// maxXID is the code by which NVML says that it does not know the code; the catalog's are below it.
const maxXID = 999

func (h Health) check(f *file) {
	if h.StateDir != "" {
		f.absolute("health.stateDir", h.StateDir)
	}
	f.within("health.probes", h.Probes, 1, 100)
	f.atLeast("health.probeInterval", h.ProbeInterval, 100*time.Millisecond)
	f.within("health.relapses", h.Relapses, 1, 1000)
	for xid, policy := range h.XIDs {
		at := fmt.Sprintf("health.xids.%d", xid)
		if xid < 1 || xid > maxXID {
			f.wrong(at, "want an XID of 1 to %d, got %d", maxXID, xid)
		}
		f.oneOf(at, policy, nvml.XIDPolicies()...)
	}
	for i, reason := range h.Ignore {
		f.oneOf(fmt.Sprintf("health.ignore[%d]", i), reason, ignorable()...)
	}
}

func ignorable() []string {
	var names []string
	for _, r := range nvml.IgnorableReasons() {
		names = append(names, string(r))
	}
	return names
}

// NVML is the same as the owner of the GPUs wants it.
func (h Health) NVML() nvml.Health {
	n := nvml.Health{
		StateDir: h.StateDir, Probes: h.Probes, ProbeInterval: time.Duration(h.ProbeInterval), Relapses: h.Relapses,
		XIDs: map[uint64]nvml.XIDPolicy{},
	}
	for xid, policy := range h.XIDs {
		n.XIDs[xid] = nvml.XIDPolicy(policy)
	}
	for _, reason := range h.Ignore {
		n.Ignore = append(n.Ignore, gpu.Reason(reason))
	}
	return n
}

// Simulation is a set of made-up GPUs; the zero value means that there are none.
type Simulation struct {
	GPU   string         `yaml:"gpu"`
	Count int            `yaml:"count"`
	MIG   []SimulatedMIG `yaml:"mig"`
}

// SimulatedMIG splits made-up GPUs: those with the given indexes, or all.
type SimulatedMIG struct {
	GPUs     []int    `yaml:"gpus"`
	Profiles []string `yaml:"profiles"`
}

// On says that GPUs are made up.
func (s Simulation) On() bool { return s.GPU != "" || s.Count != 0 || len(s.MIG) > 0 }

// NVML is the simulation as its owner wants it.
func (s Simulation) NVML() nvml.Simulation {
	n := nvml.Simulation{GPU: s.GPU, Count: s.Count}
	for _, m := range s.MIG {
		n.MIG = append(n.MIG, nvml.SimulatedMIG{GPUs: m.GPUs, Profiles: m.Profiles})
	}
	return n
}

// Check reports what is wrong with a simulation that was not read from a file.
func (s Simulation) Check() error {
	if models := nvml.SimulatedGPUs(); !slices.Contains(models, s.GPU) || s.Count < 1 || s.Count > 16 {
		return fmt.Errorf("want one of %s and 1 to 16 of it", strings.Join(models, ", "))
	}
	return nil
}

// Exporter is what /metrics shows.
type Exporter struct {
	Schemas []string `yaml:"schemas"`
	XIDHold Duration `yaml:"xidHold"`
}

// HTTP is where the agent listens.
type HTTP struct {
	Listen        string `yaml:"listen"`
	WebConfigFile string `yaml:"webConfigFile"`
	Socket        string `yaml:"socket"`
}

// Labels is where the node's labels go: Sink is node, file or none. With node, the Node object also
// carries the health of its GPUs.
type Labels struct {
	Sink       string `yaml:"sink"`
	File       string `yaml:"file"`
	Kubeconfig string `yaml:"kubeconfig"`
	Condition  bool   `yaml:"condition"`
	Events     bool   `yaml:"events"`

	StartupTaint bool `yaml:"startupTaint"`
}

// PodResources is where the kubelet says which pod holds which GPU.
type PodResources struct {
	Enabled  bool     `yaml:"enabled"`
	Socket   string   `yaml:"socket"`
	Interval Duration `yaml:"interval"`
}

// Cache is the model cache.
type Cache struct {
	Enabled  bool   `yaml:"enabled"`
	Root     string `yaml:"root"`
	Limit    Bytes  `yaml:"limit"` // 0: a share of the filesystem
	KeepFree Share  `yaml:"keepFree"`
	Disks    []Disk `yaml:"disks"` // beside that of the root
	// Of the kubelet whose disk the cache shares; "": its thresholds do not count.
	KubeletConfig    string `yaml:"kubeletConfig"`
	KubeletConfigDir string `yaml:"kubeletConfigDir"` // of drop-ins; "": none
	Streams          int    `yaml:"streams"`
	// How fast origins are read, all together.
	Bandwidth Bandwidth `yaml:"bandwidth"`
	// Of models whose source can move.
	Refresh Duration `yaml:"refresh"` // 0: never
	Keep    int      `yaml:"keep"`    // old revisions of each model
	Scrub   Scrub    `yaml:"scrub"`
	Warm    Warm     `yaml:"warm"`
	Demand  Demand   `yaml:"demand"`
	Models  []Model  `yaml:"models"`
	Sources Sources  `yaml:"sources"`
}

// Bandwidth is a limit, and the parts of each day in which another one holds.
type Bandwidth struct {
	Limit   Bytes    `yaml:"limit"` // a second; 0: none
	Windows []Window `yaml:"windows"`
}

// Window is a part of each day; From after To spans midnight.
type Window struct {
	From   Clock `yaml:"from"`
	To     Clock `yaml:"to"`
	Limit  Bytes `yaml:"limit,omitempty"` // a second; 0: none
	Paused bool  `yaml:"paused,omitempty"`
}

// Scrub is how the cache's content is read again.
type Scrub struct {
	Interval Duration `yaml:"interval"` // 0: never
	Rate     Bytes    `yaml:"rate"`     // a second
}

// Warm is which models are read ahead into the node's memory, and how much of it they may take.
type Warm struct {
	OnReady  bool  `yaml:"onReady"`
	OnPod    bool  `yaml:"onPod"`
	Limit    Share `yaml:"limit"`
	KeepFree Share `yaml:"keepFree"`
}

// Model is one model that the node should hold.
type Model struct {
	Name   string    `yaml:"name"`
	Source SourceURL `yaml:"source"`
	Pinned bool      `yaml:"pinned"`
	// Of hf sources, which of the repository's files: see model.Filter.
	Include     []string `yaml:"include,omitempty"`
	Exclude     []string `yaml:"exclude,omitempty"`
	AllowPickle bool     `yaml:"allowPickle,omitempty"`
	// Refresh overrides that of the cache; nil: it does not.
	Refresh *Duration `yaml:"refresh,omitempty"`

	Priority     int               `yaml:"priority,omitempty"`
	OnDemand     bool              `yaml:"onDemand,omitempty"`
	NodeSelector map[string]string `yaml:"nodeSelector,omitempty"`
	GPU          GPUNeeds          `yaml:"gpu,omitempty"`
}

// Specs are the models as the cache wants them.
func (c Cache) Specs() []model.Spec {
	specs := make([]model.Spec, 0, len(c.Models))
	for _, m := range c.Models {
		refresh := c.Refresh
		if m.Refresh != nil {
			refresh = *m.Refresh
		}
		specs = append(specs, model.Spec{Name: m.Name, Source: m.ref(), Pinned: m.Pinned, Refresh: time.Duration(refresh),
			Priority: m.Priority, OnDemand: m.OnDemand})
	}
	return specs
}

// Default is the configuration without a file.
func Default() Config {
	return Config{
		Log:        Log{Level: "info", Format: "text"},
		NVML:       NVML{Interval: Duration(10 * time.Second), Deadline: Duration(5 * time.Second), Simulate: Simulation{MIG: []SimulatedMIG{}}},
		Allocation: AllocateByPlugin,
		Health: Health{
			StateDir: "/var/lib/gpu-agent/state", Probes: nvml.DefaultProbes, ProbeInterval: Duration(nvml.DefaultProbeInterval),
			Relapses: nvml.DefaultRelapses, XIDs: map[uint64]string{}, Ignore: []string{},
		},
		DevicePlugin: DevicePlugin{
			Resource: "nvidia.com/gpu", Strategies: []string{"envvar"}, IDStrategy: "uuid",
			MIGStrategy: "none", Sharing: Sharing{Allocation: "distributed"}, MPSRoot: "/run/nvidia/mps", MPSBinDir: "/usr/bin", DevRoot: "/dev",
			Resources: Resources{GPUs: []ResourceName{}, MIG: []ResourceName{}}, Include: []string{}, Exclude: []string{},
			CDIAnnotationPrefix: "cdi.k8s.io/", IMEX: IMEX{ChannelIDs: []int{}},
			KubeletDir: "/var/lib/kubelet/device-plugins", InjectModelsMount: InjectModelsMount{Path: "/models"},
		},
		CDI: CDI{
			Dir: "/var/run/cdi", DriverRoot: "/", DriverRootMount: "/driver-root", DisabledHooks: []string{},
		},
		Exporter:     Exporter{Schemas: []string{"dcgm", "native"}, XIDHold: Duration(time.Hour)},
		HTTP:         HTTP{Listen: ":9400", Socket: "/run/gpu-agent/agent.sock"},
		Labels:       Labels{Sink: "node", Condition: true, Events: true},
		PodResources: PodResources{Enabled: true, Socket: "/var/lib/kubelet/pod-resources/kubelet.sock", Interval: Duration(5 * time.Second)},
		Cache: Cache{
			Enabled: true, Root: "/var/lib/gpu-agent", Disks: []Disk{}, Streams: 64, Bandwidth: Bandwidth{Windows: []Window{}}, Refresh: Duration(6 * time.Hour), Keep: 1, Models: []Model{},
			Demand:   Demand{Source: "kubelet", Socket: "/var/lib/kubelet/pods-api/pods-api.sock", Prefixes: []string{}},
			Scrub:    Scrub{Interval: Duration(7 * 24 * time.Hour), Rate: cache.DefaultScrubRate},
			KeepFree: Share{Percent: 15}, KubeletConfig: "/var/lib/kubelet/config.yaml",
			Warm: Warm{Limit: Share{Percent: 50}, KeepFree: Share{Percent: 10}},
			Sources: Sources{HTTP: SourceHTTP{TokenHosts: []string{}, Mirrors: []Mirror{}}, S3: SourceS3{Region: "us-east-1", Mirrors: []string{}}, OCI: SourceOCI{PlainHosts: []string{}, Mirrors: []Mirror{}},
				HF: SourceHub{Endpoint: "https://huggingface.co", Mirrors: []string{}},
				MS: SourceHub{Endpoint: "https://modelscope.cn", Mirrors: []string{}}, File: SourceFile{Roots: []string{}},
				GS: SourceGS{Mirrors: []string{}}, AZ: SourceAZ{Mirrors: []string{}}},
		},
	}
}

// Load reads and checks the file at path, and NVIDIA's file where it names one; "" is the configuration
// without a file. Of a folder of NVIDIA's files it takes what holds for a node without the label.
func Load(path string, further ...Further) (Config, error) { return LoadFor(path, "", further...) }

// LoadFor is Load for a node whose label ChoiceLabel has the given value; "" is a node without it.
func LoadFor(path, choice string, further ...Further) (Config, error) {
	if path == "" {
		c := Default()
		return c, c.finish()
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read config: %w", err)
	}
	c, err := Parse(path, data, further...)
	if err != nil {
		return c, err
	}
	theirs := c.DevicePlugin.NVIDIAConfig
	if dir := c.DevicePlugin.NVIDIAConfigDir; dir != "" {
		if theirs, err = choose(dir, choice); err != nil {
			return Config{}, fmt.Errorf("%s: devicePlugin.nvidiaConfigDir: %w", path, err)
		}
	}
	if theirs == "" {
		return c, nil
	}
	if data, err = os.ReadFile(theirs); err != nil {
		return Config{}, fmt.Errorf("%s: devicePlugin.nvidiaConfig: %w", path, err)
	}
	return c.WithNVIDIA(theirs, data)
}

// Parse checks the content of a file, which may also be NVIDIA's. The error is an Errors with everything
// that is wrong, what further finds included; name stands before each line. The file that devicePlugin.nvidiaConfig
// names is not read.
func Parse(name string, data []byte, further ...Further) (Config, error) {
	c := Default()
	f, root, err := open(name, data, "apiVersion: "+apiVersion+" and kind: "+kind)
	if err != nil {
		return Config{}, err
	}
	c.places = f.places
	if isNVIDIA(root) {
		if c, err = c.WithNVIDIA(name, data); err != nil {
			return Config{}, err
		}
		return c, c.finish()
	}
	f.header(root)
	if f.strict(data, &struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
		*Config    `yaml:",inline"`
	}{Config: &c}) {
		c.check(f)
		for _, check := range further {
			c.take(f, check(c))
		}
	}
	if err := f.err(); err != nil {
		return Config{}, err
	}
	return c, c.finish()
}

// take has faults among what is wrong with the file, and notes among the Notes.
func (c *Config) take(f *file, faults []Fault) {
	for _, fault := range faults {
		if !fault.Note {
			f.wrong(fault.Key, "%s", fault.Text)
		} else if !f.said(fault.Key) {
			c.Notes = append(c.Notes, f.at(fault.Key)+": "+fault.Text)
		}
	}
}

// finish fills in what comes from the host and from other keys.
func (c *Config) finish() error {
	if c.DevicePlugin.CDIKind == "" && c.CDI.Enabled {
		c.DevicePlugin.CDIKind = resource.OwnCDIKind
	}
	if c.NodeName == "" {
		c.NodeName = os.Getenv("NODE_NAME")
	}
	if c.NodeName != "" {
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("nodeName is not set and the host name cannot be read: %w", err)
	}
	c.NodeName = strings.ToLower(host)
	return nil
}

// check says what is wrong with values that parsed.
func (c *Config) check(f *file) {
	f.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	f.oneOf("log.format", c.Log.Format, "text", "json")
	f.atLeast("nvml.interval", c.NVML.Interval, 100*time.Millisecond)
	f.atLeast("nvml.deadline", c.NVML.Deadline, 100*time.Millisecond)
	if c.NVML.Simulate.On() {
		c.NVML.Simulate.check(f)
	}
	if c.NVML.Library != "" && c.NVML.Simulate.On() {
		f.wrong("nvml.library", "a simulation loads no library: remove this or nvml.simulate")
	}
	f.oneOf("allocation", c.Allocation, AllocateByPlugin, AllocateNone)
	c.Health.check(f)
	c.checkPlaces(f)
	c.checkPlugin(f)
	c.checkCDI(f)
	if len(c.Exporter.Schemas) == 0 {
		f.wrong("exporter.schemas", "want dcgm, native or both, got none")
	}
	for i, s := range c.Exporter.Schemas {
		f.oneOf(fmt.Sprintf("exporter.schemas[%d]", i), s, "dcgm", "native")
	}
	f.atLeast("exporter.xidHold", c.Exporter.XIDHold, 0)
	f.oneOf("labels.sink", c.Labels.Sink, "node", "file", "none")
	if c.Labels.StartupTaint && c.Labels.Sink != "node" {
		f.wrong("labels.startupTaint", "want labels.sink node with it: the taint is on the Node object")
	}
	if (c.Labels.Sink == "file") != (c.Labels.File != "") {
		f.wrong("labels.file", "want a path when labels.sink is file, and none otherwise")
	}
	f.atLeast("podResources.interval", c.PodResources.Interval, 100*time.Millisecond)
	c.Cache.check(f)
	c.checkDemand(f)
}

func (s Simulation) check(f *file) {
	f.oneOf("nvml.simulate.gpu", s.GPU, nvml.SimulatedGPUs()...)
	if s.Count < 1 || s.Count > 16 {
		f.wrong("nvml.simulate.count", "want 1 to 16, got %d", s.Count)
	}
	if s.Check() != nil {
		return // a split cannot be judged without the GPUs
	}
	for i := range s.MIG {
		if err := s.NVML().CheckMIG(i); err != nil {
			f.wrong(fmt.Sprintf("nvml.simulate.mig[%d]", i), "%v", err)
		}
	}
}

// Schemes are the sources that there are. A table: nobody changes it.
var Schemes = []string{"https", "http", "s3", "oci", "hf", "ms", "file", "gs", "az"}

func (c *Cache) check(f *file) {
	f.absolute("cache.root", c.Root)
	if filepath.Clean(c.Root) == "/" {
		f.wrong("cache.root", "want a directory of its own, such as /var/lib/gpu-agent, got %q", c.Root)
	}
	if c.KubeletConfig != "" {
		f.absolute("cache.kubeletConfig", c.KubeletConfig)
	}
	switch {
	case c.KubeletConfigDir == "":
	case c.KubeletConfig == "":
		f.wrong("cache.kubeletConfigDir", "want cache.kubeletConfig too: it holds drop-ins of that file")
	default:
		f.absolute("cache.kubeletConfigDir", c.KubeletConfigDir)
	}
	if c.Streams < 1 || c.Streams > 256 {
		f.wrong("cache.streams", "want 1 to 256, got %d", c.Streams)
	}
	c.Bandwidth.check(f)
	f.refresh("cache.refresh", c.Refresh)
	if c.Keep < 0 || c.Keep > 100 {
		f.wrong("cache.keep", "want 0 to 100 old revisions, got %d", c.Keep)
	}
	if d := time.Duration(c.Scrub.Interval); d != 0 && d < time.Hour {
		f.wrong("cache.scrub.interval", "want 0s (never) or at least 1h, got %s", c.Scrub.Interval)
	}
	if c.Scrub.Rate < 1<<20 {
		f.wrong("cache.scrub.rate", "want at least 1Mi (a second), got %s", model.FormatBytes(int64(c.Scrub.Rate)))
	}
	c.checkDisks(f)
	if c.Warm.Limit == (Share{}) {
		f.wrong("cache.warm.limit", "want more than nothing, such as 50%% or 200Gi; what turns reading ahead off is onReady and onPod")
	}
	if c.Warm.OnPod && c.Demand.Source == DemandByNone {
		f.wrong("cache.warm.onPod", "want cache.demand.source kubelet or apiserver with it: else no pod is seen")
	}
	c.Demand.check(f)
	seen := map[string]int{}
	for i, m := range c.Models {
		at := fmt.Sprintf("cache.models[%d]", i)
		if err := model.CheckName(m.Name); err != nil {
			f.wrong(at+".name", "%v", err)
		}
		if first, dup := seen[m.Name]; dup {
			f.wrong(at+".name", "%q is also the name of cache.models[%d]: names must differ", m.Name, first)
		} else {
			seen[m.Name] = i
		}
		m.GPU.check(f, at+".gpu")
		if m.Refresh != nil {
			f.refresh(at+".refresh", *m.Refresh)
		}
		if m.Source.Ref == (model.Ref{}) {
			f.wrong(at+".source", "want a URL such as s3://bucket/prefix")
			continue
		}
		f.oneOf(at+".source", m.Source.Scheme, Schemes...)
		m.checkFilter(f, at)
	}
}

func (b Bandwidth) check(f *file) {
	const day = 24 * 60
	var held [day]bool // minutes in which an earlier window holds
	for i, w := range b.Windows {
		at := fmt.Sprintf("cache.bandwidth.windows[%d]", i)
		if w.From == w.To {
			f.wrong(at, "want from and to, such as \"22:00\" and \"06:00\", that differ")
			continue
		}
		if w.Paused && w.Limit != 0 {
			f.wrong(at, "want limit or paused, not both")
		}
		hidden := true
		for m := w.From.minute(); m != w.To.minute(); m = (m + 1) % day {
			hidden = hidden && held[m]
			held[m] = true
		}
		if hidden {
			f.wrong(at, "it never holds: all of it is in earlier windows, of which the first that fits does (%s): remove it, or put it before them", b.over(i, f))
		}
	}
}

// over names the windows that hold in the place of a later one.
func (b Bandwidth) over(late int, f *file) string {
	var names []string
	for i, w := range b.Windows[:late] {
		if w.overlaps(b.Windows[late]) {
			names = append(names, fmt.Sprintf("windows[%d] in line %d", i, f.line(fmt.Sprintf("cache.bandwidth.windows[%d]", i))))
		}
	}
	return strings.Join(names, ", ")
}

// overlaps reports whether there is a minute of the day that is in both.
func (w Window) overlaps(other Window) bool { return w.holds(other.From) || other.holds(w.From) }

func (w Window) holds(at Clock) bool {
	if w.From <= w.To {
		return w.From <= at && at < w.To
	}
	return at >= w.From || at < w.To
}

// refresh refuses what would hammer an origin: many nodes ask one.
func (f *file) refresh(path string, d Duration) {
	if d != 0 && time.Duration(d) < time.Minute {
		f.wrong(path, "want 0s (never) or at least 1m, got %s", d)
	}
}

func (f *file) absolute(path, value string) {
	if !filepath.IsAbs(value) {
		f.wrong(path, "want an absolute path, got %q", value)
	}
}

// hostName is what the API server accepts as the name of a Node (RFC 1123 subdomain).
var hostName = lazyregexp.New(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// checkPlaces checks what names a place: the node, addresses, sockets.
func (c *Config) checkPlaces(f *file) {
	if c.NodeName != "" && (len(c.NodeName) > 253 || !hostName().MatchString(c.NodeName)) {
		f.wrong("nodeName", "want the name of a Node: a-z 0-9 - . and at most 253 of them, got %q", c.NodeName)
	}
	if _, port, err := net.SplitHostPort(c.HTTP.Listen); err != nil {
		f.wrong("http.listen", "want [address]:port, such as :9400, got %q", c.HTTP.Listen)
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		f.wrong("http.listen", "want a port number of 0 to 65535, got %q", port)
	}
	f.absolute("http.socket", c.HTTP.Socket)
	f.absolute("podResources.socket", c.PodResources.Socket)
}
