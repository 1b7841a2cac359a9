//go:build unix && !linux

package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// exchange has no atomic form here: between the two renames there is no b. For development only.
func exchange(a, b string) error {
	aside := a + ".old"
	if err := os.Rename(b, aside); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return err
	}
	return os.Rename(aside, a)
}

func preallocate(f *os.File, size int64) error { return f.Truncate(size) }

func flush(*os.File, int64, int64) {}

func drop(*os.File, int64, int64) {}

func readAhead(*os.File, int64, int64) {}

func resident(*os.File, int64, int64) (int64, error) { return 0, errors.ErrUnsupported }

// syncfs has no form of one filesystem here.
func syncfs(*os.File) error { unix.Sync(); return nil }

func sync(f *os.File) error { return f.Sync() }
