package cache

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// TestWhatIsHashedLeavesThePageCache looks at a download that stands still: what waits in memory is bounded, and not the file.
func TestWhatIsHashedLeavesThePageCache(t *testing.T) {
	bubble(t, func(t *testing.T, _ string, o *origin) {
		const step, here = 1 << 20, 40 << 20
		o.put("a", "r1", map[string][]byte{"w": noise(1, here+step)})
		o.onOpen = func(_ int, ctx context.Context, _ model.File, off, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			return silent{ctx, bytes.NewReader(nil)}, nil, off >= here
		}
		cfg := config(t.TempDir()) // on a disk, where the system has its temporary files on one
		cfg.RangeSize, cfg.Streams, cfg.Limit = step, 1, 0
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		wait(t, c, "a", func(s *model.Status) bool { return s.Done >= here })
		synctest.Wait()
		f, err := durable.Open(c.models["a"].job.slots[0].path())
		require.NoError(t, err)
		defer f.Close()
		waits, err := f.Resident(0, here)
		require.NoError(t, err)
		f.Drop(0, here)
		if left, err := f.Resident(0, here); err == nil && left == here {
			t.Skip("this filesystem has no disk below it: nothing can be dropped")
		}
		require.LessOrEqual(t, waits, int64((saveEvery+hashLag)*step))
	})
}
