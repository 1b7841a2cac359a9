package cache

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// unpinned takes from what host has all that says what its content is.
func (o *origin) unpinned(host string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	files := o.models[host].Files
	for i := range files {
		files[i].Digest, files[i].Version = "", ""
	}
}

// TestAFileThatNothingPinsComesInOnePiece has it replaced at its origin while it is read, twice: when a stream breaks, and
// while the agent is down. Neither its size nor anything else tells.
func TestAFileThatNothingPinsComesInOnePiece(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		const size = 40 * 64 << 10
		old := noise(1, size)
		now := map[string][]byte{"w": old}
		replace := func(seed uint64) {
			now = map[string][]byte{"w": noise(seed, size)}
			o.put("a", "r1", now)
			o.unpinned("a")
		}
		replace(1)
		held := make(chan struct{})
		o.onOpen = func(n int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			part = part[:len(part)/2]
			switch n {
			case 1:
				replace(2)
				return io.NopCloser(bytes.NewReader(part)), nil, true // and ends
			case 2:
				close(held)
				return silent{ctx, bytes.NewReader(part)}, nil, true
			}
			return nil, nil, false
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		<-held
		time.Sleep(time.Second)
		stop()
		replace(3)
		c = open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop = run(t, c)
		ready(t, c, "a")
		holds(t, root, "a", now)
		whole := span{"w", 0, size}
		require.Equal(t, []span{whole, whole, whole}, o.asked)
		stop()
		tidy(t, root, now)
	})
}
