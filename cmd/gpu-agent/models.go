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
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"

	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func modelsCommand() *cobra.Command {
	return group("models", "The models on this node",
		modelsLs(), modelsPull(), modelsWait(),
		modelsRm(),
		modelsAct("pin NAME[@REVISION]", "Never evict a model, or one revision of it, nor remove it without --force", "/pin", revisionPath),
		modelsAct("unpin NAME[@REVISION]", "Let a model, or one revision of it, be evicted again", "/unpin", revisionPath),
		modelsRollback(), modelsExport(), modelsImport(), modelsVerify(), modelsExplain())
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
			for _, p := range s.Cache.Problems { // or an empty list would look like an empty cache
				fmt.Fprintln(cmd.ErrOrStderr(), p.Message)
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
	disk := func(string) string { return "" }
	if len(inv.Disks) > 0 {
		disk = func(name string) string { return name + "\t" }
	}
	fmt.Fprintln(w, "NAME\tSTATE\tSIZE\tREVISION\tPINNED\tLAST USE\t"+disk("DISK")+"SOURCE\tNOTE")
	for _, m := range inv.Models {
		pinned := ""
		if m.Pinned {
			pinned = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s%s\t%s\n", m.Name, progress(m), model.FormatBytes(m.Size), short(m.Revision), pinned,
			lastUsed(m.LastUse), disk(m.Disk), m.Source, note(m))
		for _, r := range m.Old {
			fmt.Fprintf(w, "%s\tOld\t%s\t%s\t%s\t%s\t%s%s\t%s\n", m.Name+"@"+short(r.Revision), model.FormatBytes(r.Size), short(r.Revision),
				map[bool]string{true: "yes"}[r.Pinned], lastUsed(r.LastUse), disk(m.Disk), m.Source, oldNote(r))
		}
	}
	for i, refused := range inv.Refused {
		fmt.Fprintf(w, "%s%s\n", map[bool]string{true: "\n"}[i == 0], refused)
	}
	return w.Flush()
}

func lastUsed(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return formatAge(t) + " ago"
}

// note is what stands in a model's way, or what keeps it from following its origin.
func note(m model.Status) string {
	switch {
	case obstacle(m) != "":
		return obstacle(m)
	case m.Held != "":
		return heldText(m)
	case m.Unfit != "":
		return m.Unfit + "; it stays until its room is needed"
	case len(m.Pods) > 0:
		return "in use by " + strings.Join(m.Pods, ", ")
	}
	return ""
}

// obstacle is what stands in the way of a model, or of its update.
func obstacle(m model.Status) string {
	if m.Update != nil && m.Update.Message != "" {
		return m.Update.Message
	}
	return m.Message
}

func heldText(m model.Status) string {
	text := "held at " + short(m.Held) + " by a rollback"
	if m.Origin != "" && m.Origin != m.Held {
		text += ", the origin is at " + short(m.Origin)
	}
	return text + ": gpu-agent models pull " + m.Name + " follows it again"
}

func oldNote(r model.Revision) string {
	text := "replaced " + formatAge(r.Retired) + " ago, "
	if r.InUse == "" {
		return text + "until its room is needed"
	}
	return text + "kept: " + r.InUse
}

// progress is a model's state for people.
func progress(m model.Status) string {
	switch {
	case m.State == model.Pulling && m.Size > 0:
		return fmt.Sprintf("%s %d %%", m.State, 100*m.Done/m.Size)
	case m.Update != nil && m.Update.Waits():
		return fmt.Sprintf("%s, update waits (%s)", m.State, m.Update.Reason)
	case m.Update != nil && m.Update.Reason != "":
		return fmt.Sprintf("%s, update failed (%s)", m.State, m.Update.Reason)
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

// revisionPath is modelPath for a model, or a revision of it as NAME@REVISION.
func revisionPath(name string) (string, error) {
	of, revision, one := strings.Cut(name, "@")
	path, err := modelPath(of)
	if err != nil || !one {
		return path, err
	}
	if revision == "" || model.Revision12(revision) == "unknown" {
		return "", usageError{fmt.Errorf("%s: want NAME@REVISION, as gpu-agent models ls shows it", name)}
	}
	return path + "@" + model.Revision12(revision), nil
}

func modelsAct(use, about, suffix string, pathOf func(string) (string, error)) *cobra.Command {
	var socket socketFlag
	cmd := &cobra.Command{
		Use:   use,
		Short: about,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := pathOf(args[0])
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
	cmd := modelsAct("verify NAME[@REVISION]", "Read a model's files again, or those of one revision, and withdraw what is damaged", "/verify", revisionPath)
	cmd.Long = "Reads every file of a model again and compares it with the digest that it had when it was published.\n" +
		"A damaged model is withdrawn at once, with every model that shares the damaged file, and the exit code\n" +
		"is 1; what is still asked for is then fetched again. A model that is sound stays as it is."
	return cmd
}

func modelsRollback() *cobra.Command {
	var socket socketFlag
	cmd := &cobra.Command{
		Use:   "rollback NAME [REVISION]",
		Short: "Make an old revision of a model current again, and hold the model there",
		Long: "Makes an old revision that is here still current again, in one step: the one that was replaced last, or\n" +
			"REVISION, as models ls shows them. The model stays there, over restarts too, whatever its source says,\n" +
			"until models pull NAME or another source in the configuration lets go of it.",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := modelPath(args[0])
			if err != nil {
				return err
			}
			path += "/rollback"
			if len(args) == 2 {
				path += "?revision=" + url.QueryEscape(args[1])
			}
			var done model.Rollback
			if err := socket.client().call(cmd.Context(), http.MethodPost, path, nil, &done); err != nil {
				return err
			}
			instead := ""
			if done.From != "" {
				instead = " instead of " + short(done.From)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is at %s%s, and held there until gpu-agent models pull %s\n", args[0], short(done.To), instead, args[0])
			return nil
		},
	}
	socket.add(cmd)
	return cmd
}

func modelsRm() *cobra.Command {
	var socket socketFlag
	var force bool
	cmd := &cobra.Command{
		Use:   "rm NAME[@REVISION]",
		Short: "Take a model and its files away, or one old revision of it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := revisionPath(args[0])
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
	cmd.Flags().BoolVar(&force, "force", false, "remove it although it is pinned or in use")
	return cmd
}

func modelsWait() *cobra.Command {
	var root string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait NAME[@REVISION]",
		Short: "Wait until a model is ready, and print its directory; for init containers",
		Long: "Waits until ROOT/by-name/NAME is there, or NAME@REVISION, current or old: what is visible is complete\n" +
			"and verified.\n" +
			"Meanwhile it says how far the model has come and why it does not come, as the agent writes it to ROOT/waiting.\n" +
			"It needs the models directory alone, mounted read-only, and no right to talk to the agent.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := revisionPath(args[0])
			if err != nil {
				return err
			}
			if info, err := os.Stat(root); err != nil || !info.IsDir() {
				return usageError{fmt.Errorf("--root %s: want the models directory of the cache, mounted here", root)}
			}
			dir := filepath.Join(root, "by-name", filepath.Base(path))
			if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
				if err := checkRevision(root, filepath.Base(path)); err != nil {
					return err
				}
			}
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

// checkRevision refuses NAME@REVISION where nothing of that name can come: every revision is a commit or a digest.
func checkRevision(root, name string) error {
	of, revision, one := strings.Cut(name, "@")
	if !one || len(revision) == 12 && strings.Trim(revision, "0123456789abcdef") == "" {
		return nil
	}
	here, _ := filepath.Glob(filepath.Join(root, "by-name", of+"@*"))
	for i, path := range here {
		_, here[i], _ = strings.Cut(filepath.Base(path), "@")
	}
	has := ""
	if len(here) > 0 {
		has = fmt.Sprintf("; model %s has %s here", of, strings.Join(here, ", "))
	}
	return usageError{fmt.Errorf("%s: want NAME, or NAME@ and the first 12 characters of a revision, as gpu-agent models ls shows it: %q is none%s", name, revision, has)}
}

// checkModelsDir refuses the root of the cache, in which no model ever appears.
func checkModelsDir(root string) error {
	is := func(parts ...string) bool {
		info, err := os.Stat(filepath.Join(append([]string{root}, parts...)...))
		return err == nil && info.IsDir()
	}
	if models := filepath.Join(root, "models"); !is("by-name") && is("models", "by-name") {
		return usageError{fmt.Errorf("--root %s: that is the cache's root: want its models directory, --root %s", root, models)}
	}
	return nil
}

// awaitDir returns once dir, in the by-name folder of root, is there.
func awaitDir(ctx context.Context, root, dir string, timeout time.Duration, log io.Writer) error {
	var patience, tick <-chan time.Time
	var changed chan fsnotify.Event
	said := ""
	name, _, _ := strings.Cut(filepath.Base(dir), "@")
	show := plainDisplay(log, name)
	for first := true; ; first = false {
		info, err := os.Stat(dir)
		switch {
		case err == nil && info.IsDir():
			return nil
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("wait for %s: %w", dir, err)
		}
		if err := checkModelsDir(root); err != nil {
			return err
		}
		if first { // and look once more, at what came before the watch
			fmt.Fprintf(log, "waiting for %s\n", dir)
			said = dir + " is not there"
			if timeout > 0 {
				patience = time.After(timeout)
			}
			tick = time.Tick(time.Second) // for what is not watched: by-name may not be there yet
			// The pods of a node share its inotify instances, so there may be none left.
			if watcher, err := fsnotify.NewWatcher(); err == nil {
				defer watcher.Close()
				_ = watcher.Add(root)
				_ = watcher.Add(filepath.Dir(dir))
				changed = watcher.Events
			}
			continue
		}
		why, advice := missing(root, dir), ": see gpu-agent models ls on this node's agent"
		if m, known := cache.Notice(root, name); known {
			show.status(m)
			show.note(m.Message)
			why += ": model " + name + " is " + progress(m)
			if m.Message != "" {
				why, advice = why+": "+m.Message, ""
			}
		} else if why != said {
			fmt.Fprintln(log, why)
		}
		said = why
		select {
		case <-ctx.Done():
			return fmt.Errorf("interrupted: %s", said)
		case <-patience:
			return fmt.Errorf("%w after %s: %s%s", errTimeout, timeout, said, advice)
		case <-changed:
		case <-tick:
		}
	}
}

// missing says why dir, in the by-name folder of root, is not there.
func missing(root, dir string) string {
	if _, err := os.Stat(filepath.Dir(dir)); errors.Is(err, os.ErrNotExist) {
		return dir + " is not there: " + root + " has no by-name yet, which the agent makes in the models directory of its cache"
	}
	if to, err := os.Readlink(dir); err == nil {
		return dir + " is on another disk, at " + filepath.Join(filepath.Dir(dir), to) + ", and that is not mounted here, or gone"
	}
	return dir + " is not there"
}
