package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/labels"
	"github.com/gpu-agent/gpu-agent/pkg/nvml"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

const machineFile = "/sys/class/dmi/id/product_name"

func labelsCommand() *cobra.Command {
	var flags configFlags
	var output outputFlag
	var once bool
	cmd := &cobra.Command{
		Use:   "labels",
		Short: "The labels of this node's GPUs, without touching the API server",
		Long: "Prints sorted key=value lines for this node's GPUs, now and, without --once, whenever they change.\n" +
			"The labels of models are the running agent's: see gpu-agent status -o json.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			c, err := flags.load()
			if err != nil {
				return err
			}
			policy, err := resource.NewPolicy(c.Policy())
			if err != nil {
				return usageError{err}
			}
			var last map[string]string
			return watchGPUs(cmd.Context(), c, once, func(s *gpu.Snapshot) error {
				in := labels.Of(policy, s)
				in.Machine = labels.Machine(machineFile)
				now := labels.For(in)
				if last != nil && maps.Equal(last, now) {
					return nil
				}
				if last != nil && !output.json() {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				last = now
				if output.json() {
					return printJSON(cmd.OutOrStdout(), now)
				}
				return labels.Write(cmd.OutOrStdout(), now)
			})
		},
	}
	flags.add(cmd)
	output.add(cmd)
	cmd.Flags().BoolVar(&once, "once", false, "print once and end")
	return cmd
}

// watchGPUs runs an NVML owner of its own and shows what it finds, once or until ctx is done.
func watchGPUs(ctx context.Context, c config.Config, once bool, show func(*gpu.Snapshot) error) error {
	look := nvmlConfig(c, slog.New(slog.DiscardHandler))
	look.Health.ReadOnly = true // the agent's own process keeps it
	monitor, err := nvml.New(look)
	if err != nil {
		return usageError{err}
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- monitor.Run(ctx) }()
	defer func() { stop(); <-ended }()

	patience := time.After(10 * time.Second)
	for asked := false; ; asked = true {
		s, changed := monitor.Watch()
		switch {
		case s.Driver.Loaded:
			if err := show(s); err != nil || once {
				return err
			}
		case once && asked:
			return fmt.Errorf("no driver: %s", s.Driver.Error)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case err := <-ended:
			ended <- err
			return errors.Join(errors.New("reading the driver ended"), err)
		case <-patience:
			// Only --once gives up, by looking again.
		}
	}
}
