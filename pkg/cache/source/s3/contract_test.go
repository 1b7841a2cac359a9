package s3_test

import (
	"bytes"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/s3"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// credentialsFile is one that the fake store accepts; no test may look at the machine's own.
func credentialsFile(t *testing.T) string {
	file := filepath.Join(t.TempDir(), "credentials")
	require.NoError(t, os.WriteFile(file, []byte("[default]\naws_access_key_id = AKIDTEST\naws_secret_access_key = sEcReT\n"), 0o600))
	return file
}

func newSource(t *testing.T, endpoint string, mirrors ...string) *s3.Source {
	s, err := s3.New(s3.Config{Endpoint: endpoint, Region: "us-east-1", PathStyle: true, CredentialsFile: credentialsFile(t), Mirrors: mirrors})
	require.NoError(t, err)
	t.Cleanup(s.CloseIdle)
	return s
}

// store is an S3 server with one bucket, models.
func store(t *testing.T) (endpoint string, put func(key string, content []byte, meta map[string]string)) {
	backend := s3mem.New()
	require.NoError(t, backend.CreateBucket("models"))
	srv := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(srv.Close)
	return srv.URL, func(key string, content []byte, meta map[string]string) {
		_, err := backend.PutObject("models", key, meta, bytes.NewReader(content), int64(len(content)), nil)
		require.NoError(t, err)
	}
}

func TestContract(t *testing.T) {
	for missing, sums := range map[string]bool{"s3://models/missing/llama": false, "s3://nowhere/llama/": true} {
		endpoint, put := store(t)
		sourcetest.Contract(t, sourcetest.Store{Source: newSource(t, endpoint), Root: "s3://models/",
			Put: func(_ *testing.T, key string, b []byte) { put(key, b, nil) },
			Dir: func(_ *testing.T, key string) { put(key+"/", nil, nil) },
		}.Origin(t, missing, sums))
	}
}

func TestMirrors(t *testing.T) {
	endpoint, put := store(t)
	sourcetest.Mirrors(t, sourcetest.Store{Source: newSource(t, endpoint), Root: "s3://models/",
		Put: func(_ *testing.T, key string, b []byte) { put(key, b, nil) },
	}.Origin(t, "s3://nowhere/llama/", true), "/models", func(mirror string) sourcetest.Source { return newSource(t, endpoint, mirror) })
}
