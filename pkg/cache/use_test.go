package cache

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestUsesAreNotedAndKept(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b")
		cfg, uses := config(root), &said{}
		cfg.opens = func() (opens, error) { return uses, nil }
		c := open(t, cfg, o)
		stop := run(t, c)
		pull(t, c, "a", "b")
		time.Sleep(2 * usesEvery)
		require.ElementsMatch(t, []string{"a", "b"}, uses.watched())
		published := c.Get().Model("a").LastUse
		kept := func() time.Time {
			var m memory
			require.NoError(t, readJSON(c.at.state("a"), &m))
			return m.LastUse
		}

		uses.say("a", "gone")
		time.Sleep(usesEvery)
		synctest.Wait()
		c.mu.Lock()
		used := c.models["a"].lastUse()
		c.mu.Unlock()
		require.Less(t, time.Since(used), 2*usesEvery)
		require.True(t, kept().Equal(published), "not written for each use")
		require.Len(t, uses.watched(), 2, "one look a minute is enough")
		time.Sleep(rearmAfter + usesEvery)
		require.Len(t, uses.watched(), 3)

		time.Sleep(noteEvery)
		uses.say("a")
		time.Sleep(usesEvery)
		synctest.Wait()
		require.Greater(t, kept().Sub(published), noteEvery)
		require.True(t, kept().Equal(c.Get().Model("a").LastUse))

		// Reading for Verify is no use, and the end of Run keeps what is not an hour old.
		time.Sleep(rearmAfter + usesEvery)
		before := kept()
		_, err := c.Verify(t.Context(), "a")
		require.NoError(t, err)
		uses.say("a")
		time.Sleep(usesEvery)
		synctest.Wait()
		require.True(t, before.Equal(c.Get().Model("a").LastUse))
		uses.say("a")
		time.Sleep(usesEvery)
		stop()
		require.Greater(t, kept().Sub(before), time.Minute)
		require.Equal(t, model.Ready, c.Get().Model("a").State)
	})
}
