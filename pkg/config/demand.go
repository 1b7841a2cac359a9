package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
)

// Demand is how it is seen which models the pods of this node need, and which they may ask for.
type Demand struct {
	Source     string   `yaml:"source"`
	Socket     string   `yaml:"socket"`
	References bool     `yaml:"references"`
	Prefixes   []string `yaml:"prefixes"`
}

// Where pods are seen.
const (
	DemandByKubelet = "kubelet"
	DemandByServer  = "apiserver"
	DemandByNone    = "none"
)

func (d Demand) check(f *file) {
	f.oneOf("cache.demand.source", d.Source, DemandByKubelet, DemandByServer, DemandByNone)
	f.absolute("cache.demand.socket", d.Socket)
	if d.References != (len(d.Prefixes) > 0) {
		f.wrong("cache.demand.references", "want references and prefixes together: without a prefix a pod could have this node fetch anything")
	}
	for i, p := range d.Prefixes {
		at := fmt.Sprintf("cache.demand.prefixes[%d]", i)
		scheme, rest, ok := strings.Cut(p, "://")
		if !ok || rest == "" || strings.ContainsAny(rest, "?#%") {
			f.wrong(at, "want the beginning of references, such as hf://organization/, got %q", p)
		} else {
			f.oneOf(at, scheme, Schemes...)
		}
	}
}

// GPUNeeds are what a GPU of the node must be for a model; the zero value is nothing.
type GPUNeeds struct {
	MinMemory            Bytes    `yaml:"minMemory,omitempty"`
	MinComputeCapability string   `yaml:"minComputeCapability,omitempty"`
	Products             []string `yaml:"products,omitempty"`
}

// Any reports whether something is needed.
func (g GPUNeeds) Any() bool {
	return g.MinMemory > 0 || g.MinComputeCapability != "" || len(g.Products) > 0
}

var capabilityForm = lazyregexp.New(`^([1-9][0-9]?)\.([0-9])$`)

// ComputeCapability is the least one; 0, 0 where none is asked for.
func (g GPUNeeds) ComputeCapability() (major, minor int) {
	if m := capabilityForm().FindStringSubmatch(g.MinComputeCapability); m != nil {
		major, _ = strconv.Atoi(m[1])
		minor, _ = strconv.Atoi(m[2])
	}
	return major, minor
}

func (g GPUNeeds) check(f *file, at string) {
	if g.MinComputeCapability != "" && !capabilityForm().MatchString(g.MinComputeCapability) {
		f.wrong(at+".minComputeCapability", "want major.minor, such as 8.0, got %q", g.MinComputeCapability)
	}
	if slices.Contains(g.Products, "") {
		f.wrong(at+".products", "want patterns such as *H100*, got an empty one")
	}
}

// checkDemand refuses what needs the API server where that is not asked.
func (c *Config) checkDemand(f *file) {
	if c.Labels.Sink == "node" {
		return
	}
	if c.Cache.Demand.Source == DemandByServer {
		f.wrong("cache.demand.source", "want labels.sink node with apiserver: that is the way to the API server")
	}
	for i, m := range c.Cache.Models {
		if len(m.NodeSelector) > 0 {
			f.wrong(fmt.Sprintf("cache.models[%d].nodeSelector", i), "want labels.sink node with it: the node's labels are read from the API server")
		}
	}
}
