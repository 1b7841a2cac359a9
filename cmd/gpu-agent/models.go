package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func modelsCommand() *cobra.Command {
	return group("models", "The models on this node",
		modelsLs(), modelsPull(), modelsWait(),
		modelsAct("rm NAME", "Take a model and its files away", http.MethodDelete, ""),
		modelsAct("pin NAME", "Never evict a model", http.MethodPost, "/pin"),
		modelsAct("unpin NAME", "Let a model be evicted again", http.MethodPost, "/unpin"),
		modelsAct("verify NAME", "Read a model's files again and compare them with their digests", http.MethodPost, "/verify"))
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
				return errors.New("the model cache is off or not open: see gpu-agent status")
			}
			if output.json() {
				return printJSON(cmd.OutOrStdout(), s.Cache.Models)
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
	case m.State == model.Failed, m.State == model.Pending && m.Reason != "":
		return fmt.Sprintf("%s (%s)", m.State, m.Reason)
	}
	return string(m.State)
}

func short(revision string) string {
	if len(revision) > 12 {
		return revision[:12]
	}
	return revision
}

func modelsAct(use, about, method, suffix string) *cobra.Command {
	var socket socketFlag
	cmd := &cobra.Command{
		Use:   use,
		Short: about,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return socket.client().call(cmd.Context(), method, "/models/"+url.PathEscape(args[0])+suffix, nil, nil)
		},
	}
	socket.add(cmd)
	return cmd
}

func modelsPull() *cobra.Command {
	var socket socketFlag
	var pinned bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "pull NAME [SOURCE]",
		Short: "Pull a model and wait until it is ready; without SOURCE, one of the configuration's",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := pullRequest{Name: args[0], Pinned: pinned}
			if len(args) == 2 {
				in.Source = args[1]
			}
			c := socket.client()
			if err := c.call(cmd.Context(), http.MethodPost, "/models/pull", in, nil); err != nil {
				return err
			}
			return follow(cmd.Context(), c, in.Name, timeout, cmd.OutOrStdout())
		},
	}
	socket.add(cmd)
	cmd.Flags().BoolVar(&pinned, "pin", false, "never evict it")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up waiting after this long; the pull goes on")
	return cmd
}

// follow shows a model's progress until it is ready or has failed.
func follow(ctx context.Context, c *client, name string, timeout time.Duration, out io.Writer) error {
	show, end := plainProgress(out, name)
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		show, end = barProgress(ctx, f, name)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var patience <-chan time.Time
	if timeout > 0 {
		patience = time.After(timeout)
	}
	for {
		s, err := c.state(ctx)
		if err != nil {
			end()
			return err
		}
		if s.Cache == nil || s.Cache.Model(name) == nil {
			end()
			return fmt.Errorf("model %s is gone", name)
		}
		m := *s.Cache.Model(name)
		show(m)
		switch {
		case m.State == model.Ready:
			end()
			fmt.Fprintf(out, "%s is ready: %s, %s\n", name, formatBytes(m.Size), m.Path)
			return nil
		case m.State == model.Failed && m.RetryAt.IsZero(), m.State == model.Failed && patience == nil && m.Reason != "":
			end()
			return fmt.Errorf("model %s: %s: %s", name, m.Reason, m.Message)
		}
		select {
		case <-ctx.Done():
			end()
			return ctx.Err()
		case <-patience:
			end()
			return fmt.Errorf("%w after %s: model %s is %s", errTimeout, timeout, name, progress(m))
		case <-tick.C:
		}
	}
}

// plainProgress writes a line when the state changes and at each tenth.
func plainProgress(out io.Writer, name string) (show func(model.Status), end func()) {
	last := ""
	return func(m model.Status) {
		now := string(m.State) + " " + m.Reason
		if m.State == model.Pulling && m.Size > 0 {
			now = fmt.Sprintf("Pulling %d %% of %s", 10*(10*m.Done/m.Size), formatBytes(m.Size))
		}
		if now != last && m.State != model.Ready {
			fmt.Fprintf(out, "%s: %s\n", name, now)
		}
		last = now
	}, func() {}
}

// barProgress draws a bar with rate and time left.
func barProgress(ctx context.Context, out io.Writer, name string) (show func(model.Status), end func()) {
	p := mpb.NewWithContext(ctx, mpb.WithOutput(out), mpb.WithWidth(48))
	bar := p.AddBar(0,
		mpb.PrependDecorators(decor.Name(name+" "), decor.CountersKibiByte("% .1f / % .1f")),
		mpb.AppendDecorators(decor.Percentage(), decor.Name(" "), decor.AverageSpeed(decor.SizeB1024(0), "% .1f"),
			decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)))
	return func(m model.Status) {
			if m.Size > 0 {
				bar.SetTotal(m.Size, false)
				bar.SetCurrent(m.Done)
			}
			if m.State == model.Ready {
				bar.SetCurrent(m.Size)
				bar.SetTotal(m.Size, true)
			}
		}, func() {
			bar.Abort(false)
			p.Wait()
		}
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
