package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// line is an origin on fake time: so many bytes a second to each connection, so many in all, the first
// after a delay. It counts how many connections there are.
type line struct {
	each, all int
	delay     time.Duration

	mu         sync.Mutex
	open, most int
	sum        int // of open, over ticks
	ticks      int
}

const lineTick = 10 * time.Millisecond

// flow is a body on a line.
type flow struct {
	line *line
	ctx  context.Context
	data []byte
}

func (l *line) body(ctx context.Context, data []byte) (io.ReadCloser, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(l.delay):
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
	l.most = max(l.most, l.open)
	return &flow{l, ctx, data}, nil
}

func (f *flow) Read(p []byte) (int, error) {
	if len(f.data) == 0 {
		return 0, io.EOF
	}
	select {
	case <-f.ctx.Done():
		return 0, f.ctx.Err()
	case <-time.After(lineTick):
	}
	f.line.mu.Lock()
	defer f.line.mu.Unlock()
	rate := min(f.line.each, f.line.all/max(1, f.line.open))
	f.line.sum += f.line.open
	f.line.ticks++
	n := copy(p, f.data[:min(len(f.data), rate/100)])
	f.data = f.data[n:]
	return n, nil
}

func (f *flow) Close() error {
	f.line.mu.Lock()
	defer f.line.mu.Unlock()
	if f.ctx != nil {
		f.line.open--
		f.data, f.ctx = nil, context.Background()
	}
	return nil
}

func TestStreamsGrowWhileThatBringsMore(t *testing.T) {
	for _, tc := range []struct {
		name        string
		line        *line
		least, most int           // streams at the end of the climb
		within      time.Duration // for 64 MiB
	}{
		{"each connection is paced", &line{each: 1 << 20, all: 1 << 30}, 32, 32, 4 * time.Second},
		{"paced and far away", &line{each: 1 << 20, all: 1 << 30, delay: 200 * time.Millisecond}, 32, 32, 8 * time.Second},
		{"a few are enough", &line{each: 8 << 20, all: 24 << 20}, 8, 16, 4 * time.Second},
		{"one is enough", &line{each: 16 << 20, all: 16 << 20}, 8, 16, 5 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				l := tc.line
				o.put("a", "r1", map[string][]byte{"w": noise(1, 32<<20), "v": noise(2, 32<<20)})
				o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
					body, err := l.body(ctx, part)
					return body, err, true
				}
				cfg := config(root)
				cfg.Streams, cfg.RangeSize, cfg.Limit = 32, 256<<10, 128*mega
				c := open(t, cfg, o)
				c.Want([]model.Spec{spec("a", "a")})
				began := time.Now()
				run(t, c)
				ready(t, c, "a")
				took := time.Since(began)
				t.Logf("%s, %d streams at most, %d on average", took, l.most, l.sum/l.ticks)
				require.LessOrEqual(t, took, tc.within)
				require.LessOrEqual(t, l.most, tc.most)
				require.GreaterOrEqual(t, l.most, tc.least)
			})
		})
	}
}

// TestAnOriginIsNotHammered counts what an origin is asked that says 429 for a while.
func TestAnOriginIsNotHammered(t *testing.T) {
	for name, asks := range map[string]time.Duration{"it says for how long": 90 * time.Second, "it does not": 0} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				began := time.Now()
				over := began.Add(2 * time.Minute)
				var mu sync.Mutex
				var refused []time.Time
				throttle := func() error {
					mu.Lock()
					defer mu.Unlock()
					if time.Now().After(over) {
						return nil
					}
					refused = append(refused, time.Now())
					return &model.Error{Reason: "Throttled", Text: "429", RetryAfter: asks}
				}
				for i := range 6 {
					files := map[string][]byte{"w": noise(uint64(i), 20*64<<10)}
					for k := range 20 {
						files[fmt.Sprint(k)] = noise(uint64(100*i+k), 100)
					}
					o.put(fmt.Sprint("m", i), "r1", files)
				}
				o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
					time.Sleep(10 * time.Millisecond)
					err := throttle()
					return nil, err, err != nil
				}
				cfg := config(root)
				cfg.Streams = 16
				c, err := Open(cfg, map[string]Source{"s3": o}) // one endpoint, whatever the bucket
				require.NoError(t, err)
				var specs []model.Spec
				for i := range 6 {
					specs = append(specs, model.Spec{Name: fmt.Sprint("m", i), Source: model.Ref{Scheme: "s3", Host: fmt.Sprint("m", i)}})
				}
				c.Want(specs)
				run(t, c)
				for i := range 6 {
					ready(t, c, fmt.Sprint("m", i))
				}
				t.Log(len(refused), "refused, ready after", time.Since(began))
				if asks > 0 {
					// Those that were on their way, and one when it said it may be asked again.
					require.LessOrEqual(t, len(refused), firstStreams+1)
				} else {
					require.LessOrEqual(t, len(refused), 20)
				}
				for i, at := range refused[1:] {
					gap := at.Sub(refused[i])
					require.True(t, gap < 20*time.Millisecond || gap >= max(asks, 800*time.Millisecond), "asked again after %s", gap)
				}
			})
		})
	}
}

// Models that their origin does not give, tried again and again, do not slow down one that comes.
func TestWhatFailsTakesNoStreamFromWhatComes(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		l, failed := &line{each: 1 << 20, all: 1 << 30}, 0
		o.put("a", "r1", map[string][]byte{"w": noise(1, 48<<20), "v": noise(2, 48<<20)})
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			body, err := l.body(ctx, part)
			return body, err, true
		}
		o.onResolve = func(_ int, ref model.Ref) (error, bool) {
			if ref.Host == "a" {
				return nil, false
			}
			failed++
			o.mu.Unlock()
			time.Sleep(20 * time.Millisecond)
			o.mu.Lock()
			return &model.Error{Reason: "Unavailable", Text: "500 Internal Server Error"}, true
		}
		cfg := config(root)
		cfg.Streams, cfg.RangeSize, cfg.Limit = 32, 256<<10, 128*mega
		c, err := Open(cfg, map[string]Source{"s3": o}) // one endpoint, whatever the bucket
		require.NoError(t, err)
		var specs []model.Spec
		for i := range 31 {
			name := "a"
			if i > 0 {
				name = fmt.Sprint("broken-", i)
			}
			specs = append(specs, model.Spec{Name: name, Source: model.Ref{Scheme: "s3", Host: name}})
		}
		c.Want(specs)
		began := time.Now()
		run(t, c)
		ready(t, c, "a")
		took := time.Since(began)
		o.mu.Lock()
		defer o.mu.Unlock()
		t.Logf("%s, %d streams at most, %d on average, %d look-ups failed", took, l.most, l.sum/l.ticks, failed)
		require.Greater(t, failed, 60, "they are tried again")
		require.GreaterOrEqual(t, l.most, 28)
		require.LessOrEqual(t, took, 8*time.Second, "the 96 MiB take 3 s with all streams, 12 s with a quarter of them")
	})
}

func TestALaneShrinksWhenItsOriginFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, now := newLane(32), time.Now()
		l.limit, l.proven = 16, 16
		l.failed(&model.Error{Reason: "Throttled", RetryAfter: time.Minute}, now, now)
		require.Equal(t, 8, l.limit)
		require.Equal(t, time.Minute, l.shut(now))
		require.False(t, l.open(now.Add(59*time.Second)))
		require.True(t, l.open(now.Add(time.Minute)))
		l.busy = 1
		require.False(t, l.open(now.Add(time.Minute)), "one finds out")
		require.True(t, l.moved(1, now.Add(time.Minute), true))
		require.True(t, l.open(now.Add(time.Minute)))
		// What was asked before that is the same complaint.
		l.failed(&model.Error{Reason: "Throttled"}, now.Add(-time.Second), now.Add(time.Millisecond))
		require.Equal(t, 8, l.limit)
		require.Equal(t, time.Minute, l.shut(now))
		now = now.Add(2 * time.Minute)
		l.failed(&model.Error{Reason: "Unavailable"}, now, now)
		require.Equal(t, 7, l.limit)
		require.Zero(t, l.shut(now))
		l.failed(&model.Error{Reason: "WrongRange"}, now.Add(time.Second), now.Add(time.Second))
		l.failed(errors.New("of the disk"), now.Add(time.Second), now.Add(time.Second))
		require.Equal(t, 7, l.limit)
		// Something else came meanwhile, or just before: it is not the origin that fails.
		now = now.Add(time.Minute)
		l.moved(1, now, false)
		l.failed(&model.Error{Reason: "Stalled"}, now.Add(-30*time.Second), now)
		l.failed(&model.Error{Reason: "Unreachable"}, now.Add(lively/2), now.Add(lively/2))
		require.Equal(t, 7, l.limit)
		l.failed(&model.Error{Reason: "Unreachable"}, now.Add(lively), now.Add(lively))
		require.Equal(t, 6, l.limit)
		for range 20 {
			now = now.Add(time.Minute)
			l.failed(&model.Error{Reason: "Throttled", RetryAfter: 100 * time.Hour}, now, now)
		}
		require.Equal(t, 1, l.limit)
		require.Equal(t, patience, l.shut(now), "no origin has a node wait for days")
	})
}

// TestAComplaintCountsThoughItsStreamWasToEnd has an origin refuse a stream that another model was to have.
func TestAComplaintCountsThoughItsStreamWasToEnd(t *testing.T) {
	const asks = 90 * time.Second
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", map[string][]byte{"a": noise(1, 20*64<<10)})
		o.put("b", "r1", map[string][]byte{"b": noise(2, 64<<10)})
		began := time.Now()
		var yielded sync.Once
		var asked time.Duration // when b was
		o.onOpen = func(_ int, ctx context.Context, f model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			if f.Path == "b" {
				asked = time.Since(began)
				return nil, nil, false
			}
			if time.Since(began) >= asks {
				return nil, nil, false
			}
			<-ctx.Done()
			err := ctx.Err()
			yielded.Do(func() { err = &model.Error{Reason: "Throttled", Text: "429", RetryAfter: asks} })
			return nil, err, true
		}
		cfg := config(root)
		cfg.Streams = 2
		c, err := Open(cfg, map[string]Source{"s3": o})
		require.NoError(t, err)
		of := func(name string) model.Spec {
			return model.Spec{Name: name, Source: model.Ref{Scheme: "s3", Host: name}}
		}
		c.Want([]model.Spec{of("a")})
		run(t, c)
		synctest.Wait() // a has both streams
		c.Want([]model.Spec{of("a"), of("b")})
		ready(t, c, "b")
		require.GreaterOrEqual(t, asked, asks, "the origin asked for that long")
	})
}
