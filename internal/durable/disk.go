// Package durable is the recipe for changes on disk that survive a crash: write aside, sync the data,
// rename, sync the directory. Every step that changes something goes through a Disk, so that a test can
// make any one of them fail and look at what is left.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Disk does the steps. The zero Disk is the real one. It is safe for concurrent use if Fault is.
type Disk struct {
	// Fault, if set, is asked before each step that changes the disk or reads a File; its error is returned in the
	// step's place, which is then not taken.
	Fault func(op, path string) error
}

func (d Disk) step(op, path string) error {
	if d.Fault == nil {
		return nil
	}
	if err := d.Fault(op, path); err != nil {
		return &fs.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

// TempPrefix begins the name of every file that WriteFile has not finished; whoever owns the directory
// may delete such files when no writer is active.
const TempPrefix = ".tmp-"

// WriteFile replaces path by data: after a crash the file holds the old content or the new one, whole.
// It is durable when WriteFile returns nil.
func (d Disk) WriteFile(path string, data []byte, perm os.FileMode) error {
	return d.WriteStream(path, perm, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteStream is WriteFile for what content writes, which ends it with an error.
func (d Disk) WriteStream(path string, perm os.FileMode, content func(io.Writer) error) (err error) {
	if err := d.step("create", path); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), TempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), d.Remove(f.Name()))
		}
	}()
	if err := d.step("write", path); err != nil {
		return err
	}
	if err := content(f); err != nil {
		return err
	}
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if err := d.step("sync", path); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := d.Rename(f.Name(), path); err != nil {
		return err
	}
	return errors.Join(f.Close(), d.SyncDir(filepath.Dir(path)))
}

// Publish makes the directory aside visible as path, in the same parent, in one step: readers see the
// old directory or the new one. Where path exists the two are exchanged, and the old one is then at aside.
// What aside holds must be synced by the caller. It reports whether there was an old one.
func (d Disk) Publish(aside, path string) (replaced bool, err error) {
	if _, err := os.Lstat(path); err == nil {
		replaced = true
		err = d.Exchange(aside, path)
		if err != nil {
			return false, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	} else if err := d.Rename(aside, path); err != nil {
		return false, err
	}
	return replaced, d.SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a directory durable.
func (d Disk) SyncDir(path string) error {
	if err := d.step("syncdir", path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// SyncFS makes all of the filesystem that holds path durable, content and names: for many small files,
// each of which would else wait for the disk on its own. Linux before 5.8 does not report a write that failed.
func (d Disk) SyncFS(path string) error {
	if err := d.step("syncfs", path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(syncfs(f), f.Close())
}

// CreateFile makes a file of data that was not there. It is not yet durable: see SyncFS.
func (d Disk) CreateFile(path string, data []byte, perm os.FileMode) error {
	if err := d.step("create", path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	if err := d.step("write", path); err != nil {
		return errors.Join(err, f.Close())
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// SyncFile makes the content of a file durable.
func (d Disk) SyncFile(path string) error {
	if err := d.step("sync", path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Rename is rename(2), not yet durable: see SyncDir.
func (d Disk) Rename(from, to string) error {
	if err := d.step("rename", to); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// Exchange swaps two names in one step, not yet durable: see SyncDir.
func (d Disk) Exchange(a, b string) error {
	if err := d.step("exchange", b); err != nil {
		return err
	}
	if err := exchange(a, b); err != nil {
		return fmt.Errorf("exchange %s with %s: %w", a, b, err)
	}
	return nil
}

// Link makes to another name of the file from.
func (d Disk) Link(from, to string) error {
	if err := d.step("link", to); err != nil {
		return err
	}
	return os.Link(from, to)
}

// Symlink makes path lead to target, not yet durable: see SyncDir.
func (d Disk) Symlink(target, path string) error {
	if err := d.step("symlink", path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// MkdirAll is os.MkdirAll.
func (d Disk) MkdirAll(path string, perm os.FileMode) error {
	if err := d.step("mkdir", path); err != nil {
		return err
	}
	return os.MkdirAll(path, perm)
}

// Chmod is os.Chmod.
func (d Disk) Chmod(path string, perm os.FileMode) error {
	if err := d.step("chmod", path); err != nil {
		return err
	}
	return os.Chmod(path, perm)
}

// Remove deletes a file or an empty directory; one that is not there is not an error.
func (d Disk) Remove(path string) error {
	if err := d.step("remove", path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// RemoveTree deletes a directory with all it holds, read-only directories too, entry by entry.
// One that is not there is not an error.
func (d Disk) RemoveTree(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return d.Remove(path)
	}
	if info.Mode().Perm()&0o700 != 0o700 {
		if err := d.Chmod(path, 0o700); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		remove := d.Remove
		if e.IsDir() {
			remove = d.RemoveTree
		}
		if err := remove(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return d.Remove(path)
}
