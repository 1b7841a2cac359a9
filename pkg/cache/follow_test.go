package cache

import (
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// TestStreamsWaitForTheHash has the disk stand still when the first range is read back: what is fetched and
// not hashed is memory of the node.
func TestStreamsWaitForTheHash(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		const step = 64 << 10
		files := map[string][]byte{"w": noise(1, 40*step)}
		o.put("a", "r1", files)
		going := make(chan struct{})
		cfg := config(root)
		cfg.RangeSize, cfg.Streams = step, 1
		cfg.disk.Fault = func(op, _ string) error {
			if op == "read" {
				<-going
			}
			return nil
		}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		synctest.Wait()
		require.Equal(t, int64(hashLag*step), c.models["a"].job.got.Load())
		require.Equal(t, int64(hashLag*step), o.bytesAsked())
		close(going)
		ready(t, c, "a")
		holds(t, root, "a", files)
		require.Equal(t, int64(len(files["w"])), o.bytesAsked())
		stop()
		tidy(t, root, files)
	})
}

// TestAWriteThatFailsLosesTheFile has the kernel tell so once, and to nobody after.
func TestAWriteThatFailsLosesTheFile(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		const step = 64 << 10
		files := map[string][]byte{"w": noise(1, 10*step)}
		o.put("a", "r1", files)
		var synced atomic.Int32
		cfg := config(root)
		cfg.RangeSize = step
		cfg.disk.Fault = func(op, path string) error {
			if op == "sync" && filepath.Base(path) == "00000" && synced.Add(1) == 2 {
				return syscall.EIO
			}
			return nil
		}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		failed(t, c, "a", "DiskFailed")
		ready(t, c, "a")
		require.GreaterOrEqual(t, o.bytesAsked(), int64((10+saveEvery)*step), "all of it came again")
		holds(t, root, "a", files)
		stop()
		tidy(t, root, files)
	})
}

// TestADiskThatIsSlowSlowsDownTheStreams has it never make anything durable: what a kill costs is bounded then, too.
func TestADiskThatIsSlowSlowsDownTheStreams(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		const step, streams = 4 << 20, 24
		files := map[string][]byte{"w": noise(1, streams*step)}
		o.put("a", "r1", files)
		going := make(chan struct{})
		cfg := config(root)
		cfg.RangeSize, cfg.Streams, cfg.Limit = step, streams, 0
		cfg.disk.Fault = func(op, path string) error {
			if op == "sync" && filepath.Base(path) == "00000" {
				<-going
			}
			return nil
		}
		c := open(t, cfg, o)
		c.streams.lane("mem://a").limit = streams // as with an origin that is far away
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		synctest.Wait()
		require.LessOrEqual(t, c.models["a"].job.got.Load(), int64(2*saveMost*step+streams*bufferSize))
		close(going)
		ready(t, c, "a")
		holds(t, root, "a", files)
		stop()
		tidy(t, root, files)
	})
}
