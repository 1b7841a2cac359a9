package cache

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gpu-agent/gpu-agent/internal/durable"
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
		err = c.Pin("a")
		require.Equal(t, "NoSpace", model.ReasonOf(err))
		require.EqualError(t, err, "the cache's disk is full, and nothing can be noted of model a: make room on the disk of "+root+
			", or remove a model that is not used (gpu-agent models rm): no space left on device")
		_, err = c.Pull(t.Context(), spec("d", "d"))
		require.ErrorContains(t, err, "the cache's disk is full, and nothing can be noted of model d: make room")
		c.Want([]model.Spec{spec("b", "b")})
		require.NoError(t, c.Remove(t.Context(), "a", false), "what is to be done then can be done")
		synctest.Wait()
		require.Nil(t, c.Get().Model("a"))
		o.hold("c")
		f, err = os.OpenFile(filler, os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		for err == nil { // what went left room
			_, err = f.Write(make([]byte, 4096))
		}
		require.NoError(t, f.Close())
		c.Want([]model.Spec{spec("b", "b"), spec("c", "c")})
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

// remount makes a disk that nobody writes to read-only, or not.
func remount(t *testing.T, root string, flags uintptr) {
	t.Helper()
	require.NoError(t, unix.Mount("", root, "", unix.MS_REMOUNT|flags, "size=8m"))
}

// TestAnAgentThatStartsOnAReadOnlyDiskShowsWhatIsThere is a node that was rebooted after its disk failed.
func TestAnAgentThatStartsOnAReadOnlyDiskShowsWhatIsThere(t *testing.T) {
	root := small(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		a, second, b := weights(1), weights(2), weights(3)
		o.hub["a"] = model.Hub{Repo: "org/m", Revision: "main"}
		o.put("a", commit1, a)
		o.put("b", "r1", b)
		cfg := config(root)
		cfg.Limit = 8*mega - 1
		cfg.Keep = 1
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		stop := run(t, c)
		ready(t, c, "a")
		ready(t, c, "b")
		moves(t, c, o, "a", commit2, second)
		o.put("c", "r1", map[string][]byte{"f": noise(4, 300_000)})
		o.onOpen = func(_ int, ctx context.Context, _ model.File, off, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			return silent{ctx, bytes.NewReader(nil)}, nil, off > 100_000
		}
		wants := []model.Spec{spec("a", "a"), spec("b", "b"), spec("c", "c")}
		c.Want(wants)
		wait(t, c, "c", func(s *model.Status) bool { return s != nil && s.Done > 60_000 })
		stop()
		used := c.Get().Used
		// What a crash leaves, and a start sweeps: here it stays.
		require.NoError(t, os.WriteFile(filepath.Join(c.at.partial("c"), ".tmp-1"), nil, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(c.at.manifests(), "stray"), nil, 0o600))
		require.NoError(t, os.Mkdir(filepath.Join(c.at.byName(), ".a.tmp-0"), 0o755))
		remount(t, root, unix.MS_RDONLY)

		c = open(t, cfg, o)
		require.Equal(t, []string{"DiskReadOnly"}, problems(c))
		_, err := Open(cfg, map[string]Source{"mem": o})
		require.ErrorIs(t, err, durable.ErrLocked, "two agents are one too many")
		o.forget()
		c.Want(wants)
		ended := make(chan error, 1)
		go func() { ended <- c.Run(t.Context()) }()
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		require.Equal(t, []string{"DiskReadOnly"}, problems(c))
		s := c.Get().Model("a")
		require.Equal(t, model.Ready, s.State)
		require.Equal(t, commit2, s.Revision)
		require.Len(t, s.Old, 1, "nothing goes")
		require.Equal(t, model.Ready, c.Get().Model("b").State)
		holds(t, root, "a", second)
		holds(t, root, "a@111111111111", a)
		holds(t, root, "b", b)
		serves(t, root, "org/m", map[string][]map[string][]byte{commit1: {a}, commit2: {second}})
		s = c.Get().Model("c")
		require.Equal(t, model.Pending, s.State)
		require.Equal(t, "DiskReadOnly", s.Reason)
		require.Contains(t, s.Message, "is read-only")
		require.InDelta(t, used, c.Get().Used, 400_000, "a partial download that is not as it should be does not count")
		require.Zero(t, o.looks())
		for name, do := range map[string]func() error{
			"pull":     func() error { return ask(t, c, spec("b", "b")) },
			"pull new": func() error { return ask(t, c, spec("new", "b")) },
			"remove":   func() error { return c.Remove(t.Context(), "a@111111111111", true) },
			"pin":      func() error { return c.Pin("a") },
			"rollback": func() error { _, err := c.Rollback(t.Context(), "a", ""); return err },
		} {
			require.Equal(t, "DiskReadOnly", model.ReasonOf(do()), name)
		}
		damaged, err := c.Verify(t.Context(), "a")
		require.NoError(t, err)
		require.Empty(t, damaged)

		// It is repaired: Run says so, and whoever opens it again has all that it had.
		remount(t, root, 0)
		require.ErrorIs(t, <-ended, ErrWritable)
		require.NoError(t, c.Close())
		c = open(t, cfg, o)
		require.Empty(t, problems(c))
		require.NoFileExists(t, filepath.Join(c.at.manifests(), "stray"))
		c.Want(wants)
		stop = run(t, c)
		ready(t, c, "c")
		require.Less(t, o.bytesAsked(), int64(300_000), "the download goes on where it was")
		require.Len(t, c.Get().Model("a").Old, 1)
		stop()
	})
}

// TestWhatIsPromisedStaysWhileTheCacheOfARepairedDiskIsOpenedAgain holds labels through the moment between the two.
func TestWhatIsPromisedStaysWhileTheCacheOfARepairedDiskIsOpenedAgain(t *testing.T) {
	root := small(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		o.hold("a")
		cfg := config(root)
		cfg.Limit = 4 * mega
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		stop()
		remount(t, root, unix.MS_RDONLY)
		s := NewSet(slog.New(slog.DiscardHandler))
		s.InUse(nil)
		s.Want([]model.Spec{spec("a", "a")})
		s.Span([]Root{{Path: root}})
		promised := func() model.State {
			if inv := s.Promised().Get(); inv != nil && inv.Model("a") != nil {
				return inv.Model("a").State
			}
			return ""
		}
		for range 2 {
			c = open(t, cfg, o)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx, "", c) }()
			synctest.Wait()
			require.Equal(t, model.Ready, promised())
			if c.sealed {
				remount(t, root, 0)
				require.ErrorIs(t, <-ended, ErrWritable)
			} else {
				cancel()
				require.NoError(t, <-ended)
			}
			cancel()
			require.NoError(t, c.Close())
			require.Equal(t, model.Ready, promised(), "as when the agent ends")
		}
		require.False(t, c.sealed)
	})
}

func TestAFilesystemThatHasNoFurtherNameForAContentSaysSo(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", weights(1))
		cfg := config(root)
		cfg.disk.Fault = func(op, path string) error {
			if op == "link" && filepath.Base(path) == "copy" {
				return syscall.EMLINK
			}
			return nil
		}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		require.Contains(t, failed(t, c, "a", "TooManyLinks").Message, "give the cache an XFS disk")
	})
}
