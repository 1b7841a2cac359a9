package deviceplugin

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/fsnotify/fsnotify"
)

const (
	socketPrefix = "gpu-agent-"
	socketSuffix = ".sock"
)

// folder is the kubelet's plugin folder, watched where the node has an inotify instance to spare.
// Its channels only wake: what there is, is looked up each time.
type folder struct {
	path    string
	log     *slog.Logger
	watcher *fsnotify.Watcher // nil when there is none: the caller polls
	is      os.FileInfo       // the folder watched now; nil when none is
}

func openFolder(path string, log *slog.Logger) *folder {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("cannot watch files, looking every second instead", "err", err)
		w = nil
	}
	return &folder{path: path, log: log, watcher: w}
}

// look makes sure that the folder of now is the one watched. It is an error that it is not there.
func (f *folder) look() error {
	now, err := os.Stat(f.path)
	if err != nil {
		f.is = nil
		return fmt.Errorf("kubelet's plugin folder is not there: %w", err)
	}
	if f.watcher == nil || f.is != nil && os.SameFile(f.is, now) {
		return nil
	}
	_ = f.watcher.Remove(f.path) // of a folder that was there before, if any
	f.is = now
	if err := f.watcher.Add(f.path); err != nil {
		f.log.Warn("cannot watch the plugin folder, looking every second instead", "path", f.path, "err", err)
		f.is = nil
	}
	return nil
}

func (f *folder) watched() bool { return f.is != nil }

func (f *folder) events() <-chan fsnotify.Event {
	if f.watcher == nil {
		return nil
	}
	return f.watcher.Events
}

// errors are read only to be able to go on: the most they say is that events were lost.
func (f *folder) errors() <-chan error {
	if f.watcher == nil {
		return nil
	}
	return f.watcher.Errors
}

func (f *folder) close() {
	if f.watcher != nil {
		_ = f.watcher.Close()
	}
}

// fileAt is the file at path, or nil.
func fileAt(path string) os.FileInfo {
	info, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	return info
}

// same reports whether both are one file. An inode number is reused at once on ext4, so the time of
// creation counts too; nothing writes to a socket's inode, so its mtime is that.
func same(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime())
}

// sweep removes sockets that a killed instance left behind. Another instance of ours may be alive
// during an upgrade: only a socket that refuses connections is nobody's.
func sweep(dir string, ours []string, log *slog.Logger) {
	paths, _ := filepath.Glob(filepath.Join(dir, socketPrefix+"*"+socketSuffix)) // only a bad pattern fails
	for _, path := range paths {
		if slices.Contains(ours, path) {
			continue
		}
		conn, err := net.Dial("unix", path)
		if err == nil {
			_ = conn.Close()
			continue
		}
		if errors.Is(err, syscall.ECONNREFUSED) && os.Remove(path) == nil {
			log.Info("removed the socket of a dead instance", "socket", path)
		}
	}
}
