//go:build unix

package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// CreateHeld makes a new file in dir, whose name is prefix and digits, and holds its lock until it is closed or its
// process dies: then SweepUnheld removes it, unless it got another name.
func CreateHeld(dir, prefix string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(dir, prefix)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isAt(f, f.Name()) || err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return f, nil // without a lock, where the filesystem has none: then nobody else gets it either
		}
		f.Close() // a sweep came between the two
	}
}

// SweepUnheld removes what CreateHeld made in dir with the same prefix and nobody holds, and says what that was.
func SweepUnheld(dir, prefix string) (removed []fs.FileInfo, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || digits == "" || strings.Trim(digits, "0123456789") != "" || !e.Type().IsRegular() {
			continue
		}
		info, bad := removeUnheld(filepath.Join(dir, e.Name()))
		if err = errors.Join(err, bad); info != nil {
			removed = append(removed, info)
		}
	}
	return removed, err
}

// removeUnheld removes a regular file whose lock is free. It returns nil where there is none such.
func removeUnheld(path string) (fs.FileInfo, error) {
	// What was a file may be something else by now: a link, or a pipe that nobody reads.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ELOOP), errors.Is(err, fs.ErrPermission):
		return nil, nil
	case err != nil:
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !isAt(f, path) {
		return nil, nil
	}
	if err := os.Remove(path); err != nil {
		return nil, fmt.Errorf("remove what nobody holds: %w", err)
	}
	return info, nil
}

// isAt reports whether path is f, and not another file or none.
func isAt(f *os.File, path string) bool {
	is, err := f.Stat()
	if err != nil {
		return false
	}
	at, err := os.Lstat(path)
	return err == nil && os.SameFile(is, at)
}
