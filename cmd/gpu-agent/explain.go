package main

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func modelsExplain() *cobra.Command {
	var socket socketFlag
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "explain NAME",
		Short: "Say why a model is here, not here, or not yet",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(); err != nil {
				return err
			}
			path, err := modelPath(args[0])
			if err != nil {
				return err
			}
			var x model.Explanation
			if err := socket.client().call(cmd.Context(), http.MethodGet, path+"/explain", nil, &x); err != nil {
				return err
			}
			if output.json() {
				return printJSON(cmd.OutOrStdout(), x)
			}
			return printExplanation(cmd.OutOrStdout(), x)
		},
	}
	socket.add(cmd)
	output.add(cmd)
	return cmd
}

// printExplanation leaves out what does not apply.
func printExplanation(out io.Writer, x model.Explanation) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", key, value)
		}
	}
	line("MODEL", x.Name)
	line("STATE", progress(x.Status))
	line("WHY", why(x))
	line("ASKED FOR", strings.TrimPrefix(askers(x), " and "))
	for _, refused := range x.Refused {
		line("REFUSED", refused)
	}
	if len(x.Pods) > 0 {
		line("USED BY", strings.Join(x.Pods, ", "))
	}
	if x.Priority != 0 {
		line("PRIORITY", strconv.Itoa(x.Priority))
	}
	line("SOURCE", x.Source)
	line("REVISION", x.Revision)
	line("DISK", x.Disk)
	line("PATH", x.Path)
	if x.Size > 0 {
		line("SIZE", fmt.Sprintf("%s in %d files, %s here", model.FormatBytes(x.Size), x.Files, model.FormatBytes(x.Done)))
	}
	if x.FirstUse > 0 {
		line("TRUSTED", fmt.Sprintf("%d of %d files as they first came: their origin names no checksum", x.FirstUse, x.Files))
	}
	line("IN MEMORY", inMemory(x.Status))
	if x.Update != nil && x.Update.Revision != "" {
		update := fmt.Sprintf("to %s, %s of %s", short(x.Update.Revision), model.FormatBytes(x.Update.Done), model.FormatBytes(x.Update.Size))
		if x.Update.Reason == "" && x.Update.Message != "" {
			update += ", " + x.Update.Message
		}
		line("UPDATE", update)
	}
	line("ORIGIN", origin(x.Status))
	for _, r := range x.Old {
		line("OLD", short(r.Revision)+", "+model.FormatBytes(r.Size)+", "+oldNote(r)+", "+r.Path)
	}
	line("ROOM", room(x))
	line("PINNED", pins(x))
	if !x.LastUse.IsZero() {
		line("LAST USE", formatAge(x.LastUse)+" ago")
	}
	line("NEXT TRY", nextTry(x.Status))
	return w.Flush()
}

// why is the one sentence that the state alone does not tell.
func why(x model.Explanation) string {
	switch {
	case x.State == model.Removing:
		return "it is going away: its node label first, then its files"
	case x.Update != nil && x.Update.Waits():
		return "what was pulled is here; its update waits: " + x.Update.Message
	case x.Message != "" && x.State == model.Ready:
		return "what was pulled is here; the last look for a newer revision failed: " + x.Message
	case x.Message != "":
		return x.Message
	case x.State == model.Ready && x.Held != "":
		return heldText(x.Status)
	case x.State == model.Ready && x.Unfit != "" && !x.Wished:
		return x.Unfit + "; it stays until its room is needed"
	case x.State == model.Ready && !x.Wanted && !x.Wished && len(x.Pods) == 0:
		return "it was asked for once; it stays until its room is needed"
	case x.State == model.Ready:
		return "it is complete and verified"
	case x.State == model.Pulling:
		return fmt.Sprintf("not yet: %s are still to come", model.FormatBytes(x.Needed))
	}
	return "not yet: it waits for its turn, or for its origin's answer"
}

// origin is what the source stands for, and when it is asked again.
func origin(m model.Status) string {
	if m.Origin == "" {
		return ""
	}
	if m.NextLook.IsZero() {
		return "at " + short(m.Origin) + ", not asked again by itself"
	}
	return "at " + short(m.Origin) + ", asked again in about " + max(time.Until(m.NextLook), 0).Round(time.Minute).String()
}

// inMemory is "" where nobody looks.
func inMemory(m model.Status) string {
	if m.Resident == nil {
		return m.Warmth
	}
	text := fmt.Sprintf("%s of %s", model.FormatBytes(*m.Resident), model.FormatBytes(m.Size))
	if m.Warmth != "" {
		text += ", " + m.Warmth
	}
	return text
}

func askers(x model.Explanation) string {
	if x.Called {
		return both(x.Wanted, x.Wished, "") + " and by pod " + strings.Join(x.Pods, ", ")
	}
	nobody := "by nobody any more"
	if x.State == model.Skipped {
		nobody = "by nobody"
	}
	return both(x.Wanted, x.Wished, nobody)
}

func pins(x model.Explanation) string {
	free := "no: it goes when room is needed, the longest unused first"
	if len(x.Pods) > 0 {
		free = "no, and it stays as long as the pods that use it"
	} else if x.Wanted {
		free = "no, and it stays as long as the config asks for it"
	}
	return both(x.PinnedByConfig, x.PinnedByCommand, free)
}

func both(config, command bool, neither string) string {
	switch {
	case config && command:
		return "by the config and by a command"
	case config:
		return "by the config"
	case command:
		return "by a command"
	}
	return neither
}

func room(x model.Explanation) string {
	var parts []string
	switch {
	case x.Needed > 0 && x.Admitted:
		parts = append(parts, model.FormatBytes(x.Needed)+" needed and reserved")
	case x.Needed > 0:
		parts = append(parts, model.FormatBytes(x.Needed)+" needed")
	}
	parts = append(parts, model.FormatBytes(x.Free)+" free", model.FormatBytes(x.Evictable)+" evictable")
	if n := len(x.Victims); n > 0 {
		parts[len(parts)-1] += " (" + strings.Join(x.Victims[:min(n, 5)], ", ") + map[bool]string{true: ", …"}[n > 5] + ")"
	}
	parts = append(parts, "limit "+model.FormatBytes(x.Limit))
	if x.KeptFreeWhy != "" {
		parts = append(parts, x.KeptFreeWhy)
	}
	return strings.Join(parts, ", ")
}

// nextTry is "" where nothing failed.
func nextTry(m model.Status) string {
	text := ""
	if wait := time.Until(m.RetryAt); !m.RetryAt.IsZero() {
		text = "in " + max(wait, 0).Truncate(time.Second).String()
		if m.Final {
			text += ", but first somebody has to mend what WHY says"
		}
	}
	return text
}
