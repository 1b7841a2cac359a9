package gs_test

import (
	"bytes"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/gs"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
)

// TestContractOnFakeGCSServer runs against somebody else's idea of Cloud Storage, where there is one.
func TestContractOnFakeGCSServer(t *testing.T) {
	bin, err := exec.LookPath("fake-gcs-server")
	if err != nil {
		t.Skip("no fake-gcs-server on PATH: test/fakegcs/build.sh builds it, and prints the folder")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	cmd := exec.Command(bin, "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-public-host", addr, "-backend", "memory")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, 20*time.Second, 20*time.Millisecond)

	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	post := func(t *testing.T, path, mediaType string, body []byte) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+path, bytes.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", mediaType)
		resp, err := transport.RoundTrip(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode, path)
	}
	post(t, "/storage/v1/b?project=p", "application/json", []byte(`{"name":"models"}`))
	put := func(t *testing.T, name string, b []byte) {
		post(t, "/upload/storage/v1/b/models/o?uploadType=media&name="+url.QueryEscape(name), "application/octet-stream", b)
	}
	s := newSource(t, gs.Config{Endpoint: "http://" + addr, Anonymous: true})
	sourcetest.Contract(t, sourcetest.Store{Source: s, Root: "gs://models/", Put: put,
		Dir: func(t *testing.T, key string) { put(t, key+"/", nil) },
	}.Origin(t, "gs://models/missing/llama", false))
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "gs://models/contract"))
	require.NoError(t, err)
	for _, f := range m.Files {
		require.Contains(t, string(f.Check), "crc32c:", f.Path)
	}
}
