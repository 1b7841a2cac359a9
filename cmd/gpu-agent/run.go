package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/gpu-agent/gpu-agent/internal/supervise"
	"github.com/gpu-agent/gpu-agent/pkg/config"
)

func runCommand() *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "The agent",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.load()
			if err != nil {
				return err
			}
			log := newLogging(c.Log, cmd.ErrOrStderr())
			klog.SetLogger(logr.FromSlogHandler(log))
			a, err := newAgent(c, flags.file, log)
			if err != nil {
				return err
			}
			return a.run(cmd.Context(), flags.loadFor)
		},
	}
	flags.add(cmd)
	return cmd
}

// run supervises the parts until ctx is done, and has edits of the files take effect meanwhile. load reads the
// configuration for a node with that choice of NVIDIA's files.
func (a *agent) run(ctx context.Context, load func(choice string) (config.Config, error)) error {
	for _, note := range append(config.NVIDIAVariables(os.LookupEnv), a.now().config.Notes...) {
		a.log.Info("configuration", "note", note)
	}
	if err := a.firstChoice(ctx, load); err != nil {
		a.log.Error("not the configuration that the node's label asks for", "error", err)
	}
	edits, err := watchFiles(a.log, a.files(a.now().config)...)
	if err != nil {
		return err
	}
	defer func() { edits.close() }()
	c := a.now().config
	a.group = supervise.New(ctx, a.log)
	a.log.Info("gpu-agent", "version", version, "node", c.NodeName, "simulated", c.NVML.Simulate.On())
	a.start(&wiring{})
	var refused error
	for look := true; ; { // the first look is at what was edited before the watch began
		_, chosen := a.choice.Watch()
		if !look {
			select {
			case <-a.group.Done():
				return a.group.Wait()
			case <-edits.changed:
				refused = nil
			case <-chosen:
				refused = nil
			case <-a.retry(refused):
			}
		}
		look = false
		c, err := load(a.choice.Get())
		if err == nil {
			err = a.edit(c)
		}
		if err != nil && (refused == nil || err.Error() != refused.Error()) {
			a.log.Error("the edited configuration is not in force", "error", err)
		}
		a.configError(err)
		refused = err
		if files := a.files(a.now().config); !slices.Equal(files, edits.paths) {
			next, err := watchFiles(a.log, files...)
			if err != nil {
				a.log.Error("edits of the configuration will not be seen", "error", err)
				continue
			}
			edits.close()
			edits, look = next, true
		}
	}
}

// files are what a configuration is read from.
func (a *agent) files(c config.Config) []string {
	return slices.DeleteFunc([]string{a.file, c.DevicePlugin.NVIDIAConfig, c.DevicePlugin.NVIDIAConfigDir},
		func(path string) bool { return path == "" })
}

// fileWatch tells when one of some files was edited or, as the kubelet does with a ConfigMap, replaced
// through a symlink of its folder.
type fileWatch struct {
	paths   []string
	changed chan struct{}
	watcher *fsnotify.Watcher
	ended   chan struct{}
}

// watchFiles watches files, and folders of files.
func watchFiles(log *slog.Logger, paths ...string) (*fileWatch, error) {
	w := &fileWatch{paths: paths, changed: make(chan struct{}, 1), ended: make(chan struct{})}
	if len(paths) == 0 {
		close(w.ended)
		return w, nil
	}
	var err error
	if w.watcher, err = fsnotify.NewWatcher(); err != nil {
		return nil, fmt.Errorf("watch %s: %w", paths[0], err)
	}
	for _, path := range paths {
		folder := path
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			// The folder, not the file: an edit may replace either the file or the symlink that leads to it.
			folder = filepath.Dir(path)
		}
		if err := w.watcher.Add(folder); err != nil {
			_ = w.watcher.Close()
			return nil, fmt.Errorf("watch %s: %w", folder, err)
		}
	}
	go w.run(paths, log)
	return w, nil
}

// replacing is how long a file may be away while another takes its place, before it counts as gone.
const replacing = 2 * time.Second

func (w *fileWatch) run(paths []string, log *slog.Logger) {
	defer close(w.ended)
	last, _ := readAll(paths)
	gone := time.NewTimer(replacing)
	gone.Stop()
	defer gone.Stop()
	look := func(patient bool) {
		now, err := readAll(paths)
		switch {
		case err != nil && patient:
			gone.Reset(replacing) // in the middle of a replacement, or removed
			return
		case err != nil:
			last = nil // whoever reads it now says so; when it is back, it is news
		case slices.Equal(now, last):
			gone.Stop()
			return
		default:
			gone.Stop()
			last = now
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
	for {
		select {
		case _, ok := <-w.watcher.Events:
			if !ok {
				return
			}
			look(true)
		case <-gone.C:
			look(false)
		case err, ok := <-w.watcher.Errors:
			if !ok {
				return
			}
			log.Error("watching the configuration", "error", err)
		}
	}
}

// readAll reads files; of a folder, those in it.
func readAll(paths []string) ([]string, error) {
	var contents []string
	for _, path := range paths {
		if names, err := config.Choices(path); err == nil {
			for i := range names {
				names[i] = filepath.Join(path, names[i])
			}
			inside, err := readAll(names)
			if err != nil {
				return nil, err
			}
			contents = slices.Concat(contents, names, inside)
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		contents = append(contents, string(data))
	}
	return contents, nil
}

func (w *fileWatch) close() {
	if w.watcher != nil {
		_ = w.watcher.Close()
	}
	<-w.ended
}
