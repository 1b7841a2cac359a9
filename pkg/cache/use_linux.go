package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// maxWatches bounds the directories that are watched: a user has 8,192 or more, and is not alone.
const maxWatches = 2048

// inotify sees opens by IN_OPEN on the models' directories, without any privilege. A watch is on the
// directory itself, so an open through a bind mount of it, a pod's read-only hostPath included, is seen.
// Not seen are opens through another filesystem on top (overlay, FUSE, NFS), reads of a file that was
// opened before its model was watched, and what happens in directories beyond maxWatches. Whatever reads
// the files counts: a virus scanner too. Listing a directory does not.
type inotify struct {
	fd     int
	models map[int32]string   // by watch descriptor
	of     map[string][]int32 // and back
	buf    []byte
}

// watchOpens uses inotify(7).
func watchOpens() (opens, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w: raise fs.inotify.max_user_instances", err)
	}
	return &inotify{fd: fd, models: map[int32]string{}, of: map[string][]int32{}, buf: make([]byte, 64<<10)}, nil
}

func (i *inotify) watch(name string, dirs ...string) error {
	i.forget(name)
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, i.add(name, dir))
	}
	return errors.Join(errs...)
}

func (i *inotify) add(name, dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it goes away just now
		case err != nil:
			return err
		case !e.IsDir():
			return nil
		case len(i.models) >= maxWatches:
			return fmt.Errorf("more than %d directories: the others are not watched", maxWatches)
		}
		wd, err := unix.InotifyAddWatch(i.fd, path, unix.IN_OPEN|unix.IN_ONLYDIR)
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.ENOSPC):
			return fmt.Errorf("watch %s: raise fs.inotify.max_user_watches: %w", path, err)
		case err != nil:
			return fmt.Errorf("watch %s: %w", path, err)
		}
		i.models[int32(wd)] = name
		i.of[name] = append(i.of[name], int32(wd))
		return nil
	})
}

// opened reads what the kernel has queued. It ends the watches of each model that it names, so that a
// model that opens its files without pause costs no more than one that does so once.
func (i *inotify) opened() ([]string, error) {
	var names []string
	for {
		n, err := unix.Read(i.fd, i.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			for _, name := range names {
				i.forget(name)
			}
			return names, nil
		case err != nil:
			return names, fmt.Errorf("inotify: %w", err)
		}
		for rest := i.buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			// struct inotify_event: wd, mask, cookie, len, name.
			wd, mask := int32(binary.NativeEndian.Uint32(rest)), binary.NativeEndian.Uint32(rest[4:])
			size := binary.NativeEndian.Uint32(rest[12:])
			rest = rest[min(len(rest), unix.SizeofInotifyEvent+int(size)):]
			name, ours := i.models[wd]
			switch {
			case !ours:
			case mask&unix.IN_IGNORED != 0: // the directory is gone, or forget ended the watch
				delete(i.models, wd)
				i.of[name] = slices.DeleteFunc(i.of[name], func(other int32) bool { return other == wd })
				if len(i.of[name]) == 0 {
					delete(i.of, name)
				}
			case mask&unix.IN_OPEN != 0 && mask&unix.IN_ISDIR == 0 && !slices.Contains(names, name):
				names = append(names, name)
			}
		}
	}
}

// forget ends the watches of a model.
func (i *inotify) forget(name string) {
	for _, wd := range i.of[name] {
		if i.models[wd] == name {
			_, _ = unix.InotifyRmWatch(i.fd, uint32(wd)) // it may be gone by itself
			delete(i.models, wd)
		}
	}
	delete(i.of, name)
}

func (i *inotify) close() error { return unix.Close(i.fd) }
