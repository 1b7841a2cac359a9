package cache

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// answered returns the status of a model once the given Pull has an outcome.
func answered(t *testing.T, c *Cache, name string, asked int64) *model.Status {
	t.Helper()
	return wait(t, c, name, func(s *model.Status) bool { return s != nil && s.Answered >= asked })
}

func TestAPullIsAnsweredByItsOwnLookAtTheOrigin(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		one, two := weights(1), weights(2)
		o.put("a", "r1", one)
		c := open(t, config(root), o)
		stop := run(t, c)
		first, err := c.Pull(t.Context(), spec("a", "a"))
		require.NoError(t, err)
		s := answered(t, c, "a", first)
		require.Equal(t, model.Ready, s.State)
		require.Nil(t, s.Update)

		// The origin has lost it: what is visible stays, and this Pull has failed.
		looking := make(chan struct{})
		o.mu.Lock()
		delete(o.models, "a")
		o.onResolve = func(int, model.Ref) (error, bool) {
			o.mu.Unlock()
			<-looking
			o.mu.Lock()
			return nil, false
		}
		o.mu.Unlock()
		second, err := c.Pull(t.Context(), spec("a", "a"))
		require.NoError(t, err)
		require.Greater(t, second, first)
		require.Equal(t, first, c.Get().Model("a").Answered)
		require.NotNil(t, c.Get().Model("a").Update)
		close(looking)
		s = answered(t, c, "a", second)
		require.Equal(t, model.Ready, s.State)
		require.Equal(t, "NotFound", s.Reason)
		require.True(t, s.Final)
		holds(t, root, "a", one)

		// A new revision on its way is shown beside the old one.
		o.put("a", "r2", two)
		hold := make(chan struct{})
		o.onOpen = func(n int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			if n < 30 {
				return nil, nil, false
			}
			select {
			case <-hold:
				return nil, nil, false
			case <-ctx.Done():
				return nil, ctx.Err(), true
			}
		}
		third, err := c.Pull(t.Context(), spec("a", "a"))
		require.NoError(t, err)
		s = wait(t, c, "a", func(s *model.Status) bool { return s.Update != nil && s.Update.Done > 0 })
		require.Equal(t, "r1", s.Revision)
		require.Equal(t, s.Size, s.Done)
		require.Equal(t, "r2", s.Update.Revision)
		require.Less(t, s.Answered, third)
		close(hold)
		s = answered(t, c, "a", third)
		require.Equal(t, "r2", s.Revision)
		require.Empty(t, s.Reason)
		require.Nil(t, s.Update)

		// Numbers do not come back after a restart.
		stop()
		time.Sleep(time.Second)
		c = open(t, config(root), o)
		run(t, c)
		require.Zero(t, c.Get().Model("a").Asked)
		fourth, err := c.Pull(t.Context(), spec("a", "a"))
		require.NoError(t, err)
		require.Greater(t, fourth, third)
	})
}

func TestAPullDuringAFailingTryIsTriedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", weights(1))
		looking := make(chan struct{})
		o.onResolve = func(n int, _ model.Ref) (error, bool) {
			if n > 1 {
				return nil, false
			}
			o.mu.Unlock()
			<-looking
			o.mu.Lock()
			return &model.Error{Reason: "NotFound", Text: "not there", Final: true}, true
		}
		c := open(t, config(root), o)
		run(t, c)
		require.NoError(t, ask(t, c, spec("a", "a")))
		time.Sleep(time.Second)
		second, err := c.Pull(t.Context(), spec("a", "a"))
		require.NoError(t, err)
		began := time.Now()
		close(looking)
		require.Empty(t, answered(t, c, "a", second).Reason)
		require.Less(t, time.Since(began), finalRetry)
	})
}

func TestWithoutASourceAModelComesFromWhereItCameBefore(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		one, two := weights(1), weights(2)
		o.put("a", "r1", one)
		c := open(t, config(root), o)
		stop := run(t, c)
		_, err := c.Pull(t.Context(), model.Spec{Name: "a"})
		require.Equal(t, "NotFound", model.ReasonOf(err))
		require.ErrorContains(t, err, "name its SOURCE")
		pull(t, c, "a")
		o.put("a", "r2", two)
		asked, err := c.Pull(t.Context(), model.Spec{Name: "a"})
		require.NoError(t, err)
		require.Equal(t, "r2", answered(t, c, "a", asked).Revision)

		// One of the config's that is not there any more is known by its record.
		o.put("b", "r1", one)
		c.Want([]model.Spec{spec("b", "b")})
		ready(t, c, "b")
		stop()
		c = open(t, config(root), o)
		c.Want(nil)
		run(t, c)
		_, err = c.Pull(t.Context(), model.Spec{Name: "b"})
		require.NoError(t, err)
	})
}

func TestAnOriginsWordsAreNothingToObey(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.onResolve = func(int, model.Ref) (error, bool) { return errors.New("500 \x1b[31mPWNED\u009b\nnext"), true }
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		require.Equal(t, "500 \ufffd[31mPWNED\ufffd next", failed(t, c, "a", "Failed").Message)
	})
}
