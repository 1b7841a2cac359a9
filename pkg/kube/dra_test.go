package kube

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/watch"
)

func newDRA(n *Node) *DRA {
	owner := &watch.Value[string]{}
	owner.Set(AskingDRA)
	return NewDRA(n, owner)
}

// asked runs d until it has an answer other than that it is asking, and gives it.
func asked(t *testing.T, d *DRA) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	defer func() {
		cancel()
		require.NoError(t, <-done)
	}()
	patience := time.After(20 * time.Second)
	for {
		why, changed := d.owner.Watch()
		if !strings.HasPrefix(why, "asking") {
			return why
		}
		select {
		case <-changed:
		case <-patience:
			require.Fail(t, "no answer")
		}
	}
}

func TestADRADriverOnThisNodeIsFound(t *testing.T) {
	s := newAPIServer(t)
	s.slices = map[string][]string{"v1": {"n1-gpu.nvidia.com-abc"}}
	n, _ := newTestNode(t, s, "n1")
	require.Contains(t, asked(t, newDRA(n)), "DRA driver gpu.nvidia.com offers this node's GPUs (ResourceSlice n1-gpu.nvidia.com-abc): take it off this node, or set allocation to none")
	require.Equal(t, "spec.nodeName=n1,spec.driver=gpu.nvidia.com", s.selector)

	s.reset(func() { s.slices = map[string][]string{"v1beta1": {"older"}} })
	require.Contains(t, asked(t, newDRA(n)), "(ResourceSlice older)")
}

func TestWithoutADRADriverNothingStandsAgainstOffering(t *testing.T) {
	s := newAPIServer(t)
	n, log := newTestNode(t, s, "n1")
	require.Empty(t, asked(t, newDRA(n)), "an API server without DRA")
	s.reset(func() { s.slices = map[string][]string{"v1": {}} })
	require.Empty(t, asked(t, newDRA(n)))
	require.Empty(t, log.String())
}

func TestWhatCannotBeKnownIsSaidOnceAndTheGPUsAreOffered(t *testing.T) {
	s := newAPIServer(t)
	s.fail = http.StatusForbidden
	n, log := newTestNode(t, s, "n1")
	d := newDRA(n)
	require.Empty(t, asked(t, d))
	d.answered("", context.DeadlineExceeded, false)
	require.Equal(t, 1, strings.Count(log.String(), "cannot know whether a DRA driver"))

	d.answered("a driver", nil, false)
	d.answered("", context.DeadlineExceeded, false)
	require.Equal(t, "a driver", d.owner.Get(), "no answer leaves the one before")
	d.answered("", nil, false)
	require.Empty(t, d.owner.Get())
}
