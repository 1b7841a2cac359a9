package cache

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// small mounts a disk of eight megabytes.
func small(t *testing.T) string {
	t.Helper()
	return mounted(t, "size=8m")
}

func mounted(t *testing.T, options string) string {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, options); err != nil {
		t.Skipf("a disk of its own cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	return root
}

func problems(c *Cache) (reasons []string) {
	for _, p := range c.Get().Problems {
		reasons = append(reasons, p.Reason)
	}
	return reasons
}

func TestADiskThatIsReadOnlyOrFullIsWaitedFor(t *testing.T) {
	root := small(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		o.hold("a", "b")
		cfg := config(root)
		cfg.Limit = 4 * mega
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		require.Empty(t, problems(c))

		// The kernel makes it so after an error; asked to, it refuses while a file is open for writing.
		synctest.Wait()
		require.NoError(t, unix.Mount(root, root, "", unix.MS_BIND, ""))
		require.NoError(t, unix.Mount("", root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		time.Sleep(2 * diskEvery)
		synctest.Wait()
		require.Equal(t, []string{"DiskReadOnly"}, problems(c))
		require.Equal(t, model.Ready, c.Get().Model("a").State, "it can be read")
		o.forget()
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		time.Sleep(time.Hour)
		synctest.Wait() // and so does unmounting
		require.Zero(t, o.looks(), "nothing is tried that cannot succeed")
		require.NoError(t, unix.Unmount(root, 0))
		ready(t, c, "b")
		require.Empty(t, problems(c))

		// Somebody else fills it.
		filler := filepath.Join(root, "filler")
		f, err := os.Create(filler)
		require.NoError(t, err)
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		require.ErrorIs(t, err, unix.ENOSPC)
		require.NoError(t, f.Close())
		time.Sleep(2 * diskEvery)
		synctest.Wait()
		require.Equal(t, []string{"DiskFull"}, problems(c))
		o.hold("c")
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b"), spec("c", "c")})
		require.Equal(t, model.Pending, failed(t, c, "c", "NoSpace").State)
		time.Sleep(time.Hour)
		require.Less(t, o.looks(), 60, "no hot retry")
		require.NoError(t, os.Remove(filler))
		ready(t, c, "c")
		time.Sleep(2 * diskEvery)
		synctest.Wait()
		require.Empty(t, problems(c))
		stop()
	})
}

// Since Linux 6.14 ext4 goes into a state of its own after an error, in which statfs(2) calls it writable.
func TestADiskThatTheKernelGaveUpIsReadOnly(t *testing.T) {
	image, root := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 32<<20))
	for _, command := range [][]string{
		{"mkfs.ext4", "-q", "-m", "0", image},
		{"mount", "-o", "loop,errors=remount-ro", image, root},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Skipf("an ext4 of its own cannot be mounted here: %v: %s", err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", root).Run() })
	device, err := exec.Command("findmnt", "-no", "SOURCE", root).Output()
	require.NoError(t, err)
	fail := filepath.Join("/sys/fs/ext4", filepath.Base(strings.TrimSpace(string(device))), "trigger_fs_error")

	o := newOrigin()
	o.hold("a")
	cfg := config(filepath.Join(root, "cache"))
	cfg.Limit = 4 * mega
	c := open(t, cfg, o)
	c.Want([]model.Spec{spec("a", "a")})
	stop := run(t, c)
	ready(t, c, "a")
	problem, gone := c.inspect()
	require.NoError(t, gone)
	require.Empty(t, problem.Reason)
	if err := os.WriteFile(fail, []byte("1"), 0o600); err != nil {
		t.Skipf("this kernel fails no ext4 when asked to: %v", err)
	}
	problem, gone = c.inspect()
	require.NoError(t, gone)
	require.Equal(t, "DiskReadOnly", problem.Reason)
	stop()
}

func TestADiskThatDisappearsEndsTheRunAndNoOtherTakesItsPlace(t *testing.T) {
	root := small(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		o.hold("a")
		cfg := config(root)
		cfg.Limit = 4 * mega
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		ended := make(chan error, 1)
		go func() { ended <- c.Run(t.Context()) }()
		ready(t, c, "a")
		// Another disk in its place, as the folder below a mount is.
		require.NoError(t, unix.Mount("tmpfs", root, "tmpfs", 0, "size=8m"))
		t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) }) // where the test ends early; else it is off already
		require.ErrorContains(t, <-ended, "the disk of the cache root "+root+" is gone, or another: mount it back")
		require.NoError(t, c.Close())
		cfg.Existing = true
		_, err := Open(cfg, map[string]Source{"mem": o})
		require.ErrorContains(t, err, "the cache that was here is not: mount its disk back, or restart the agent for a new one")
		entries, err := os.ReadDir(root)
		require.NoError(t, err)
		require.Empty(t, entries, "not a byte goes to the wrong disk")

		synctest.Wait()
		require.NoError(t, unix.Unmount(root, 0))
		c = open(t, cfg, o)
		require.Equal(t, model.Ready, c.Get().Model("a").State)
		require.NoError(t, c.Close())
	})
}

func TestErrorsOfTheDiskHaveAReason(t *testing.T) {
	for err, want := range map[error]string{
		&os.PathError{Op: "write", Path: "/x", Err: unix.EROFS}:  "DiskReadOnly",
		&os.PathError{Op: "write", Path: "/x", Err: unix.ENOSPC}: "NoSpace",
		&os.PathError{Op: "fsync", Path: "/x", Err: unix.EIO}:    "DiskFailed",
		os.ErrInvalid: "Failed",
		&model.Error{Reason: "Changed", Err: unix.EIO, Text: "x"}: "Changed",
	} {
		require.Equal(t, want, model.ReasonOf(ofDisk(err)), err)
	}
	require.NoError(t, ofDisk(nil))
}

// looks is how often the origin was asked what it has.
func (o *origin) looks() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.resolved
}
