package cache

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestAFetchKeepsToItsBandwidth(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{"w": noise(1, 10*mega)}
		o.put("a", "r1", files)
		cfg := config(root)
		cfg.Bandwidth = Bandwidth{Limit: mega}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		began := time.Now()
		run(t, c)
		ready(t, c, "a")
		// What the limiter's burst lets through at once is half a MiB.
		require.InDelta(t, 9.5, time.Since(began).Seconds(), 0.7)
		holds(t, root, "a", files)
	})
}

func TestAWindowPausesAFetch(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{"w": noise(1, 10*mega), "s": noise(2, 100)}
		o.put("a", "r1", files)
		at := func(d time.Duration) time.Duration { // of the day, from now on
			now := time.Now().Add(d)
			return time.Duration(now.Hour())*time.Hour + time.Duration(now.Minute())*time.Minute
		}
		cfg := config(root)
		cfg.Bandwidth = Bandwidth{Limit: mega / 16, Windows: []Window{{From: at(time.Minute), To: at(8 * time.Hour), Paused: true}}}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		began := time.Now()
		run(t, c)
		time.Sleep(2 * time.Minute)
		s := c.Get().Model("a")
		require.Equal(t, "Paused", s.Reason)
		require.Equal(t, "paused until "+began.Add(8*time.Hour).Format("15:04")+" by cache.bandwidth", s.Message)
		done, asked := s.Done, len(o.asked)
		require.InDelta(t, 60*mega/16, done, mega)
		time.Sleep(7 * time.Hour)
		require.Equal(t, done, c.Get().Model("a").Done)
		require.Len(t, o.asked, asked, "nothing is asked of the origin")
		ready(t, c, "a")
		require.Greater(t, time.Since(began), 8*time.Hour)
		require.Less(t, time.Since(began), 8*time.Hour+4*time.Minute)
		holds(t, root, "a", files)
	})
}

// What is there stays as it is while its update waits, and says what for.
func TestAnUpdateThatWaitsSaysWhatFor(t *testing.T) {
	for _, tc := range []struct {
		reason, message string
		cfg             Bandwidth
		err             error
	}{
		{"Paused", "paused until ", Bandwidth{Windows: []Window{{From: 0, To: 30 * time.Minute, Paused: true}}}, nil},
		{"Throttled", "the origin asked to be left alone until ", Bandwidth{}, &model.Error{Reason: "Throttled", RetryAfter: 30 * time.Minute, Text: "429"}},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				o.put("a", "r1", map[string][]byte{"w": noise(1, mega)})
				c := open(t, config(root), o)
				c.Want([]model.Spec{spec("a", "a")})
				stop := run(t, c)
				ready(t, c, "a")
				stop()
				files := map[string][]byte{"w": noise(2, mega)}
				o.forget()
				o.put("a", "r2", files)
				o.onOpen = func(n int, _ context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
					return nil, tc.err, tc.err != nil && n == 1
				}
				cfg := config(root)
				cfg.Bandwidth = tc.cfg
				c = open(t, cfg, o)
				c.Want([]model.Spec{spec("a", "a")})
				run(t, c)
				require.NoError(t, ask(t, c, spec("a", "a")))
				time.Sleep(time.Minute)
				s := c.Get().Model("a")
				require.Equal(t, model.Ready, s.State)
				require.Equal(t, "r1", s.Revision)
				require.Empty(t, s.Reason, "nothing failed")
				require.Equal(t, "r2", s.Update.Revision)
				require.Equal(t, tc.reason, s.Update.Reason)
				require.Contains(t, s.Update.Message, tc.message)
				wait(t, c, "a", func(s *model.Status) bool { return s.Revision == "r2" && s.Update == nil })
				holds(t, root, "a", files)
			})
		})
	}
}

func TestWindowsSpanMidnight(t *testing.T) {
	b := Bandwidth{Limit: 5, Windows: []Window{
		{From: 22 * time.Hour, To: 6 * time.Hour},
		{From: 12 * time.Hour, To: 13*time.Hour + 30*time.Minute, Paused: true},
		{From: 12 * time.Hour, To: 14 * time.Hour, Limit: 7},
	}}
	for clock, want := range map[string]struct {
		limit  int64
		paused string
	}{"21:59": {5, ""}, "22:00": {0, ""}, "05:59": {0, ""}, "06:00": {5, ""}, "12:00": {0, "13:30"}, "13:29": {0, "13:30"}, "13:30": {7, ""}, "14:00": {5, ""}} {
		now, err := time.Parse("15:04", clock)
		require.NoError(t, err)
		limit, _ := b.at(now)
		require.Equal(t, want.limit, limit, clock)
		require.Equal(t, want.paused, b.paused(now), clock)
	}
}
