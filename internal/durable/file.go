package durable

import (
	"os"
)

// File is a file that is written out of order and read back while it grows.
// Its methods are safe for concurrent use, Close apart.
type File struct {
	disk Disk
	file *os.File
}

// OpenFile opens path for reading and writing and creates it, empty, where it is missing.
func (d Disk) OpenFile(path string, perm os.FileMode) (*File, error) {
	if err := d.step("create", path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, perm)
	if err != nil {
		return nil, err
	}
	return &File{disk: d, file: f}, nil
}

// Open opens path for reading alone.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &File{file: f}, nil
}

// Preallocate gives the file its final size and, where the filesystem can, its blocks, so that a disk
// without room says so now and not at 97 %. What is there already stays.
func (f *File) Preallocate(size int64) error {
	if err := f.disk.step("allocate", f.file.Name()); err != nil {
		return err
	}
	return preallocate(f.file, size)
}

// WriteAt is io.WriterAt.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := f.disk.step("write", f.file.Name()); err != nil {
		return 0, err
	}
	return f.file.WriteAt(p, off)
}

// ReadAt is io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.disk.step("read", f.file.Name()); err != nil {
		return 0, err
	}
	return f.file.ReadAt(p, off)
}

// Flush starts to write a range to the disk and does not wait: it bounds the dirty pages that a later
// Sync must wait for. It is a hint; durable is only what was synced.
func (f *File) Flush(off, n int64) { flush(f.file, off, n) }

// Drop says that nobody here reads a range soon, so that its pages may go from the page cache. Those that are
// not on the disk, or that another process has mapped, stay. It is a hint.
func (f *File) Drop(off, n int64) { drop(f.file, off, n) }

// ReadAhead starts to read a range into the page cache. It waits only while the disk's queue is full. It is a hint:
// a ReadAt of a byte waits for that byte and says whether it can be read.
func (f *File) ReadAhead(off, n int64) { readAhead(f.file, off, n) }

// Resident is how many bytes of a range, which is within the file, are in the page cache. Where the system cannot say,
// which is any but Linux, the error is errors.ErrUnsupported.
func (f *File) Resident(off, n int64) (int64, error) { return resident(f.file, off, n) }

// Sync returns when all that was written is on the disk (fdatasync).
func (f *File) Sync() error {
	if err := f.disk.step("sync", f.file.Name()); err != nil {
		return err
	}
	return sync(f.file)
}

// Chmod sets the permissions.
func (f *File) Chmod(perm os.FileMode) error {
	if err := f.disk.step("chmod", f.file.Name()); err != nil {
		return err
	}
	return f.file.Chmod(perm)
}

// Close closes without syncing.
func (f *File) Close() error { return f.file.Close() }
