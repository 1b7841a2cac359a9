package kube

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func TestATaintIsTakenOffAndTheOthersStay(t *testing.T) {
	s := newAPIServer(t)
	other := map[string]any{"key": "example.com/other", "effect": "NoSchedule"}
	s.taints = []any{other, map[string]any{"key": "gpu-agent.dev/not-ready", "effect": "NoSchedule"}}
	n, _ := newTestNode(t, s, "n1")
	removed, err := n.Untaint(t.Context(), "gpu-agent.dev/not-ready")
	require.NoError(t, err)
	require.True(t, removed)
	a := s.recorded()[0]
	require.Equal(t, "application/merge-patch+json", a.contentType)
	require.Equal(t, map[string]any{
		"metadata": map[string]any{"resourceVersion": "7", "uid": "uid-1"},
		"spec":     map[string]any{"taints": []any{other}},
	}, a.body)

	s.reset(func() { s.taints = []any{other} })
	removed, err = n.Untaint(t.Context(), "gpu-agent.dev/not-ready")
	require.NoError(t, err)
	require.False(t, removed)
	require.Empty(t, s.recorded(), "nothing to write")
}

func TestATaintThatCannotBeTakenOff(t *testing.T) {
	s := newAPIServer(t)
	s.taints = []any{map[string]any{"key": "k"}}
	n, _ := newTestNode(t, s, "n1")
	s.gone = true
	removed, err := n.Untaint(t.Context(), "k")
	require.True(t, apierrors.IsConflict(err), err)
	require.False(t, removed)
	s.reset(func() { s.fail = http.StatusForbidden })
	_, err = n.Untaint(t.Context(), "k")
	require.ErrorContains(t, err, "read node n1: nodes is forbidden")
}
