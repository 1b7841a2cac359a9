//go:build unix

package nvml

import (
	"io/fs"
	"syscall"
)

// inode is a file's number in its filesystem.
func inode(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(s.Ino)
	}
	return 0
}
