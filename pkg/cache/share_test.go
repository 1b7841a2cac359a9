package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// drip is a body that gives so many bytes a tick.
type drip struct {
	ctx  context.Context
	data []byte
	n    int
	tick time.Duration
}

func (d *drip) Read(p []byte) (int, error) {
	select {
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	case <-time.After(d.tick):
	}
	if len(d.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.data[:min(d.n, len(d.data))])
	d.data = d.data[n:]
	return n, nil
}
func (d *drip) Close() error { return nil }

func TestSlowOriginsHoldUpNobodyElse(t *testing.T) {
	for name, rate := range map[string]int{"too slow to be kept": 1, "slow": 8 << 10} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				good := weights(1)
				o.put("good", "r1", good)
				var specs []model.Spec
				for _, slow := range []string{"a-slow", "b-slow", "c-slow"} {
					files := map[string][]byte{}
					for i := range 8 {
						files[fmt.Sprint(i)] = noise(uint64(i)+uint64(slow[0])<<4, 10*64<<10)
					}
					o.put(slow, "r1", files)
					specs = append(specs, spec(slow, slow))
				}
				o.onOpen = func(_ int, ctx context.Context, f model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
					if _, ok := good[f.Path]; ok {
						return nil, nil, false
					}
					return &drip{ctx, part, rate, 3 * time.Second}, nil, true
				}
				c := open(t, config(root), o)
				c.Want(specs)
				run(t, c)
				time.Sleep(10 * time.Second)
				began := time.Now()
				require.NoError(t, ask(t, c, spec("good", "good")))
				ready(t, c, "good")
				require.Less(t, time.Since(began), 2*time.Second)
				require.NotEqual(t, model.Ready, c.Get().Model("a-slow").State)
				if rate == 1 {
					failed(t, c, "a-slow", "Stalled")
					return
				}
				ready(t, c, "a-slow")
				holds(t, root, "a-slow", o.content["a-slow"])
			})
		})
	}
}

// occupy takes n streams of s for a model and gives each back when another is to have it, then asks again.
func occupy(ctx context.Context, s *streams, of *job, n int, firm bool) {
	for range n {
		go func() {
			for ctx.Err() == nil {
				turns, turn, err := s.take(ctx, of, firm)
				if errors.Is(err, errYield) {
					continue
				}
				if err != nil {
					return
				}
				<-turns.Done()
				s.give(turn)
				if !errors.Is(context.Cause(turns), errYield) {
					return
				}
			}
		}()
	}
}

func TestStreamsAreSharedEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreams(6)
		l := &lane{limit: 6, cap: 6, proven: 6}
		a, b, c := &job{lane: l}, &job{lane: l}, &job{lane: l}
		hold := func(of *job, n int, firm bool) { occupy(t.Context(), s, of, n, firm) }
		held := func() []int {
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			return []int{len(s.held[a]), len(s.held[b]), len(s.held[c])}
		}
		hold(a, 9, false)
		require.Equal(t, []int{6, 0, 0}, held(), "alone it has all")
		hold(b, 9, false)
		require.Equal(t, []int{3, 3, 0}, held())
		hold(c, 1, true)
		require.ElementsMatch(t, []int{3, 2}, held()[:2], "no more than it asks for")
		require.Equal(t, 1, held()[2])

		// A lane of two of many streams is shared in the same way, and others do not wait for it.
		s = newStreams(16)
		narrow := &lane{limit: 2, cap: 2, proven: 2}
		a, b, c = &job{lane: narrow}, &job{lane: narrow}, &job{lane: newLane(16)}
		hold(a, 4, false)
		require.Equal(t, []int{2, 0, 0}, held())
		hold(b, 4, false)
		require.Equal(t, []int{1, 1, 0}, held())
		hold(c, 5, false)
		require.Equal(t, []int{1, 1, 5}, held())

		// Firm ones stay.
		s = newStreams(4)
		l = &lane{limit: 4, cap: 4, proven: 4}
		a, b, c = &job{lane: l}, &job{lane: l}, &job{lane: l}
		hold(a, 4, true)
		require.Equal(t, []int{4, 0, 0}, held())
		hold(b, 2, false)
		require.Equal(t, []int{4, 0, 0}, held())
		ctx, stop := context.WithCancel(t.Context())
		stop()
		_, _, err := s.take(ctx, c, false)
		require.ErrorIs(t, err, context.Canceled)
		s.mu.Lock()
		require.Len(t, s.waiting, 2)
		s.mu.Unlock()
	})
}

func TestUrgentModelsHaveTheStreamsButForOneOfEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreams(8)
		l := &lane{limit: 8, cap: 8, proven: 8}
		a, b, c := &job{lane: l}, &job{lane: l}, &job{lane: l}
		held := func() []int {
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			return []int{len(s.held[a]), len(s.held[b]), len(s.held[c])}
		}
		occupy(t.Context(), s, a, 9, false)
		require.Equal(t, []int{8, 0, 0}, held())
		s.prefer(b, rank{priority: 1})
		occupy(t.Context(), s, b, 9, false)
		require.Equal(t, []int{1, 7, 0}, held(), "a higher priority")
		occupy(t.Context(), s, c, 3, false)
		require.Equal(t, []int{1, 6, 1}, held(), "whoever has none gets one")
		s.prefer(c, rank{called: true})
		require.Equal(t, []int{1, 4, 3}, held(), "a pod waits for it: all that it can use")
		s.prefer(c, rank{})
		require.Equal(t, []int{1, 6, 1}, held())
		s.prefer(b, rank{})
		all := held()
		require.Equal(t, 8, all[0]+all[1]+all[2])
		require.ElementsMatch(t, []int{3, 3, 2}, all, "equals share")
	})
}

// A turn may be asked back between the dealing and the receiving. That is no failure of the origin's, which
// would count as a try and have the range wait.
func TestATurnThatIsAskedBackAtOnceIsAYield(t *testing.T) {
	s, a := newStreams(1), &job{lane: newLane(1)}
	ctx, end := context.WithCancelCause(t.Context())
	end(errYield)
	for range 100 { // either may be seen first
		_, turn, err := s.take(ctx, a, false)
		if err == nil {
			s.give(turn)
			continue
		}
		require.ErrorIs(t, err, errYield)
	}
	require.Equal(t, 1, s.free)
}

func TestADiskThatHangsHoldsUpNoOther(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		var specs []model.Spec
		for i := range runtime.GOMAXPROCS(0) { // each has more files in progress than a core hashes at once
			name, files := fmt.Sprint("sick", i), map[string][]byte{}
			for j := range openFiles {
				files[fmt.Sprint(j)] = noise(uint64(i*openFiles+j), 65<<10)
			}
			o.put(name, "r1", files)
			specs = append(specs, spec(name, name))
		}
		o.put("sound", "r1", weights(1))
		sick, sound := config(filepath.Join(root, "sick")), config(filepath.Join(root, "sound"))
		sick.Line = NewLine(4, Bandwidth{})
		sound.Line = sick.Line
		answers := make(chan struct{})
		sick.disk.Fault = func(op, _ string) error {
			if op == "read" {
				<-answers
			}
			return nil
		}
		a, b := open(t, sick, o), open(t, sound, o)
		a.Want(specs)
		run(t, a)
		synctest.Wait()
		b.Want([]model.Spec{spec("sound", "sound")})
		run(t, b)
		ready(t, b, "sound")
		require.Equal(t, model.Pulling, a.Get().Model("sick0").State)
		close(answers)
		ready(t, a, "sick0")
	})
}
