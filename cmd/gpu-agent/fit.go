package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// fitted are the models of a configuration, each with why it is not for this node, or why that is not known. labels
// are the Node's; nil: not known yet.
func fitted(c config.Cache, s *gpu.Snapshot, labels map[string]string) []model.Spec {
	specs := c.Specs()
	for i, m := range c.Models {
		specs[i].Unfit, specs[i].Unsure = fits(m, s, labels)
	}
	return specs
}

func fits(m config.Model, s *gpu.Snapshot, labels map[string]string) (unfit, unsure string) {
	const not, dunno = "not for this node: needs ", "not known yet whether it is for this node: "
	if len(m.NodeSelector) > 0 && labels == nil {
		return "", dunno + "the node's labels have not been read"
	}
	for _, key := range slices.Sorted(maps.Keys(m.NodeSelector)) {
		want := m.NodeSelector[key]
		switch got, has := labels[key]; {
		case !has:
			return fmt.Sprintf(not+"label %s=%s, this node has no %s", key, want, key), ""
		case got != want:
			return fmt.Sprintf(not+"label %s=%s, this node has %s", key, want, got), ""
		}
	}
	if !m.GPU.Any() {
		return "", ""
	}
	if s == nil || !s.Driver.Loaded && len(s.Devices) == 0 {
		why := gpu.NotAsked
		if s != nil && s.Driver.Error != "" {
			why = s.Driver.Error
		}
		return "", dunno + why
	}
	if why := fitsGPU(m.GPU, s.Devices); why != "" {
		return not + why, ""
	}
	return "", ""
}

// piece is a GPU, or a MIG instance, as a pod could get it.
type piece struct {
	memory       uint64 // bytes
	major, minor int
	name         string
}

func fitsGPU(g config.GPUNeeds, devices []gpu.Device) string {
	var pieces []piece
	for i := range devices {
		d := &devices[i]
		if !d.MIGEnabled {
			pieces = append(pieces, piece{d.Memory, d.ComputeMajor, d.ComputeMinor, d.Name})
		}
		for _, in := range d.Instances {
			pieces = append(pieces, piece{in.Memory, d.ComputeMajor, d.ComputeMinor, d.Name})
		}
	}
	if len(pieces) == 0 {
		return "a GPU, there is none here"
	}
	// One of them must have it all: each condition leaves those that it likes.
	if len(g.Products) > 0 {
		names := map[string]bool{}
		pieces = slices.DeleteFunc(pieces, func(p piece) bool {
			names[p.name] = true
			return !slices.ContainsFunc(g.Products, func(pattern string) bool { return resource.Matches(pattern, p.name) })
		})
		if len(pieces) == 0 {
			return "a GPU of " + strings.Join(g.Products, " or ") + ", here is " + strings.Join(slices.Sorted(maps.Keys(names)), ", ")
		}
	}
	if major, minor := g.ComputeCapability(); major > 0 {
		best := slices.MaxFunc(pieces, func(a, b piece) int { return 10*(a.major-b.major) + a.minor - b.minor })
		pieces = slices.DeleteFunc(pieces, func(p piece) bool { return p.major < major || p.major == major && p.minor < minor })
		if len(pieces) == 0 {
			return fmt.Sprintf("compute capability %s, the best here has %d.%d", g.MinComputeCapability, best.major, best.minor)
		}
	}
	var largest uint64
	for _, p := range pieces {
		largest = max(largest, p.memory)
	}
	if largest < uint64(g.MinMemory) {
		return fmt.Sprintf("%s of GPU memory, the largest here has %s", model.FormatBytes(int64(g.MinMemory)), model.FormatBytes(largest))
	}
	return ""
}
