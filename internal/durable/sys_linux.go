package durable

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

func preallocate(f *os.File, size int64) error {
	if size == 0 {
		return f.Truncate(0)
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(size)
	}
	if err != nil {
		return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	return nil
}

func flush(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

func drop(f *os.File, off, n int64) {
	if n > 0 { // 0 means all that follows: posix_fadvise(2)
		_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED)
	}
}

// readAheadStep is what one call is sure to read: the kernel cuts each to the device's read_ahead_kb, 128 KiB unless
// somebody has raised it, and says nothing.
const readAheadStep = 128 << 10

func readAhead(f *os.File, off, n int64) {
	for end := off + n; off < end; off += readAheadStep {
		_ = unix.Fadvise(int(f.Fd()), off, min(readAheadStep, end-off), unix.FADV_WILLNEED)
	}
}

func resident(f *os.File, off, n int64) (int64, error) {
	if n <= 0 { // of cachestat it means all that follows
		return 0, nil
	}
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &stat, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		return mapped(f, off, n)
	}
	if err != nil {
		return 0, &os.PathError{Op: "cachestat", Path: f.Name(), Err: err}
	}
	return min(int64(stat.Cache)*int64(os.Getpagesize()), n), nil
}

// mapped is resident for a kernel without cachestat, which came with Linux 6.5, and where a seccomp profile does not
// know it. mincore tells the truth about files that the caller owns.
func mapped(f *os.File, off, n int64) (sum int64, err error) {
	page := int64(os.Getpagesize())
	const window = 1 << 30
	for end := off + n; off < end; {
		from := off / page * page
		to := min(end, from+window)
		m, err := unix.Mmap(int(f.Fd()), from, int(to-from), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return 0, &os.PathError{Op: "mmap", Path: f.Name(), Err: err}
		}
		pages := make([]byte, (to-from+page-1)/page)
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&pages[0])))
		err = unix.Munmap(m)
		if errno != 0 {
			err = errno
		}
		if err != nil {
			return 0, &os.PathError{Op: "mincore", Path: f.Name(), Err: err}
		}
		for i, p := range pages {
			if at := from + int64(i)*page; p&1 == 1 {
				sum += min(at+page, to) - max(at, off)
			}
		}
		off = to
	}
	return sum, nil
}

func syncfs(f *os.File) error {
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: f.Name(), Err: err}
	}
	return nil
}

func sync(f *os.File) error {
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}
