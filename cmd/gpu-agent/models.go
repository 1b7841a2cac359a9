package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func modelsCommand() *cobra.Command {
	return group("models", "The models on this node",
		modelsLs(), modelsPull(), modelsWait(),
		modelsRm(),
		modelsAct("pin NAME", "Never evict a model, nor remove it without --force", "/pin"),
		modelsAct("unpin NAME", "Let a model be evicted again", "/unpin"),
		modelsVerify(), modelsExplain())
}

func modelsLs() *cobra.Command {
	var socket socketFlag
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the models and how far each has come",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			s, err := socket.client().state(cmd.Context())
			if err != nil {
				return err
			}
			if s.Cache == nil {
				return errors.New("the model cache is off: set cache.enabled")
			}
			if output.json() {
				return printJSON(cmd.OutOrStdout(), append([]model.Status{}, s.Cache.Models...)) // [], never null
			}
			return printModels(cmd.OutOrStdout(), s.Cache)
		},
	}
	socket.add(cmd)
	output.add(cmd)
	return cmd
}

func printModels(out io.Writer, inv *model.Inventory) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tSIZE\tREVISION\tPINNED\tLAST USE\tSOURCE\tNOTE")
	for _, m := range inv.Models {
		pinned := ""
		if m.Pinned {
			pinned = "yes"
		}
		lastUse := "-"
		if !m.LastUse.IsZero() {
			lastUse = formatAge(m.LastUse) + " ago"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, progress(m), formatBytes(m.Size), short(m.Revision), pinned, lastUse, m.Source, m.Message)
	}
	return w.Flush()
}

// progress is a model's state for people.
func progress(m model.Status) string {
	switch {
	case m.State == model.Pulling && m.Size > 0:
		return fmt.Sprintf("%s %d %%", m.State, 100*m.Done/m.Size)
	case m.Update != nil && m.Reason != "":
		return fmt.Sprintf("%s, update failed (%s)", m.State, m.Reason)
	case m.Update != nil && m.Update.Size > 0:
		return fmt.Sprintf("%s, updating %d %%", m.State, 100*m.Update.Done/m.Update.Size)
	case m.Update != nil:
		return fmt.Sprintf("%s, updating", m.State)
	case m.State == model.Failed, m.State == model.Pending && m.Reason != "":
		return fmt.Sprintf("%s (%s)", m.State, m.Reason)
	}
	return string(m.State)
}

// short is a revision as the node's label and the directory NAME@REVISION have it.
func short(revision string) string {
	if revision == "" {
		return ""
	}
	return model.Revision12(revision)
}

// modelPath is the path of a named model in the agent's API.
func modelPath(name string) (string, error) {
	if err := model.CheckName(name); err != nil {
		return "", usageError{err}
	}
	return "/models/" + name, nil
}

func modelsAct(use, about, suffix string) *cobra.Command {
	var socket socketFlag
	cmd := &cobra.Command{
		Use:   use,
		Short: about,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := modelPath(args[0])
			if err != nil {
				return err
			}
			return socket.client().call(cmd.Context(), http.MethodPost, path+suffix, nil, nil)
		},
	}
	socket.add(cmd)
	return cmd
}

func modelsVerify() *cobra.Command {
	cmd := modelsAct("verify NAME", "Read a model's files again, and withdraw what is damaged", "/verify")
	cmd.Long = "Reads every file of a model again and compares it with the digest that it had when it was published.\n" +
		"A damaged model is withdrawn at once, with every model that shares the damaged file, and the exit code\n" +
		"is 1; what is still asked for is then fetched again. A model that is sound stays as it is."
	return cmd
}

func modelsRm() *cobra.Command {
	var socket socketFlag
	var force bool
	cmd := &cobra.Command{
		Use:   "rm NAME",
		Short: "Take a model and its files away",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := modelPath(args[0])
			if err != nil {
				return err
			}
			if force {
				path += "?force=true"
			}
			return socket.client().call(cmd.Context(), http.MethodDelete, path, nil, nil)
		},
	}
	socket.add(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "remove it although it is pinned")
	return cmd
}

func modelsWait() *cobra.Command {
	var root string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait until a model is ready, and print its directory; for init containers",
		Long: "Waits until ROOT/by-name/NAME is there: a visible model is complete and verified.\n" +
			"It needs the models directory alone, mounted read-only, and no right to talk to the agent.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := model.CheckName(args[0]); err != nil {
				return usageError{err}
			}
			if info, err := os.Stat(root); err != nil || !info.IsDir() {
				return usageError{fmt.Errorf("--root %s: want the models directory of the cache, mounted here", root)}
			}
			dir := filepath.Join(root, "by-name", args[0])
			if err := awaitDir(cmd.Context(), root, dir, timeout, cmd.ErrOrStderr()); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&root, "root", "/models", "`DIR` where the cache's models directory is mounted")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up after this long, with exit code 3; 0: never")
	return cmd
}

// awaitDir returns once dir, in the by-name folder of root, is there.
func awaitDir(ctx context.Context, root, dir string, timeout time.Duration, log io.Writer) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer watcher.Close()
	_ = watcher.Add(root) // by-name may not be there yet; the ticker covers what is not watched
	_ = watcher.Add(filepath.Dir(dir))
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var patience <-chan time.Time
	if timeout > 0 {
		patience = time.After(timeout)
	}
	for said := false; ; {
		info, err := os.Stat(dir)
		switch {
		case err == nil && info.IsDir():
			return nil
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("wait for %s: %w", dir, err)
		}
		if !said {
			fmt.Fprintf(log, "waiting for %s\n", dir)
			said = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-patience:
			return fmt.Errorf("%w after %s: %s is not there: see gpu-agent models ls on this node's agent", errTimeout, timeout, dir)
		case <-watcher.Events:
		case <-tick.C:
		}
	}
}
