package exporter

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// device is one GPU at one scrape.
type device struct {
	*gpu.Device
	driver    gpu.Driver
	holders   []resource.Owner // distinct containers that were given the GPU or shares of it
	users     []resource.Owner // and those that were given MIG instances of it
	known     bool             // whether the holders are known
	xid       uint64           // the last XID not older than the hold, else 0
	instances []*instance
}

// holding is the only container that holds the GPU, if there is exactly one.
func (d *device) holding() []resource.Owner { return only(d.holders) }

func only(holders []resource.Owner) []resource.Owner {
	if len(holders) != 1 {
		return nil
	}
	return holders
}

// node is everything but the GPUs at one scrape; nil is not known.
type node struct {
	version      string
	snapshot     *gpu.Snapshot
	inventory    *model.Inventory
	podResources *bool
	tasks        map[string]bool
	plugin       *PluginStatus
}

// podLabels are added to a GPU's series while exactly one container holds it.
var podLabels = []string{"namespace", "pod", "container"} //nolint:gochecknoglobals // a constant table

// held is what a container can hold alone: then its series carry the pod's labels.
type held interface{ holding() []resource.Owner }

// A view is the families of one schema over one kind of thing, ready to be collected.
type view[T held] struct {
	values func(T) []string // of the schema's labels
	series []series[T]
}

func newView[T held](labels []string, values func(T) []string, families []family[T]) view[T] {
	v := view[T]{values: values}
	for _, f := range families {
		v.series = append(v.series, newSeries(f, labels))
	}
	return v
}

func (v view[T]) collect(ch chan<- prometheus.Metric, from T) {
	base := v.values(from)
	held := base
	for _, o := range from.holding() {
		held = slices.Concat(base, []string{o.Namespace, o.Pod, o.Container})
	}
	for _, s := range v.series {
		if len(held) > len(base) && !s.family.board {
			s.collect(ch, s.held, from, held)
		} else {
			s.collect(ch, s.plain, from, base)
		}
	}
}

// series is a family with its descriptions: without pod labels, and with them.
type series[T any] struct {
	family      family[T]
	plain, held *prometheus.Desc
}

func newSeries[T any](f family[T], labels []string) series[T] {
	plain := slices.Concat(labels, f.labels)
	held := slices.Concat(labels, podLabels, f.labels)
	return series[T]{
		family: f,
		plain:  prometheus.NewDesc(f.name, f.help, plain, nil),
		held:   prometheus.NewDesc(f.name, f.help, held, nil),
	}
}

// collect sends the family's samples of one GPU or of the node. A sample that Prometheus would not accept
// is reported in its place, so that it costs only itself.
func (s series[T]) collect(ch chan<- prometheus.Metric, desc *prometheus.Desc, from T, base []string) {
	s.family.read(from, func(v float64, labels ...string) {
		values := slices.Concat(base, labels)
		for i := range values {
			values[i] = strings.ToValidUTF8(values[i], "\uFFFD") // a damaged board may answer with any bytes
		}
		m, err := prometheus.NewConstMetric(desc, s.family.kind, v, values...)
		if err != nil {
			m = prometheus.NewInvalidMetric(desc, err)
		}
		ch <- m
	})
}

// Describe sends nothing: which labels a series has depends on who holds the GPU, and a registry
// accepts that from collectors that do not describe themselves.
func (e *Collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends what is known now.
func (e *Collector) Collect(ch chan<- prometheus.Metric) {
	n := &node{version: e.config.Version, snapshot: e.sources.Snapshot()}
	var owners map[gpu.UUID][]resource.Owner
	if e.sources.Owners != nil {
		var up bool
		owners, up = e.sources.Owners()
		n.podResources = &up
	}
	if e.sources.Inventory != nil {
		n.inventory = e.sources.Inventory()
	}
	if e.sources.Tasks != nil {
		n.tasks = e.sources.Tasks()
	}
	if e.sources.Plugin != nil {
		status := e.sources.Plugin()
		n.plugin = &status
	}
	for _, s := range e.node {
		s.collect(ch, s.plain, n, nil)
	}
	if n.snapshot == nil {
		return
	}
	known := owners != nil || n.podResources != nil && *n.podResources
	for i := range n.snapshot.Devices {
		d := newDevice(n.snapshot, i, owners)
		d.known, d.xid = known, heldXID(d.XIDs, e.config.XIDHold)
		for _, collect := range e.schemas {
			collect(ch, d)
		}
	}
}

func newDevice(s *gpu.Snapshot, i int, owners map[gpu.UUID][]resource.Owner) *device {
	d := &device{Device: &s.Devices[i], driver: s.Driver, holders: distinct(owners[s.Devices[i].UUID])}
	users := d.holders
	for i := range d.Instances {
		in := &instance{Instance: &d.Instances[i], of: d, holders: distinct(owners[d.Instances[i].UUID])}
		d.instances = append(d.instances, in)
		users = slices.Concat(users, in.holders)
	}
	d.users = distinct(users)
	return d
}

// distinct drops repetitions: a container that was given two replicas of one GPU still holds it alone.
func distinct(owners []resource.Owner) []resource.Owner {
	var out []resource.Owner
	for _, o := range owners {
		if !slices.Contains(out, o) {
			out = append(out, o)
		}
	}
	return out
}

// heldXID is the code of the newest XID, or 0 when none came within the hold; a hold of 0 has no end.
func heldXID(xids []gpu.XIDCount, hold time.Duration) uint64 {
	var last gpu.XIDCount
	for _, x := range xids {
		if !x.Last.Before(last.Last) {
			last = x
		}
	}
	if hold > 0 && time.Since(last.Last) > hold {
		return 0
	}
	return last.Code
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 }

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }
