package cache

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// onDisk is a root that is not in memory, for tests of what a disk does.
func onDisk(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "cache-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, durable.Disk{}.RemoveTree(d)) })
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(d, &fs))
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("the temporary directory is in memory: set TMPDIR to one on a disk")
	}
	return d
}

// cached asks the kernel how many pages of a range are in the page cache, in another way than the scrub does.
func cached(t *testing.T, path string, off, n int64) int {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var stat unix.Cachestat_t
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &stat, 0)
	if err == unix.ENOSYS {
		t.Skip("this kernel is older than 6.5 and has no cachestat")
	}
	require.NoError(t, err)
	return int(stat.Cache)
}

// cool drops all of a file from the page cache.
func cool(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Fdatasync(int(f.Fd())))
	require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

func TestAColdReadLeavesThePageCacheAsItIs(t *testing.T) {
	for _, direct := range []bool{true, false} {
		t.Run(fmt.Sprintf("direct=%t", direct), func(t *testing.T) {
			path := filepath.Join(onDisk(t), "f")
			content := noise(1, 4*scrubChunk+12345)
			require.NoError(t, os.WriteFile(path, content, 0o444))
			cool(t, path)
			const page, hot = 4096, scrubChunk + 5*4096 // one chunk is hot, and a part of the next
			f, err := os.Open(path)
			require.NoError(t, err)
			defer f.Close()
			require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM))
			_, err = f.ReadAt(make([]byte, hot), scrubChunk)
			require.NoError(t, err)
			chunks := func() (pages []int) {
				for off := int64(0); off < int64(len(content)); off += scrubChunk {
					pages = append(pages, cached(t, path, off, scrubChunk))
				}
				return pages
			}
			before := chunks()
			require.Equal(t, []int{0, scrubChunk / page, 5, 0, 0}, before)

			cold, err := openCold(path, direct)
			require.NoError(t, err)
			defer cold.close()
			var got []byte
			for part, err := cold.read(0); err == nil; part, err = cold.read(int64(len(got))) {
				got = append(got, part...)
			}
			require.Equal(t, digest(content), digest(got))
			require.Equal(t, before, chunks())
			require.Equal(t, direct, cold.direct, "the temporary directory is on a disk that takes O_DIRECT")
		})
	}
}

// flip changes a bit of a file on the disk, and nothing else of it: not its size, not its time.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(path, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	require.NoError(t, err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b, at)
	require.NoError(t, err)
	require.NoError(t, f.Chmod(info.Mode()))
	cool(t, path)
	require.NoError(t, os.Chtimes(path, time.Time{}, info.ModTime()))
}

func TestTheScrubFindsAFlippedBitAndMendsIt(t *testing.T) {
	root := onDisk(t)
	synctest.Test(t, func(t *testing.T) {
		o, l := newOrigin(), layout(root)
		o.put("a", "r1", map[string][]byte{"f": noise(1, 3*mega), "g": noise(2, 1000)})
		o.put("b", "r1", map[string][]byte{"h": noise(3, mega)})
		cfg := config(root)
		cfg.Keep, cfg.Scrub = 1, Scrub{Every: 24 * time.Hour, Rate: mega}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		stop := run(t, c)
		ready(t, c, "b")
		ready(t, c, "a")
		o.put("b", "r2", map[string][]byte{"h": noise(4, mega)})
		require.NoError(t, ask(t, c, spec("b", "b")))
		wait(t, c, "b", func(s *model.Status) bool { return s.Revision == "r2" })
		uses := c.Get().Model("a").LastUse
		time.Sleep(23 * time.Hour)
		require.Zero(t, c.Get().Scrub, "what came in was verified")
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		s := c.Get().Scrub
		require.Equal(t, int64(5*mega+1000), s.Bytes)
		require.Zero(t, s.Damaged)
		require.InDelta(t, 24*time.Hour, s.Ended.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)), float64(time.Minute))
		require.True(t, uses.Equal(c.Get().Model("a").LastUse), "it is no use")

		// A bit of a model and one of an old revision. The neighbour is not touched.
		o.forget()
		flip(t, filepath.Join(l.visible("a"), "f"), 2*mega+77)
		flip(t, filepath.Join(l.visible("b@r1"), "h"), 5)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		require.Equal(t, int64(2), c.Get().Scrub.Damaged)
		require.Equal(t, int64(3*mega), o.bytesAsked(), "the damaged file of the model")
		require.Equal(t, int64(2), c.Get().Failures["Damaged"])
		holds(t, root, "a", o.content["a"])
		holds(t, root, "b", o.content["b"])
		require.Empty(t, c.Get().Model("b").Old, "an old revision is not fetched again")
		require.Equal(t, int64(4*mega+1000), c.Get().Used)
		ended := c.Get().Scrub.Ended
		stop()

		// When it was last through is known after a restart, which is no reason to begin anew.
		c = open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		stop = run(t, c)
		synctest.Wait()
		require.True(t, ended.Equal(c.Get().Scrub.Ended))
		require.Zero(t, c.Get().Scrub.Bytes)
		stop()
		require.Len(t, tree(t, l.blobs()), 3)
	})
}

// TestTheScrubsWaitsForSmallFilesAreMadeTogether: each of its own would be a timer's millisecond.
func TestTheScrubsWaitsForSmallFilesAreMadeTogether(t *testing.T) {
	for files, want := range map[int]time.Duration{10: 0, 100: 100 * time.Second / 1024} {
		bubble(t, func(t *testing.T, root string, o *origin) {
			small := map[string][]byte{}
			for i := range files {
				small[fmt.Sprint(i)] = noise(uint64(i), 1024)
			}
			o.put("a", "r1", small)
			cfg := config(root)
			cfg.Scrub = Scrub{Every: 24 * time.Hour, Rate: mega}
			c := open(t, cfg, o)
			run(t, c)
			began := time.Now()
			pull(t, c, "a")
			time.Sleep(25 * time.Hour)
			synctest.Wait()
			require.Equal(t, int64(files)<<10, c.Get().Scrub.Bytes)
			require.InDelta(t, want, c.Get().Scrub.Ended.Sub(began.Add(24*time.Hour)), float64(scrubWait), "at the rate, but for the last wait")
			if files == 10 {
				require.Zero(t, c.Get().Scrub.Ended.Sub(began.Add(24*time.Hour)))
			}
		})
	}
}

func TestAScrubGoesOnWhereARestartCameBetween(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b", "c", "d")
		cfg := config(root)
		cfg.Scrub = Scrub{Every: 24 * time.Hour, Rate: 16 << 10} // 64 s for each
		c := open(t, cfg, o)
		stop := run(t, c)
		pull(t, c, "a", "b", "c", "d")
		time.Sleep(24*time.Hour + 100*time.Second)
		stop()
		first := c.scrubbed.Bytes
		require.Equal(t, int64(2*mega), first, "it is in the second")
		c = open(t, cfg, o)
		run(t, c)
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		require.Equal(t, int64(3*mega), c.Get().Scrub.Bytes, "the second from its start, and the others")
		require.False(t, c.Get().Scrub.Ended.IsZero())
	})
}

// TestABitThatFlipsUnderAHotPageIsFound changes a disk behind the filesystem's back, which takes a disk of one's own.
func TestABitThatFlipsUnderAHotPageIsFound(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting an image takes root")
	}
	dir := onDisk(t)
	image, root := filepath.Join(dir, "image"), filepath.Join(dir, "root")
	require.NoError(t, os.Mkdir(root, 0o755))
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 32*mega))
	for _, command := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, root}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(root, 0)) })

	content := noise(7, 4*mega)
	path := filepath.Join(root, "f")
	require.NoError(t, os.WriteFile(path, content, 0o444))
	cool(t, path)
	hot, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, digest(content), digest(hot))
	disk, err := os.ReadFile(image)
	require.NoError(t, err)
	const page = 700 * 4096
	at := bytes.Index(disk, content[page:page+4096])
	require.Positive(t, at)
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{disk[at] ^ 1}, int64(at))
	require.NoError(t, err)
	require.NoError(t, f.Close())

	hot, err = os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, digest(content), digest(hot), "whoever reads through the cache sees nothing")
	before := cached(t, path, 0, 4*mega)
	require.Equal(t, 4*mega/4096, before)
	sum := func(direct bool) model.Digest {
		cold, err := openCold(path, direct)
		require.NoError(t, err)
		defer cold.close()
		var got []byte
		for part, err := cold.read(0); err == nil; part, err = cold.read(int64(len(got))) {
			got = append(got, part...)
		}
		return digest(got)
	}
	content[page] ^= 1
	require.Equal(t, digest(content), sum(true), "the scrub sees the disk")
	require.NotEqual(t, digest(content), sum(false))
	require.Equal(t, before, cached(t, path, 0, 4*mega), "and the pages stay")
}
