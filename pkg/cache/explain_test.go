package cache

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestExplainSaysWhatAModelNeedsAndWhoWouldGo(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("old", "new", "kept", "a")
		cfg := config(root)
		cfg.Limit = 5 * mega
		c := open(t, cfg, o)
		pinned := spec("kept", "kept")
		pinned.Pinned = true
		c.Want([]model.Spec{pinned})
		stop := run(t, c)
		defer stop()
		pull(t, c, "old", "new", "kept")
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return silent{ctx, bytes.NewReader(nil)}, nil, true
		}
		require.NoError(t, ask(t, c, spec("a", "a")))
		synctest.Wait()
		x, err := c.Explain("a")
		require.NoError(t, err)
		require.Equal(t, model.Pulling, x.State)
		require.True(t, x.Wished && x.Admitted && !x.Wanted)
		require.Equal(t, []int64{mega, mega, 2 * mega, 5 * mega}, []int64{x.Needed, x.Free, x.Evictable, x.Limit})
		require.Equal(t, []string{"old", "new"}, x.Victims)

		x, err = c.Explain("kept")
		require.NoError(t, err)
		require.True(t, x.Wanted && x.PinnedByConfig && !x.PinnedByCommand && !x.Admitted)
		require.Zero(t, x.Needed)
		_, err = c.Explain("none")
		require.Equal(t, "NotFound", model.ReasonOf(err))
	})
}
