package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func statusCommand() *cobra.Command {
	var socket socketFlag
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "status",
		Short: "GPUs, health with reasons, pods, models and tasks of the running agent",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			s, err := socket.client().state(cmd.Context())
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return s.print(cmd.OutOrStdout())
		},
	}
	socket.add(cmd)
	output.add(cmd)
	return cmd
}

// print is one screen for people.
func (s *state) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	d := s.Snapshot.Driver
	switch {
	case s.Snapshot.Simulated:
		fmt.Fprintf(w, "node %s\tgpu-agent %s\tsimulated GPUs, no driver\n", s.Node, s.Version)
	case d.Loaded:
		fmt.Fprintf(w, "node %s\tgpu-agent %s\tdriver %s\n", s.Node, s.Version, d.Version)
	default:
		fmt.Fprintf(w, "node %s\tgpu-agent %s\tno driver: %s\n", s.Node, s.Version, d.Error)
	}
	if s.Plugin == nil {
		fmt.Fprintf(w, "allocation %s\tnothing is offered to the kubelet\n", s.Allocation)
	}
	if s.Config.Error != "" {
		fmt.Fprintf(w, "config\tthe newest file is not in force:\t%s\n", s.Config.Error)
	}
	for _, problem := range s.Problems {
		fmt.Fprintf(w, "config\t%s\n", problem)
	}
	if s.Snapshot.StateError != "" {
		fmt.Fprintf(w, "health\t%s\n", s.Snapshot.StateError)
	}
	if s.Cache != nil {
		for _, p := range s.Cache.Problems {
			fmt.Fprintf(w, "cache\t%s\n", p.Message)
		}
	}
	fmt.Fprintln(w, "\nGPU\tUUID\tMODEL\tMEMORY USED\tUTIL\tTEMP\tHEALTH\tPODS")
	for i := range s.Snapshot.Devices {
		s.printDevice(w, &s.Snapshot.Devices[i])
	}
	for _, u := range s.Snapshot.Unidentified {
		fmt.Fprintf(w, "%d\t-\t-\t-\t-\t-\tdoes not say who it is, and is in no list: %s\t\n", u.Index, u.Why)
	}
	if s.Cache != nil {
		fmt.Fprintf(w, "\nMODEL\tSTATE\tSIZE\tREVISION\tNOTE\n")
		for _, m := range s.Cache.Models {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", m.Name, progress(m), model.FormatBytes(m.Size), short(m.Revision), obstacle(m))
		}
		fmt.Fprintf(w, "cache %s\t%s\n", s.Cache.Root, taken(s.Cache.Used, s.Cache.Reserved, s.Cache.Limit))
		for _, d := range s.Cache.Disks {
			fmt.Fprintf(w, "disk %s\t%s\n", d.Name, ofDisk(d))
		}
		for _, refused := range s.Cache.Refused {
			fmt.Fprintln(w, refused)
		}
	}
	fmt.Fprintf(w, "\nPART\tREADY\tWHY NOT\n")
	ready := s.ready()
	for _, name := range slices.Sorted(maps.Keys(ready)) {
		fmt.Fprintf(w, "%s\t%t\t%s\n", name, ready[name] == "", ready[name])
	}
	return w.Flush()
}

func taken(used, reserved, limit int64) string {
	return model.FormatBytes(used) + " used, " + model.FormatBytes(reserved) + " reserved, of " + model.FormatBytes(limit)
}

// ofDisk is how much of a disk is taken, or why it is not open.
func ofDisk(d model.Disk) string {
	if d.Error != "" {
		return "not open: " + d.Error
	}
	return taken(d.Used, d.Reserved, d.Limit) + ", in " + d.Root
}

func (s *state) printDevice(w io.Writer, d *gpu.Device) {
	used, util, temp := "-", "-", "-"
	if st := d.Stats; st != nil {
		used = memoryUsed(st)
		if st.Utilization != nil {
			util = fmt.Sprintf("%.0f %%", *st.Utilization*100)
		}
		if st.Temperature != nil {
			temp = fmt.Sprintf("%.0f C", *st.Temperature)
		}
	}
	health := "healthy"
	if !d.Health.OK() {
		health = fmt.Sprintf("%s since %s: %s", d.Health.Reason, formatAge(d.Health.Since), d.Health.Text)
		if d.Health.Needs != gpu.NoRemedy {
			health += "; needs " + string(d.Health.Needs)
		}
	}
	for _, n := range d.Notices {
		health += fmt.Sprintf("; notice: %s: %s", n.Code, n.Text)
		if n.Needs != gpu.NoRemedy {
			health += " (needs " + string(n.Needs) + " at the next chance)"
		}
	}
	fmt.Fprintf(w, "%d\t%s\t%s\t%s / %s\t%s\t%s\t%s\t%s\n", d.Index, d.UUID, d.Name, used, model.FormatBytes(d.Memory), util, temp, health, s.Holders(d.UUID))
	for _, in := range d.Instances {
		used := "-"
		if in.Stats != nil {
			used = memoryUsed(in.Stats)
		}
		fmt.Fprintf(w, "%d:%d\t%s\tMIG %s\t%s / %s\t-\t-\t\t%s\n", d.Index, in.Index, in.UUID, in.Profile, used, model.FormatBytes(in.Memory), s.Holders(in.UUID))
	}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// outputFlag is -o: text for people, or JSON.
type outputFlag struct{ format string }

func (o *outputFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "text", "`FORMAT`: text, json")
}

func (o *outputFlag) json() bool { return o.format == "json" }

func (o *outputFlag) check() error {
	if o.format != "text" && o.format != "json" {
		return usageError{fmt.Errorf("-o %s: want text or json", o.format)}
	}
	return nil
}
