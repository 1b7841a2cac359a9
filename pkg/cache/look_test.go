package cache

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// looks notes when the origin of one node is asked.
func looks(o *origin, answer func(n int) error) *[]time.Time {
	times := &[]time.Time{}
	o.onResolve = func(n int, _ model.Ref) (error, bool) {
		*times = append(*times, time.Now())
		err := answer(n)
		return err, err != nil
	}
	return times
}

func TestAMovingReferenceIsLookedUpOnSchedule(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", one(1))
		times := looks(o, func(int) error { return nil })
		refreshed := spec("a", "a")
		refreshed.Refresh = 4 * time.Hour
		c := open(t, config(root), o)
		c.Want([]model.Spec{refreshed})
		stop := run(t, c)
		ready(t, c, "a")
		time.Sleep(100 * time.Hour)
		synctest.Wait()
		require.InDelta(t, 25, len(*times), 7)
		for i, at := range (*times)[1:] {
			require.InDelta(t, 4*time.Hour, at.Sub((*times)[i]), float64(time.Hour+time.Second))
		}
		require.Equal(t, "r1", c.Get().Model("a").Origin)
		next := c.Get().Model("a").NextLook
		require.InDelta(t, 4*time.Hour, next.Sub((*times)[len(*times)-1]), float64(time.Hour+time.Second))

		// A restart is no reason to ask, and after a long time down it is not asked at once.
		last := (*times)[len(*times)-1]
		stop()
		c = open(t, config(root), o)
		c.Want([]model.Spec{refreshed})
		stop = run(t, c)
		synctest.Wait()
		require.Equal(t, last, (*times)[len(*times)-1])
		stop()
		time.Sleep(24 * time.Hour)
		c = open(t, config(root), o)
		c.Want([]model.Spec{refreshed})
		began := time.Now()
		stop = run(t, c)
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		late := (*times)[len(*times)-1].Sub(began)
		require.Positive(t, late)
		require.LessOrEqual(t, late, time.Hour)

		// What it finds takes the place of what is there.
		o.put("a", "r2", one(2))
		time.Sleep(6 * time.Hour)
		synctest.Wait()
		require.Equal(t, "r2", c.Get().Model("a").Revision)
		stop()
		holds(t, root, "a", one(2))
	})
}

func TestWhatCannotMoveIsNotAskedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", one(1))
		o.put("b", "r1", one(2))
		cfg := config(root)
		cfg.Refresh = time.Hour
		fixed, never := spec("a", "a"), spec("b", "b")
		fixed.Source.Digest, fixed.Refresh = digest(one(1)["f"]), time.Hour
		c := open(t, cfg, o)
		c.Want([]model.Spec{fixed, never})
		run(t, c)
		ready(t, c, "a")
		ready(t, c, "b")
		time.Sleep(100 * time.Hour)
		synctest.Wait()
		require.Equal(t, 2, o.resolved)
		require.True(t, c.Get().Model("a").NextLook.IsZero())
		// What was pulled by hand has the cache's schedule.
		o.put("d", "r1", one(3))
		pull(t, c, "d")
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		require.Greater(t, o.resolved, 3)
	})
}

func TestALookThatFailsIsTriedAgainAsTheOriginAsks(t *testing.T) {
	for _, tc := range []struct {
		err  error
		wait time.Duration
	}{
		{&model.Error{Reason: "Throttled", Text: "429", RetryAfter: 40 * time.Minute}, 40 * time.Minute},
		{errors.New("503"), time.Second},
		{&model.Error{Reason: "NotFound", Text: "404", Final: true}, 4 * time.Hour},
	} {
		t.Run(fmt.Sprint(tc.err), func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				o.put("a", "r1", one(1))
				times := looks(o, func(n int) error {
					if n == 2 {
						return tc.err
					}
					return nil
				})
				refreshed := spec("a", "a")
				refreshed.Refresh = 4 * time.Hour
				c := open(t, config(root), o)
				c.Want([]model.Spec{refreshed})
				run(t, c)
				ready(t, c, "a")
				synctest.Wait()
				time.Sleep(time.Until(c.Get().Model("a").NextLook))
				s := failed(t, c, "a", model.ReasonOf(tc.err))
				require.Equal(t, model.Ready, s.State, "what is there stays")
				time.Sleep(5 * time.Hour)
				synctest.Wait()
				require.InEpsilon(t, tc.wait, (*times)[2].Sub((*times)[1]), 0.25)
				require.Empty(t, c.Get().Model("a").Reason)
			})
		})
	}
}

func TestFixedReferences(t *testing.T) {
	commit := "0123456789abcdef0123456789abcdef01234567"
	for ref, fixed := range map[string]bool{
		"hf://org/m":                                   false,
		"hf://org/m@main":                              false,
		"hf://org/m@" + commit:                         true,
		"hf://org/m@" + commit + "?include=x":          true,
		"hf://org/" + commit:                           false,
		"oci://host/m:v1":                              false,
		"oci://host/m@sha256:" + string(digest(nil)):   true,
		"s3://bucket/a@b":                              false,
		"https://host/f":                               false,
		"https://host/f#sha256=" + string(digest(nil)): true,
	} {
		r, err := model.ParseRef(ref)
		require.NoError(t, err)
		require.Equal(t, fixed, r.Fixed(), ref)
	}
}
