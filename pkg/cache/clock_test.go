package cache

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// years is how far the clock is ahead, and what is done then is done "in 2004". A new bubble begins in 2000 again.
const years = 4 * 365 * 24 * time.Hour

func TestTimesToComeCountAsNow(t *testing.T) {
	root, o, uses := dir(t), newOrigin(), &said{}
	cfg := config(root)
	cfg.opens = func() (opens, error) { return uses, nil }
	cfg.Limit = 5 * mega
	cfg.Refresh = time.Hour
	cfg.Scrub = Scrub{Every: 24 * time.Hour, Rate: 1 << 40}
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(years)
		o.put("a", "r1", one(1))
		o.put("b", "r1", one(2))
		c := open(t, cfg, o)
		stop := run(t, c)
		pull(t, c, "b")
		pull(t, c, "a")
		c.InUse([]model.Use{{Model: "a", Revision: "r1", By: "default/p"}, {Model: "a", Revision: "r2", By: "default/p"}})
		moves(t, c, o, "a", "r2", one(3))
		moves(t, c, o, "a", "r3", one(4))
		uses.say("a@r1", "a@r2", "a", "b")
		time.Sleep(2 * usesEvery)
		synctest.Wait()
		o.put("w", "r1", map[string][]byte{"big": noise(5, 300_000)})
		o.onOpen = func(_ int, _ context.Context, f model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return io.NopCloser(bytes.NewReader(make([]byte, len(part)))), nil, f.Path == "big"
		}
		require.NoError(t, ask(t, c, spec("w", "w")))
		failed(t, c, "w", "WrongDigest")
		time.Sleep(25 * time.Hour) // a scrub's pass
		synctest.Wait()
		require.False(t, c.Get().Scrub.Ended.IsZero())
		uses.say("a@r1", "a@r2", "a", "b")
		time.Sleep(2 * usesEvery)
		stop()
	})
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := open(t, cfg, o)
		check := func() {
			t.Helper()
			now := time.Now()
			require.False(t, c.Get().Scrub.Ended.After(now), "scrub")
			for _, m := range c.Get().Models {
				require.False(t, m.LastUse.After(now), "last use of %s", m.Name)
				require.False(t, m.NextLook.After(now.Add(2*time.Hour)), "next look of %s", m.Name)
				for _, r := range m.Old {
					require.False(t, r.Retired.After(now) || r.LastUse.After(now), "%s@%s", m.Name, r.Revision)
				}
			}
		}
		check()
		stop := run(t, c)
		time.Sleep(2 * time.Minute)
		// One pod began after all that, and one when the clock was ahead: what that has open is not known.
		c.InUse([]model.Use{{Model: "a", Since: began.Add(time.Minute), By: "default/new"}, {Model: "a", Since: began.Add(years), By: "default/old"}})
		synctest.Wait()
		require.Equal(t, []string{"r2", "r1"}, olds(c.Get().Model("a")), "in their order")
		require.Equal(t, "in use by default/old", c.Get().Model("a").Old[0].InUse)
		c.InUse([]model.Use{{Model: "a", Since: began.Add(time.Minute), By: "default/new"}})
		require.Equal(t, "opened at 2000-01-01T00:00:00Z", c.Get().Model("a").Old[0].InUse, "and not by the new one")
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		check()
		require.Greater(t, o.looks(), 10, "the schedule goes on")
		stop()

		c = open(t, cfg, o) // the times are not now again
		c.InUse(nil)
		stop = run(t, c)
		time.Sleep(openedFor - 12*time.Hour + time.Hour)
		synctest.Wait()
		check()
		require.Empty(t, olds(c.Get().Model("a")))
		require.Greater(t, c.Get().Scrub.Ended, began, "the scrub goes on")
		require.Greater(t, o.wholes("big"), 2, "and what was wrong is tried again")

		// b is used after a's time to come: a goes first.
		o.forget()
		uses.say("b")
		time.Sleep(2 * usesEvery)
		synctest.Wait()
		o.put("c", "r1", map[string][]byte{"f": noise(9, 7*mega/2)})
		pull(t, c, "c")
		require.Nil(t, c.Get().Model("a"))
		require.NotNil(t, c.Get().Model("b"))
		stop()
	})
}

// TestAClockThatIsSetRightWhileTheAgentRuns cannot set the clock: it has things happen later than now.
func TestAClockThatIsSetRightWhileTheAgentRuns(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		cfg := config(root)
		cfg.Refresh, cfg.Keep = time.Hour, 1
		o.put("a", "r1", one(1))
		c := open(t, cfg, o)
		run(t, c)
		pull(t, c, "a")
		moves(t, c, o, "a", "r2", one(2))
		later := time.Now().Add(years)
		c.mu.Lock()
		e := c.models["a"]
		e.memory.LastUse, e.memory.Looked, e.used = later, later, later
		e.memory.Uses, e.usedOld = map[string]time.Time{"r1": later}, map[string]time.Time{"r1": later}
		r := *e.old[0]
		r.Retired = later
		e.old = []*record{&r}
		e.look = later
		c.mu.Unlock()
		o.forget()
		time.Sleep(2 * diskEvery)
		synctest.Wait()
		require.False(t, c.Get().Model("a").LastUse.After(time.Now()))
		require.False(t, c.Get().Model("a").Old[0].Retired.After(time.Now()))
		require.False(t, c.Get().Model("a").Old[0].LastUse.After(time.Now()))
		time.Sleep(openedFor + 3*time.Hour) // what is published is of the last look, give or take
		synctest.Wait()
		require.Greater(t, o.looks(), 10)
		require.Empty(t, c.Get().Model("a").Old[0].InUse, "a day later it is not in use")
	})
}
