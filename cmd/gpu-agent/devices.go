package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

func devicesCommand() *cobra.Command {
	var flags configFlags
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "devices",
		Short: "What this node offers to the kubelet: unit ids, resource names, health, NUMA nodes; and what an operator may do to it",
		Args:  cobra.NoArgs,
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
			return watchGPUs(cmd.Context(), c, true, func(s *gpu.Snapshot) error {
				offers := policy.Offers(s)
				for _, problem := range policy.Problems(s) {
					fmt.Fprintln(cmd.ErrOrStderr(), problem)
				}
				if output.json() {
					return printJSON(cmd.OutOrStdout(), offers)
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "RESOURCE\tUNIT\tNUMA\tHEALTH")
				for _, offer := range offers {
					for _, u := range offer.Units {
						health, numa := "healthy", "-"
						if !u.Healthy {
							health = u.Reason
						}
						if u.NUMANode >= 0 {
							numa = fmt.Sprint(u.NUMANode)
						}
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", offer.Resource, u.ID, numa, health)
					}
				}
				return w.Flush()
			})
		},
	}
	flags.add(cmd)
	output.add(cmd)
	cmd.AddCommand(cordonCommand(), uncordonCommand(), forgetCommand(), releaseCommand(), resumeCommand())
	return cmd
}
