package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/durable"
)

func TestWriteFileLeavesTheOldOrTheNewWhateverStepFails(t *testing.T) {
	for i := 1; ; i++ {
		path := filepath.Join(t.TempDir(), "f")
		require.NoError(t, durable.Disk{}.WriteFile(path, []byte("old"), 0o600))
		n := 0
		failing := durable.Disk{Fault: func(string, string) error {
			if n++; n >= i {
				return errors.New("injected")
			}
			return nil
		}}
		err := failing.WriteFile(path, []byte("new"), 0o640)
		got, readErr := os.ReadFile(path)
		require.NoError(t, readErr)
		if err == nil {
			require.Equal(t, "new", string(got))
			info, err := os.Stat(path)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o640), info.Mode().Perm())
			require.Greater(t, i, 4)
			return
		}
		require.ErrorContains(t, err, "injected")
		require.Contains(t, []string{"old", "new"}, string(got))
	}
}

func TestPublishShowsAndExchangesDirectories(t *testing.T) {
	root, d := t.TempDir(), durable.Disk{}
	shown := filepath.Join(root, "shown")
	put := func(name, content string) string {
		dir := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o444))
		require.NoError(t, os.Chmod(dir, 0o555))
		return dir
	}
	has := func(dir, want string) {
		got, err := os.ReadFile(filepath.Join(dir, "f"))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	replaced, err := d.Publish(put("one", "1"), shown)
	require.NoError(t, err)
	require.False(t, replaced)
	has(shown, "1")
	two := put("two", "2")
	replaced, err = d.Publish(two, shown)
	require.NoError(t, err)
	require.True(t, replaced)
	has(shown, "2")
	has(two, "1")
	require.NoError(t, d.RemoveTree(two))
	require.NoDirExists(t, two)
	require.NoError(t, d.RemoveTree(two), "what is gone is no error")
	require.NoError(t, d.RemoveTree(shown))
}

func TestLockIsHeldByOneAndFreeAfterClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f, err := durable.Lock(path)
	require.NoError(t, err)
	_, err = durable.Lock(path)
	require.ErrorIs(t, err, durable.ErrLocked)
	require.NoError(t, f.Close())
	f, err = durable.Lock(path)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func TestPreallocateKeepsWhatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := durable.Disk{}.OpenFile(path, 0o600)
	require.NoError(t, err)
	require.NoError(t, f.Preallocate(1<<20))
	_, err = f.WriteAt([]byte("x"), 5)
	require.NoError(t, err)
	f.Flush(0, 1<<20)
	require.NoError(t, f.Preallocate(1<<20))
	require.NoError(t, f.Sync())
	f.Drop(0, 0)
	f.Drop(0, 1<<20)
	b := make([]byte, 2)
	_, err = f.ReadAt(b, 5)
	require.NoError(t, err)
	require.Equal(t, "x\x00", string(b))
	require.NoError(t, f.Close())
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, int64(1<<20), info.Size())
}

func TestCreateFileMakesWhatWasNotThere(t *testing.T) {
	dir, d := t.TempDir(), durable.Disk{}
	path := filepath.Join(dir, "f")
	require.NoError(t, d.CreateFile(path, []byte("x"), 0o444))
	require.ErrorIs(t, d.CreateFile(path, []byte("y"), 0o444), os.ErrExist)
	require.NoError(t, d.SyncFile(path))
	require.NoError(t, d.SyncFS(dir))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "x", string(got))
	require.ErrorIs(t, d.SyncFile(filepath.Join(dir, "g")), os.ErrNotExist)
	failing := durable.Disk{Fault: func(op, _ string) error { return errors.New(op) }}
	require.ErrorContains(t, failing.SyncFS(dir), "syncfs")
	require.ErrorContains(t, failing.SyncFile(path), "sync")
	require.ErrorContains(t, failing.CreateFile(path, nil, 0o444), "create")
}

// TestDropTakesWhatIsOnTheDiskOutOfMemory asks the kernel which pages of a file it holds.
func TestDropTakesWhatIsOnTheDiskOutOfMemory(t *testing.T) {
	f, err := durable.Disk{}.OpenFile(filepath.Join(t.TempDir(), "f"), 0o600)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(make([]byte, 8<<20), 0)
	require.NoError(t, err)
	before, err := f.Resident(0, 8<<20)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	require.EqualValues(t, 8<<20, before)
	require.NoError(t, f.Sync())
	f.Drop(0, 4<<20)
	after, err := f.Resident(0, 8<<20)
	require.NoError(t, err)
	if after == before {
		t.Skip("this filesystem has no disk below it: nothing can be dropped")
	}
	require.LessOrEqual(t, after, int64(5<<20))
	require.GreaterOrEqual(t, after, int64(4<<20), "what was not named stays")
}

func TestSubfoldersShareAFilesystemAndProcIsAnother(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "a"), 0o700))
	shared, err := durable.SameFilesystem(dir, filepath.Join(dir, "a"))
	require.NoError(t, err)
	require.True(t, shared)
	if runtime.GOOS == "linux" {
		shared, err = durable.SameFilesystem(dir, "/proc")
		require.NoError(t, err)
		require.False(t, shared)
	}
	_, err = durable.SameFilesystem(dir, filepath.Join(dir, "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
