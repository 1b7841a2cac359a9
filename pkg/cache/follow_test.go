package cache

import (
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// TestStreamsWaitForTheHash has the disk stand still while the first range is given back: what is fetched and
// not hashed is memory of the node.
func TestStreamsWaitForTheHash(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		const step, streams = 64 << 10, 4
		files := map[string][]byte{"w": noise(1, 40*step)}
		o.put("a", "r1", files)
		going := make(chan struct{})
		cfg := config(root)
		cfg.RangeSize, cfg.Streams = step, streams
		cfg.disk.Fault = func(op, _ string) error {
			if op == "settle" {
				<-going
			}
			return nil
		}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		synctest.Wait()
		require.GreaterOrEqual(t, o.bytesAsked(), int64(hashLag*step))
		require.LessOrEqual(t, o.bytesAsked(), int64((1+hashLag+streams)*step))
		close(going)
		ready(t, c, "a")
		holds(t, root, "a", files)
		require.Equal(t, int64(len(files["w"])), o.bytesAsked())
		stop()
		tidy(t, root, files)
	})
}

// TestAWriteThatFailsBehindTheHashLosesTheFile has the kernel tell so once, and to nobody after.
func TestAWriteThatFailsBehindTheHashLosesTheFile(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		const step = 64 << 10
		files := map[string][]byte{"w": noise(1, 10*step)}
		o.put("a", "r1", files)
		var settled atomic.Int32
		cfg := config(root)
		cfg.RangeSize = step
		cfg.disk.Fault = func(op, _ string) error {
			if op == "settle" && settled.Add(1) == 6 {
				return syscall.EIO
			}
			return nil
		}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		failed(t, c, "a", "DiskFailed")
		ready(t, c, "a")
		require.GreaterOrEqual(t, o.bytesAsked(), int64(16*step), "all of it came again")
		holds(t, root, "a", files)
		stop()
		tidy(t, root, files)
	})
}
