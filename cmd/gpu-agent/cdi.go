package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/gpu-agent/gpu-agent/pkg/cdi"
	"github.com/gpu-agent/gpu-agent/pkg/cdi/generate"
	"github.com/gpu-agent/gpu-agent/pkg/ready"
)

// cdiCommand holds what the agent runs as its own child: see pkg/cdi.
func cdiCommand() *cobra.Command {
	cmd := group("cdi", "CDI specs", &cobra.Command{
		Use:   "generate",
		Short: "Answer one request on standard input: the agent calls this itself, for the driver may hang or end the process",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return generate.Run(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	})
	cmd.Hidden = true
	return cmd
}

// buildGate builds what can hold back a GPU that is well.
func (a *agent) buildGate() (err error) {
	a.gate = ready.New(a.monitor)
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
