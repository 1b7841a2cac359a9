package watch_test

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/watch"
)

func TestASleepyWatcherSeesTheNewestValue(t *testing.T) {
	var v watch.Value[int]
	got, changed := v.Watch()
	require.Equal(t, 0, got)
	v.Set(1)
	v.Set(2)
	<-changed
	require.Equal(t, 2, v.Get())
}

func TestEveryWatcherIsWokenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v watch.Value[string]
		woken := make(chan string, 10)
		for range 10 {
			_, changed := v.Watch()
			go func() { <-changed; woken <- v.Get() }()
		}
		synctest.Wait()
		require.Empty(t, woken)
		v.Set("new")
		synctest.Wait()
		require.Len(t, woken, 10)
		require.Equal(t, "new", <-woken)
		_, changed := v.Watch()
		select {
		case <-changed:
			t.Fatal("woken without a change")
		default:
		}
	})
}
