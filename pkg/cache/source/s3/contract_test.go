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
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t *testing.T, s string) model.Ref {
	ref, err := model.ParseRef(s)
	require.NoError(t, err)
	return ref
}

// credentialsFile is one that the fake store accepts; no test may look at the machine's own.
func credentialsFile(t *testing.T) string {
	file := filepath.Join(t.TempDir(), "credentials")
	require.NoError(t, os.WriteFile(file, []byte("[default]\naws_access_key_id = AKIDTEST\naws_secret_access_key = sEcReT\n"), 0o600))
	return file
}

func newSource(t *testing.T, endpoint string) *s3.Source {
	s, err := s3.New(s3.Config{Endpoint: endpoint, Region: "us-east-1", PathStyle: true, CredentialsFile: credentialsFile(t)})
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
	endpoint, put := store(t)
	sourcetest.Contract(t, sourcetest.Origin{
		Source: newSource(t, endpoint),
		Put: func(t *testing.T, name string, files map[string][]byte) model.Ref {
			put(name+"/", nil, nil)              // a directory marker
			put(name+"-other/x", []byte{1}, nil) // not under it
			for p, b := range files {
				put(name+"/"+p, b, nil)
			}
			return parse(t, "s3://models/"+name)
		},
		Change:  func(_ *testing.T, name, path string, b []byte) { put(name+"/"+path, b, nil) },
		Missing: parse(t, "s3://models/missing/llama"),
	})
}

func TestContractWithSums(t *testing.T) {
	endpoint, put := store(t)
	all := map[string]map[string][]byte{}
	sums := func(name string) { put(name+"/"+model.SumsName, sourcetest.Sums(all[name]), nil) }
	sourcetest.Contract(t, sourcetest.Origin{
		Source: newSource(t, endpoint),
		Put: func(t *testing.T, name string, files map[string][]byte) model.Ref {
			all[name] = files
			for p, b := range files {
				put(name+"/"+p, b, nil)
			}
			sums(name)
			return parse(t, "s3://models/"+name+"/")
		},
		Change: func(_ *testing.T, name, path string, b []byte) {
			all[name][path] = b
			put(name+"/"+path, b, nil)
			sums(name)
		},
		Missing: parse(t, "s3://nowhere/llama/"),
		Digests: true,
	})
}
