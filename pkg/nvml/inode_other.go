//go:build !unix

package nvml

import "io/fs"

// inode knows of none here: there is no sysfs either.
func inode(fs.FileInfo) uint64 { return 0 }
