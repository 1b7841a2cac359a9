package kube

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheConditionIsServerSideAppliedToTheStatus(t *testing.T) {
	s := newAPIServer(t)
	n, _ := newTestNode(t, s, "n1")
	require.NoError(t, n.SetCondition(t.Context(), "GPUsHealthy", "False", "XID", "GPU 3: fell off the bus"))
	a := s.recorded()[0]
	require.Equal(t, "/api/v1/nodes/n1/status", a.path)
	require.Equal(t, "application/apply-patch+yaml", a.contentType)
	require.Equal(t, "fieldManager=gpu-agent&force=true&timeout=10s", a.query)
	require.Equal(t, map[string]any{"name": "n1", "uid": "uid-1"}, a.body["metadata"])
	c := a.conditions()[0].(map[string]any)
	require.Len(t, a.conditions(), 1)
	require.Equal(t, []any{"GPUsHealthy", "False", "XID", "GPU 3: fell off the bus"}, []any{c["type"], c["status"], c["reason"], c["message"]})
	require.Equal(t, c["lastHeartbeatTime"], c["lastTransitionTime"])
	_, err := time.Parse(time.RFC3339, c["lastHeartbeatTime"].(string))
	require.NoError(t, err)

	require.NoError(t, n.SetCondition(t.Context(), "GPUsHealthy", "", "", ""))
	require.Empty(t, s.recorded()[1].conditions(), "taken off")
}

func TestTheTimeOfTransitionOutlivesTheAgent(t *testing.T) {
	s := newAPIServer(t)
	const then = "2026-01-02T03:04:05Z"
	s.conditions = []map[string]any{
		{"type": "Ready", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
		{"type": "GPUsHealthy", "status": "False", "lastTransitionTime": then},
	}
	n, _ := newTestNode(t, s, "n1")
	require.NoError(t, n.SetCondition(t.Context(), "GPUsHealthy", "False", "Lost", ""))
	require.Equal(t, then, s.recorded()[0].conditions()[0].(map[string]any)["lastTransitionTime"])
	require.NoError(t, n.SetCondition(t.Context(), "GPUsHealthy", "True", "AllHealthy", ""))
	require.NotEqual(t, then, s.recorded()[1].conditions()[0].(map[string]any)["lastTransitionTime"])
}

func TestAnEventIsToldOnce(t *testing.T) {
	s := newAPIServer(t)
	n, _ := newTestNode(t, s, "n1")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for range 2 {
		require.NoError(t, n.Event(t.Context(), "GPU-1 XID 5", "Warning", "GPUUnhealthy", "GPU 1: XID 79", at))
	}
	require.Len(t, s.events, 1)
	require.NoError(t, n.Event(t.Context(), "GPU-1 XID 6", "Warning", "GPUUnhealthy", "GPU 1: XID 79", at))
	require.Len(t, s.events, 2)
	for name, e := range s.events {
		require.Regexp(t, `^n1\.[0-9a-f]{16}$`, name)
		require.Equal(t, "Warning", e["type"])
		require.Equal(t, "GPU 1: XID 79", e["message"])
		require.Equal(t, "2026-01-02T03:04:05Z", e["lastTimestamp"])
		require.Equal(t, map[string]any{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-1"}, e["involvedObject"])
	}
}

func TestAnAPIServerThatRefusesTheHealth(t *testing.T) {
	s := newAPIServer(t)
	n, _ := newTestNode(t, s, "n2")
	require.ErrorContains(t, n.SetCondition(t.Context(), "GPUsHealthy", "True", "", ""), `node "n2" does not exist: NODE_NAME must be`)
	require.ErrorContains(t, n.Event(t.Context(), "", "Normal", "", "", time.Now()), `node "n2" does not exist`)
	n, _ = newTestNode(t, s, "n1")
	s.fail = http.StatusForbidden
	require.ErrorContains(t, n.SetCondition(t.Context(), "GPUsHealthy", "True", "", ""), "is forbidden")
	require.ErrorContains(t, n.Event(t.Context(), "", "Normal", "", "", time.Now()), "is forbidden")
}
