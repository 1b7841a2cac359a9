package deviceplugin

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

func TestAResourceThatIsBackWithinItsFarewellStays(t *testing.T) {
	t.Parallel()
	mixed, err := resource.NewPolicy(resource.Config{MIGStrategy: resource.MIGMixed})
	require.NoError(t, err)
	p := New(Config{}, &watch.Value[resource.Policy]{}, &watch.Value[*gpu.Snapshot]{})
	split, whole := gputest.Split(gputest.Node(2), 1), gputest.Node(2)
	now := gputest.Time
	learn := func(policy resource.Policy, s *gpu.Snapshot, after time.Duration) []string {
		now = now.Add(after)
		p.learn(policy, s, now)
		for _, name := range p.known {
			if p.endpoints[name] == nil {
				e := &endpoint{server: grpc.NewServer(), served: make(chan struct{})}
				close(e.served)
				p.endpoints[name] = e
			}
		}
		return slices.Sorted(maps.Keys(p.endpoints))
	}
	all := []string{"nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"}
	require.Equal(t, all, learn(mixed, split, 0))
	require.Equal(t, all, learn(mixed, whole, 0))
	require.Equal(t, farewell, p.wait(time.Hour), "it is looked at again in time")
	require.Equal(t, all, learn(mixed, whole, farewell-1))
	require.Equal(t, all, learn(mixed, split, 0), "back in time")
	require.Equal(t, all, learn(mixed, whole, farewell))
	require.Equal(t, all, learn(mixed, whole, farewell-1), "a farewell begins anew")
	require.Equal(t, all[:1], learn(mixed, whole, 1))
	require.Equal(t, time.Hour, p.wait(time.Hour))

	none := gputest.Node(2)
	none.Devices = nil
	require.Equal(t, all[:1], learn(mixed, none, 2*farewell), "the last one stays, with an empty list")
	require.Equal(t, all[:1], learn(mixed, &gpu.Snapshot{}, 2*farewell), "without a driver nothing leaves")
	other, err := resource.NewPolicy(resource.Config{Exclude: []string{"*"}})
	require.NoError(t, err)
	p.edited = true
	require.Equal(t, all[:1], learn(other, whole, 0))
	require.Empty(t, learn(other, whole, farewell), "but not under a policy that leaves all GPUs out")
}
