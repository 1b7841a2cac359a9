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

// buildGate builds what can hold back a GPU that is well.
func (a *agent) buildGate() error {
	a.gate = ready.New(a.monitor)
	if a.config.Allocation == config.AllocateByPlugin {
		a.gate.Add(func(s *gpu.Snapshot) map[gpu.UUID]string { return a.policy.Get().Missing(s) })
	}
	if err := a.buildSpecs(); err != nil {
		return err
	}
	return a.buildDaemons()
}

// buildSpecs builds what writes CDI specs.
func (a *agent) buildSpecs() (err error) {
	c := a.config.CDI
	if !c.Enabled {
		return nil
	}
	var classes []string
	for class, on := range map[string]bool{
		cdi.ClassGDS: a.config.DevicePlugin.GDS, cdi.ClassMOFED: a.config.DevicePlugin.MOFED, cdi.ClassGDRCopy: a.config.DevicePlugin.GDRCopy,
	} {
		if on {
			classes = append(classes, class)
		}
	}
	slices.Sort(classes)
	a.specs, err = cdi.New(cdi.Config{
		Dir: c.Dir, DriverRoot: c.DriverRoot, DriverRootMount: c.DriverRootMount,
		DevRoot: c.DevRoot, DevRootMount: c.DevRootMount, Hook: c.Hook, DisabledHooks: c.DisabledHooks,
		Classes: classes, IMEXChannels: a.config.DevicePlugin.IMEX.ChannelIDs,
		Library: a.config.NVML.Library, Version: version, Changed: a.gate.Poke, Log: a.log.With("part", "cdi"),
		// The running program, even when its file was replaced meanwhile.
		Generator: &cdi.Child{Path: "/proc/self/exe", Args: []string{"cdi", "generate"}},
	}, a.monitor)
	if err != nil {
		return usageError{fmt.Errorf("cdi: %w", err)}
	}
	a.gate.Add(a.specs.Missing)
	return nil
}

// buildDaemons builds what looks after MPS control daemons. Clients of made-up GPUs need none.
func (a *agent) buildDaemons() (err error) {
	c := a.config
	if c.Allocation != config.AllocateByPlugin || c.DevicePlugin.Sharing.MPS == nil || c.NVML.Simulate.On() {
		return nil
	}
	a.daemons, err = mps.New(mps.Config{
		BinDir: c.DevicePlugin.MPSBinDir, Changed: a.gate.Poke, Log: a.log.With("part", "mps"),
	}, func(s *gpu.Snapshot) []resource.MPS { return a.policy.Get().MPS(s) }, a.monitor)
	if err != nil {
		return usageError{fmt.Errorf("devicePlugin: mps: %w", err)}
	}
	a.gate.Add(a.daemons.Missing)
	return nil
}
