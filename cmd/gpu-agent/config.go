package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/gpu-agent/gpu-agent/pkg/config"
)

func configCommand() *cobra.Command {
	return group("config", "Check a configuration, or see every key",
		&cobra.Command{
			Use:   "check FILE",
			Short: "Say all that is wrong with a file, or print the configuration that it stands for",
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := config.Load(args[0], sourceFaults)
				if err != nil {
					return usageError{err}
				}
				for _, note := range append(config.NVIDIAVariables(os.LookupEnv), c.Notes...) {
					fmt.Fprintln(cmd.ErrOrStderr(), note)
				}
				out, err := yaml.Marshal(c)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "apiVersion: gpu-agent.dev/v1alpha1\nkind: Config\n%s", out)
				return err
			},
		},
		&cobra.Command{
			Use:   "reference",
			Short: "Print every key with its default and what it does",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := cmd.OutOrStdout().Write(config.Reference)
				return err
			},
		})
}

// configFlags are the flags of the commands that read the configuration.
type configFlags struct {
	file     string
	simulate string
}

func (f *configFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "config", "", "configuration `FILE`, ours or NVIDIA's (version: v1); none: all defaults")
	cmd.Flags().StringVar(&f.simulate, "simulate", "", "made-up GPUs instead of the driver's, such as `H100:8`")
}

func (f *configFlags) load() (config.Config, error) { return f.loadFor("") }

// loadFor is load for a node with that choice of NVIDIA's files, see config.ChoiceLabel.
func (f *configFlags) loadFor(choice string) (config.Config, error) {
	c, err := config.LoadFor(f.file, choice)
	if err != nil {
		return c, usageError{err}
	}
	if f.simulate == "" {
		return c, nil
	}
	model, count, _ := strings.Cut(f.simulate, ":")
	n, err := strconv.Atoi(count)
	if err != nil {
		return c, usageError{fmt.Errorf("--simulate %q: want MODEL:COUNT, such as H100:8", f.simulate)}
	}
	c.NVML.Simulate = config.Simulation{GPU: model, Count: n}
	if err := c.NVML.Simulate.Check(); err != nil {
		return c, usageError{errors.Join(fmt.Errorf("--simulate %q: %w", f.simulate, err))}
	}
	return c, nil
}
