package main

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// The DaemonSet's probe excludes the driver: a node without one must not hold up a rolling upgrade, and a new
// agent that has not looked for one yet must not take the place of one that has registered its GPUs.
func TestReadinessWithoutADriver(t *testing.T) {
	for name, tc := range map[string]struct {
		driver     gpu.Driver
		registered bool
		exclude    []string
		want       int
	}{
		"no driver":                   {gpu.Driver{Error: "no library"}, false, nil, http.StatusServiceUnavailable},
		"no driver, excluded":         {gpu.Driver{Error: "no library"}, false, []string{"driver"}, http.StatusOK},
		"not asked yet, excluded":     {gpu.Driver{Error: gpu.NotAsked}, false, []string{"driver"}, http.StatusServiceUnavailable},
		"a driver, not registered":    {gpu.Driver{Loaded: true}, false, []string{"driver"}, http.StatusServiceUnavailable},
		"a driver, and registered":    {gpu.Driver{Loaded: true}, true, []string{"driver"}, http.StatusOK},
		"registered, nothing exclude": {gpu.Driver{Loaded: true}, true, nil, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			s := &state{Snapshot: &gpu.Snapshot{Driver: tc.driver}, Plugin: &pluginState{Registered: tc.registered, Error: "why not"}}
			writeReady(w, s, tc.exclude)
			require.Equal(t, tc.want, w.Code, w.Body)
		})
	}
}
