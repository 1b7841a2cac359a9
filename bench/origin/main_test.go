package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBadFlagsAreSaid(t *testing.T) {
	t.Parallel()
	require.EqualError(t, run(t.Context(), []string{"-dir", "/nowhere"}), "-dir /nowhere: want a directory")
	require.ErrorContains(t, run(t.Context(), []string{"-dir", t.TempDir(), "-listen", "127.0.0.1:x"}), "unknown port")
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// The listener may refuse a context that is done, or the server close at once: no hang either way.
	_ = run(ctx, []string{"-dir", t.TempDir()})
}

func TestAnswersComeLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start, w := time.Now(), httptest.NewRecorder()
		late(3*time.Second, http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		require.Equal(t, 3*time.Second, time.Since(start))
		require.Equal(t, http.StatusNotFound, w.Code)
	})
}

func TestConnectionsArePaced(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("needs SO_MAX_PACING_RATE")
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return pace(c, 4<<20) }}
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte{1}, 4<<20))
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	start := time.Now()
	resp, err := http.Get("http://" + l.Addr().String())
	require.NoError(t, err)
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.EqualValues(t, 4<<20, n)
	require.Greater(t, time.Since(start), 300*time.Millisecond, "4 MiB at 4 MiB a second, less what the buffers hold")
}
