package exporter

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

// A family is one row of a table: a metric's name and meaning, and how to read it from a T.
type family[T any] struct {
	name string
	kind prometheus.ValueType
	unit string // for the documentation; the name carries it where names do
	help string
	// labels are the names of those that this family has beyond its schema's.
	labels []string
	// board marks what is true of the board whoever holds it: no pod labels, so that a counter of it is
	// not cut in pieces as pods come and go.
	board bool
	// dcgm names the family with the same fact in the dcgm schema; for the documentation.
	dcgm string
	read read[T]
}

// emit hands one sample to the scrape, with the values of family.labels in their order.
type emit func(value float64, labels ...string)

// read emits the samples of a family that are known, and none that is not.
type read[T any] func(from T, to emit)

// stat is one reading of a GPU, as convert turns it; no sample where the reading is absent.
func stat[N float64 | uint64](convert func(float64) float64, field func(*gpu.Stats) *N, labels ...string) read[*device] {
	return func(d *device, to emit) {
		if d.Stats == nil {
			return
		}
		if v := field(d.Stats); v != nil {
			to(convert(float64(*v)), labels...)
		}
	}
}

// truth is one yes or no of a GPU as 1 or 0; no sample where it is absent.
func truth(field func(*gpu.Stats) *bool) read[*device] {
	return func(d *device, to emit) {
		if d.Stats == nil {
			return
		}
		if v := field(d.Stats); v != nil {
			to(oneIf(*v))
		}
	}
}

// several are the samples of one family that differ in labels.
func several[T any](parts ...read[T]) read[T] {
	return func(from T, to emit) {
		for _, part := range parts {
			part(from, to)
		}
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Conversions from gpu.Stats' base units. DCGM prints whole numbers where it reads whole numbers, and
// users compare for equality, so those are rounded and not left at 1979.9999999.
func same(v float64) float64        { return v }
func whole(v float64) float64       { return math.Round(v) }
func percent(v float64) float64     { return math.Round(100 * v) }
func megahertz(v float64) float64   { return math.Round(v / 1e6) }
func mebibytes(v float64) float64   { return math.Floor(v / (1 << 20)) }
func millijoules(v float64) float64 { return math.Round(v * 1e3) }
func nanoseconds(v float64) float64 { return math.Round(v * 1e9) }

// kibibytesPerMillisecond is what DCGM calls MB/s: it divides a difference in KiB by 1000.
func kibibytesPerMillisecond(v float64) float64 { return v / 1024 / 1000 }
