package ready_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/ready"
)

func TestAGPUIsHeldBackUntilEveryPartHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var source watch.Value[*gpu.Snapshot]
		source.Set(gputest.Sick(gputest.Node(3), 2, gpu.XID))
		var specs, daemons watch.Value[map[gpu.UUID]string]
		specs.Set(map[gpu.UUID]string{gputest.UUID(1): "no CDI device", gputest.UUID(2): "no CDI device"})
		daemons.Set(map[gpu.UUID]string{gputest.UUID(1): "no MPS daemon"})

		g := ready.New(&source)
		g.Add(func(*gpu.Snapshot) map[gpu.UUID]string { return specs.Get() })
		g.Add(func(*gpu.Snapshot) map[gpu.UUID]string { return daemons.Get() })
		began := time.Now()
		require.Equal(t, gpu.Health{Reason: gpu.NotReady, Text: "no CDI device", Since: began}, g.Get().Devices[1].Health, "before Run")

		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- g.Run(ctx) }()
		synctest.Wait()
		require.True(t, g.Get().Devices[0].Health.OK())
		require.Equal(t, gpu.XID, g.Get().Devices[2].Health.Reason, "what ails the hardware comes first")
		require.True(t, source.Get().Devices[1].Health.OK(), "the snapshot itself is not changed")

		time.Sleep(time.Minute)
		_, changed := g.Watch()
		specs.Set(nil)
		g.Poke()
		<-changed
		require.Equal(t, gpu.Health{Reason: gpu.NotReady, Text: "no MPS daemon", Since: began}, g.Get().Devices[1].Health)

		_, changed = g.Watch()
		daemons.Set(nil)
		g.Poke()
		<-changed
		require.True(t, g.Get().Devices[1].Health.OK())

		_, changed = g.Watch()
		source.Set(gputest.Node(4))
		<-changed
		require.Equal(t, 4, g.Get().HealthyCount())
		stop()
		require.NoError(t, <-ended)
	})
}
