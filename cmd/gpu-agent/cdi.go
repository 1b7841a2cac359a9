package main

import (
	"github.com/spf13/cobra"

	"github.com/gpu-agent/gpu-agent/pkg/cdi/generate"
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
