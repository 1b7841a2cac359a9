package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

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
			klog.SetLogger(logr.FromSlogHandler(newLog(c.Log, cmd.ErrOrStderr()).Handler()))
			build := func(c config.Config) (*agent, error) {
				return newAgent(c, flags.file, newLog(c.Log, cmd.ErrOrStderr()))
			}
			return runAgent(cmd.Context(), c, flags.loadFor, build)
		},
	}
	flags.add(cmd)
	return cmd
}

func newLog(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // checked with the configuration
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// runAgent runs the agent, and another one in its place when an edit of the file asks for more than other
// models.
func runAgent(ctx context.Context, c config.Config, load func(choice string) (config.Config, error), build func(config.Config) (*agent, error)) error {
	a, err := build(c)
	for err == nil && ctx.Err() == nil {
		for _, note := range a.config.Notes {
			a.log.Info("configuration", "note", note)
		}
		if err := a.firstChoice(ctx, load); err != nil {
			a.log.Error("not the configuration that the node's label asks for", "error", err)
		}
		a, err = a.runEdition(ctx, func() (*agent, error) { return a.edited(load, build) })
	}
	return err
}

// runEdition runs the agent until ctx is done or an edit asks for another one, which it returns. edited takes
// an edit over; it returns nil where this agent goes on.
func (a *agent) runEdition(ctx context.Context, edited func() (*agent, error)) (*agent, error) {
	edits, err := watchFiles(a.log, a.file, a.config.DevicePlugin.NVIDIAConfig, a.config.DevicePlugin.NVIDIAConfigDir)
	if err != nil {
		return nil, err
	}
	defer edits.close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()
	for look := true; ; look = false {
		_, chosen := a.choice.Watch()
		if !look { // the first look is at what was edited before the watch began
			select {
			case err := <-ended:
				return nil, err
			case <-edits.changed:
			case <-chosen:
			}
		}
		next, err := edited()
		if err != nil {
			a.log.Error("the edited configuration is not in force", "error", err)
		}
		a.configError(err)
		if next != nil {
			a.log.Info("configuration changed: the parts start again", "file", a.file)
			stop()
			return next, <-ended
		}
	}
}

// edited takes over an edit of the files, or builds the agent that it asks for. An edit that cannot be read
// or built changes nothing.
func (a *agent) edited(load func(choice string) (config.Config, error), build func(config.Config) (*agent, error)) (*agent, error) {
	c, err := load(a.choice.Get())
	if err != nil {
		return nil, err
	}
	if !sameParts(a.config, c) {
		next, err := build(c)
		if err == nil {
			next.follow(a)
		}
		return next, err
	}
	if err := a.offer(c); err != nil {
		return nil, err
	}
	a.want(c.Cache.Specs())
	return nil, nil
}

// follow takes over what an agent before this one in the same process knows of the GPUs, and what it learned from
// the API server: the kubelet should be without a plugin as shortly as possible.
func (a *agent) follow(before *agent) {
	a.monitor.Follow(before.monitor)
	a.choice.Set(before.choice.Get())
	if a.dra != nil && before.dra != nil {
		a.dra.Follow(before.dra)
	}
}

// sameParts reports whether two configurations differ at most in what running parts can take over: what
// is offered to the kubelet, and the list of models.
func sameParts(a, b config.Config) bool {
	for _, c := range []*config.Config{&a, &b} {
		c.Cache.Models, c.Notes = nil, nil
		p := c.DevicePlugin
		// The rest of it is policy. CDI specs are written for the other devices that there are.
		c.DevicePlugin = config.DevicePlugin{
			KubeletDir: p.KubeletDir, NVIDIAConfig: p.NVIDIAConfig, NVIDIAConfigDir: p.NVIDIAConfigDir, GDS: p.GDS, MOFED: p.MOFED, GDRCopy: p.GDRCopy, IMEX: p.IMEX,
			MPSBinDir: p.MPSBinDir,
		}
		if p.Sharing.MPS != nil {
			c.DevicePlugin.Sharing.MPS = &config.Shares{} // whether there are daemons to look after, not which
		}
	}
	return reflect.DeepEqual(a, b)
}

// fileWatch tells when one of some files was edited or, as the kubelet does with a ConfigMap, replaced
// through a symlink of its folder.
type fileWatch struct {
	changed chan struct{}
	watcher *fsnotify.Watcher
	ended   chan struct{}
}

// watchFiles watches files, and folders of files; "" is never edited.
func watchFiles(log *slog.Logger, paths ...string) (*fileWatch, error) {
	w := &fileWatch{changed: make(chan struct{}, 1), ended: make(chan struct{})}
	paths = slices.DeleteFunc(paths, func(path string) bool { return path == "" })
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
