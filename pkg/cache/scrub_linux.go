package cache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// coldFile is read without a change of what the page cache holds of it. It reads with O_DIRECT, which goes to
// the disk also where a page is in the cache, and where the filesystem has none through the cache. Either way
// pages that were not there before are given back: some filesystems take O_DIRECT and use the cache.
type coldFile struct {
	file   *os.File
	direct bool
	size   int64
	buf    []byte // on a page's boundary, as O_DIRECT wants it
}

func openCold(path string, direct bool) (*coldFile, error) {
	f := &coldFile{direct: direct}
	var err error
	if direct {
		f.file, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	}
	if !direct || errors.Is(err, unix.EINVAL) {
		f.direct = false
		f.file, err = os.Open(path)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.file.Stat()
	if err == nil {
		f.size = info.Size()
		f.buf, err = unix.Mmap(-1, 0, scrubChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	}
	if err != nil {
		return nil, errors.Join(err, f.file.Close())
	}
	_ = unix.Fadvise(int(f.file.Fd()), 0, 0, unix.FADV_RANDOM) // no read-ahead beyond what is asked for
	return f, nil
}

// read returns the bytes from off, up to a chunk, valid until the next read, and io.EOF after the last.
func (f *coldFile) read(off int64) ([]byte, error) {
	n := min(f.size-off, scrubChunk)
	if n <= 0 {
		return nil, io.EOF
	}
	before, err := f.resident(off, n)
	if err != nil {
		return nil, err
	}
	got, err := f.file.ReadAt(f.buf[:scrubChunk], off) // in full: O_DIRECT reads whole blocks
	if f.direct && errors.Is(err, unix.EINVAL) {
		f.direct = false
		flags, err := unix.FcntlInt(f.file.Fd(), unix.F_GETFL, 0)
		if err == nil {
			_, err = unix.FcntlInt(f.file.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT)
		}
		if err != nil {
			return nil, err
		}
		return f.read(off)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if int64(got) < n {
		return nil, fmt.Errorf("%s: %d bytes at %d: %w", f.file.Name(), got, off, io.ErrUnexpectedEOF)
	}
	after, err := f.resident(off, n)
	if err != nil {
		return nil, err
	}
	f.giveBack(off, before, after)
	return f.buf[:n], nil
}

// resident tells for each page of a range whether the page cache has it.
func (f *coldFile) resident(off, n int64) ([]byte, error) {
	m, err := unix.Mmap(int(f.file.Fd()), off, int(n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.file.Name(), err)
	}
	page := os.Getpagesize()
	vec := make([]byte, (int(n)+page-1)/page)
	err = mincore(m, vec)
	return vec, errors.Join(err, unix.Munmap(m))
}

func mincore(m, vec []byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
		return os.NewSyscallError("mincore", errno)
	}
	return nil
}

// giveBack drops the pages that came in between.
func (f *coldFile) giveBack(off int64, before, after []byte) {
	page := int64(os.Getpagesize())
	for i := 0; i < len(after); i++ {
		from := i
		for i < len(after) && after[i]&1 == 1 && before[i]&1 == 0 {
			i++
		}
		if i > from {
			_ = unix.Fadvise(int(f.file.Fd()), off+int64(from)*page, int64(i-from)*page, unix.FADV_DONTNEED)
		}
	}
}

func (f *coldFile) close() {
	_ = unix.Munmap(f.buf)
	_ = f.file.Close()
}
