package supervise_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/supervise"
)

var errBroken = errors.New("broken")

func untilDone(ctx context.Context) error { <-ctx.Done(); return nil }

func group(t *testing.T) (*supervise.Group, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	return supervise.New(ctx, slog.New(slog.DiscardHandler)), cancel
}

func TestTheFailureOfAMustTaskEndsTheGroupWithItsName(t *testing.T) {
	g, _ := group(t)
	g.Keep("other", untilDone)
	g.Must("nvml", func(context.Context) error { return errBroken })
	err := g.Wait()
	require.ErrorIs(t, err, errBroken)
	require.EqualError(t, err, "nvml: broken")
	require.False(t, g.Status()["nvml"].Up)
}

func TestAMustTaskThatReturnsEarlyHasFailed(t *testing.T) {
	g, _ := group(t)
	g.Must("nvml", func(context.Context) error { return nil })
	require.EqualError(t, g.Wait(), "nvml: stopped before it was asked to")
}

func TestAKeepTaskIsStartedAgainWithBackoffAndLeavesTheOthersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cancel := group(t)
		var starts []time.Duration
		began := time.Now()
		g.Must("plugin", untilDone)
		g.Keep("cache", func(ctx context.Context) error {
			starts = append(starts, time.Since(began))
			if len(starts) < 4 {
				return errBroken
			}
			return untilDone(ctx)
		})
		synctest.Wait()
		require.Equal(t, supervise.Task{Error: "broken"}, g.Status()["cache"])
		require.True(t, g.Status()["plugin"].Up)

		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}, starts)
		require.True(t, g.Status()["cache"].Up)

		cancel()
		require.NoError(t, g.Wait())
	})
}

func TestATaskThatWasWellForLongStartsFromTheShortestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cancel := group(t)
		runs := 0
		g.Keep("http", func(ctx context.Context) error {
			if runs++; runs <= 3 {
				return errBroken
			}
			if runs == 4 {
				time.Sleep(10 * time.Minute)
				return errBroken
			}
			return untilDone(ctx)
		})
		time.Sleep(7*time.Second + 10*time.Minute + time.Second)
		synctest.Wait()
		require.Equal(t, 5, runs)
		cancel()
		require.NoError(t, g.Wait())
	})
}

func TestATaskIsStoppedAloneAndAnotherTakesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cancel := group(t)
		g.Must("plugin", untilDone)
		ended := false
		g.Must("nvml", func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(time.Second)
			ended = true
			return nil
		})
		g.Keep("cache", func(context.Context) error { return errBroken })
		synctest.Wait()
		g.Stop("nvml", "cache", "nobody")
		require.True(t, ended, "it has been waited for")
		require.Equal(t, map[string]supervise.Task{"plugin": {Up: true}}, g.Status())

		runs := 0
		g.Keep("cache", func(ctx context.Context) error { runs++; return untilDone(ctx) })
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, 1, runs)
		require.Equal(t, map[string]supervise.Task{"plugin": {Up: true}, "cache": {Up: true}}, g.Status())
		select {
		case <-g.Done():
			require.Fail(t, "the group has ended")
		default:
		}
		cancel()
		<-g.Done()
		require.NoError(t, g.Wait())
	})
}
