package main

import (
	"fmt"
	"slices"

	"github.com/gpu-agent/gpu-agent/pkg/cdi"
	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/mps"
	"github.com/gpu-agent/gpu-agent/pkg/ready"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// newGate builds what holds back a GPU that is well, for reasons of the parts in force.
func (a *agent) newGate(source ready.Source) *ready.Gate {
	g := ready.New(source)
	part := func(missing func(*wiring, *gpu.Snapshot) map[gpu.UUID]string) {
		g.Add(func(s *gpu.Snapshot) map[gpu.UUID]string {
			if now := a.now(); now != nil {
				return missing(now, s)
			}
			return nil // nothing runs yet
		})
	}
	part(func(now *wiring, s *gpu.Snapshot) map[gpu.UUID]string {
		if now.config.Allocation != config.AllocateByPlugin {
			return nil
		}
		return a.policy.Get().Missing(s)
	})
	part(func(now *wiring, s *gpu.Snapshot) map[gpu.UUID]string {
		if now.specs == nil {
			return nil
		}
		return now.specs.Missing(s)
	})
	part(func(now *wiring, s *gpu.Snapshot) map[gpu.UUID]string {
		if now.daemons == nil {
			return nil
		}
		return now.daemons.Missing(s)
	})
	return g
}

// addSpecs adds what writes CDI specs.
func (a *agent) addSpecs(w, before *wiring) (err error) {
	c, d := w.config.CDI, w.config.DevicePlugin
	type of struct {
		cdi                 config.CDI
		library             string
		gds, mofed, gdrcopy bool
		channels            []int
	}
	p := part{"cdi", c.Enabled, of{c, w.config.NVML.Library, d.GDS, d.MOFED, d.GDRCopy, d.IMEX.ChannelIDs}}
	w.specs, err = again(w, before, p, before.specs, func() (*cdi.Writer, error) {
		var classes []string
		for class, on := range map[string]bool{cdi.ClassGDS: d.GDS, cdi.ClassMOFED: d.MOFED, cdi.ClassGDRCopy: d.GDRCopy} {
			if on {
				classes = append(classes, class)
			}
		}
		slices.Sort(classes)
		specs, err := cdi.New(cdi.Config{
			Dir: c.Dir, DriverRoot: c.DriverRoot, DriverRootMount: c.DriverRootMount,
			DevRoot: c.DevRoot, DevRootMount: c.DevRootMount, Hook: c.Hook, DisabledHooks: c.DisabledHooks,
			Classes: classes, IMEXChannels: d.IMEX.ChannelIDs,
			Library: w.config.NVML.Library, Version: version, Changed: a.gate.Poke, Log: a.log.With("part", "cdi"),
			// The running program, even when its file was replaced meanwhile.
			Generator: &cdi.Child{Path: "/proc/self/exe", Args: []string{"cdi", "generate"}},
		}, w.monitor)
		if err != nil {
			return nil, usageError{fmt.Errorf("cdi: %w", err)}
		}
		return specs, nil
	})
	if w.specs != nil {
		w.task(before, p, w.specs.Run)
	}
	return err
}

// addDaemons adds what looks after MPS control daemons. Clients of made-up GPUs need none.
func (a *agent) addDaemons(w, before *wiring) (err error) {
	c := w.config
	on := c.Allocation == config.AllocateByPlugin && c.DevicePlugin.Sharing.MPS != nil && !c.NVML.Simulate.On()
	p := part{"mps", on, c.DevicePlugin.MPSBinDir}
	w.daemons, err = again(w, before, p, before.daemons, func() (*mps.Daemons, error) {
		daemons, err := mps.New(mps.Config{
			BinDir: c.DevicePlugin.MPSBinDir, Changed: a.gate.Poke, Log: a.log.With("part", "mps"),
		}, func(s *gpu.Snapshot) []resource.MPS { return a.policy.Get().MPS(s) }, w.monitor)
		if err != nil {
			return nil, usageError{fmt.Errorf("devicePlugin: mps: %w", err)}
		}
		return daemons, nil
	})
	if w.daemons != nil {
		w.task(before, p, w.daemons.Run)
	}
	return err
}
