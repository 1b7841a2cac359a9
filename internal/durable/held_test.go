//go:build unix

package durable

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestASweepTakesWhatNobodyHoldsAlone(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	live, err := CreateHeld(dir, ".part-")
	require.NoError(t, err)
	defer live.Close()
	dead, err := CreateHeld(dir, ".part-")
	require.NoError(t, err)
	_, err = dead.WriteString("half")
	require.NoError(t, err)
	require.NoError(t, dead.Close()) // as the kernel does it when its process is killed
	stay := []string{filepath.Base(live.Name())}
	for _, name := range []string{".part-", ".part-1a", ".part-1.tar", ".tmp-1", "part-1", "x.part-1"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
		stay = append(stay, name)
	}
	require.NoError(t, os.WriteFile(filepath.Join(elsewhere, "f"), nil, 0o600))
	require.NoError(t, os.Symlink(filepath.Join(elsewhere, "f"), filepath.Join(dir, ".part-2")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, ".part-3"), 0o700))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, ".part-4"), 0o600))
	stay = append(stay, ".part-2", ".part-3", ".part-4")

	removed, err := SweepUnheld(dir, ".part-")
	require.NoError(t, err)
	require.Len(t, removed, 1)
	require.Equal(t, filepath.Base(dead.Name()), removed[0].Name())
	require.EqualValues(t, 4, removed[0].Size())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	require.ElementsMatch(t, stay, left)
	require.FileExists(t, filepath.Join(elsewhere, "f"))
	// What it would come to, had the folder been read before they took its place.
	for _, name := range []string{".part-2", ".part-3", ".part-4", ".part-5"} {
		info, err := removeUnheld(filepath.Join(dir, name))
		require.Nil(t, info)
		if name != ".part-3" {
			require.NoError(t, err)
		}
	}
	require.NoError(t, live.Close())
	removed, err = SweepUnheld(dir, ".part-")
	require.NoError(t, err)
	require.Len(t, removed, 1)
}

// A file is there and not locked for a moment after it was made.
func TestAFileThatIsHeldIsNotSweptFromItsFirstMoment(t *testing.T) {
	dir, done, swept := t.TempDir(), make(chan struct{}), make(chan error)
	for range 2 {
		go func() {
			var err error
			for err == nil {
				select {
				case <-done:
					swept <- nil
					return
				default:
					_, err = SweepUnheld(dir, ".part-")
				}
			}
			swept <- err
		}()
	}
	for range 500 {
		f, err := CreateHeld(dir, ".part-")
		require.NoError(t, err)
		require.NoError(t, os.Rename(f.Name(), filepath.Join(dir, "whole")))
		require.NoError(t, f.Close())
	}
	close(done)
	require.NoError(t, <-swept)
	require.NoError(t, <-swept)
}
