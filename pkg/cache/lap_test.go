package cache

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// TestASlowStreamIsOvertaken has one connection of many crawl: nobody waits for it, and what that costs is
// bounded.
func TestASlowStreamIsOvertaken(t *testing.T) {
	for name, slow := range map[string]func(ctx context.Context, part []byte) io.ReadCloser{
		"slow":   func(ctx context.Context, part []byte) io.ReadCloser { return &drip{ctx, part, 2 << 10, time.Second} },
		"silent": func(ctx context.Context, part []byte) io.ReadCloser { return silent{ctx, bytes.NewReader(part[:5000])} },
		// It lies, and so slowly that the other stream has brought and hashed the truth.
		"slow and wrong": func(ctx context.Context, part []byte) io.ReadCloser {
			return &drip{ctx, bytes.Repeat([]byte("x"), len(part)), 2 << 10, time.Second}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				files := map[string][]byte{"w": noise(1, 40*256<<10)}
				o.put("a", "r1", files)
				var mu sync.Mutex
				slowed := false
				o.onOpen = func(_ int, ctx context.Context, _ model.File, off, _ int64, part []byte) (io.ReadCloser, error, bool) {
					mu.Lock()
					defer mu.Unlock()
					if off == 20*256<<10 && !slowed {
						slowed = true
						return slow(ctx, part), nil, true
					}
					return &drip{ctx, part, 64 << 10, 100 * time.Millisecond}, nil, true
				}
				cfg := config(root)
				cfg.RangeSize = 256 << 10
				c := open(t, cfg, o)
				c.Want([]model.Spec{spec("a", "a")})
				began := time.Now()
				stop := run(t, c)
				ready(t, c, "a")
				require.Less(t, time.Since(began), 12*time.Second, "alone the slow one takes 128 s, or is given up after 30")
				holds(t, root, "a", files)
				inv := c.Get()
				require.LessOrEqual(t, inv.Fetched-inv.Used, int64(hedgeRanges*256<<10))
				require.Equal(t, inv.Used, int64(len(files["w"])), "no byte counts twice")
				require.LessOrEqual(t, o.bytesAsked(), int64(len(files["w"])+hedgeRanges*256<<10))
				stop()
				tidy(t, root, files)
			})
		})
	}
}

// TestSecondStreamsAreBounded has all connections crawl, which no second stream mends.
func TestSecondStreamsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{"w": noise(1, 10*256<<10)}
		o.put("a", "r1", files)
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return &drip{ctx, part, 16 << 10, 6 * time.Second}, nil, true
		}
		cfg := config(root)
		cfg.RangeSize, cfg.Streams = 256<<10, 16
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		ready(t, c, "a")
		holds(t, root, "a", files)
		require.LessOrEqual(t, o.bytesAsked(), int64(len(files["w"])+hedgeRanges*256<<10))
	})
}

// TestWhatCountsIsNotWrittenAgain has the stream that is behind bring other bytes than the one ahead.
func TestWhatCountsIsNotWrittenAgain(t *testing.T) {
	const step = 256 << 10
	root := dir(t)
	j := newJob(durable.Disk{}, root, plan{Step: step, Manifest: model.Manifest{Files: []model.File{{Path: "w", Size: 2 * step}}}})
	s := j.slots[0]
	f := &fetcher{job: j}
	var err error
	s.data, err = f.disk.OpenFile(s.path(), 0o600)
	require.NoError(t, err)
	defer s.data.Close()
	s.start(t.Context())
	defer s.stop()
	l := f.begin(s, 1, time.Now())
	put := func(at int, what byte, n int) {
		t.Helper()
		require.NoError(t, f.put(l, bytes.Repeat([]byte{what}, n), int64(at)))
	}
	put(0, 'a', 1000)
	put(0, 'b', 500)
	put(500, 'b', 700)
	put(1200, 'a', step-1201)
	require.False(t, l.done)
	put(0, 'b', step)
	require.True(t, l.done)
	put(0, 'c', step)
	got := make([]byte, step)
	_, err = s.data.ReadAt(got, step)
	require.NoError(t, err)
	want := bytes.Repeat([]byte("a"), step)
	copy(want[1000:], bytes.Repeat([]byte("b"), 200))
	want[step-1] = 'b'
	require.True(t, bytes.Equal(want, got))
	require.Equal(t, int64(step), j.got.Load())
}
