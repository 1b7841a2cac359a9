package oci_test

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/oci"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSource(t *testing.T, c oci.Config) *oci.Source {
	s, err := oci.New(c)
	require.NoError(t, err)
	t.Cleanup(s.CloseIdle)
	return s
}

// pushed is the contract's view of a registry: models are tags, and push stores one as ORAS does. What a
// tag stood for goes when the tag moves, as it does where a registry collects its garbage.
func pushed(host string, s *oci.Source, push func(t *testing.T, name string, files map[string][]byte),
	remove func(t *testing.T, name string, content []byte)) sourcetest.Origin {
	all := map[string]map[string][]byte{}
	return sourcetest.Origin{
		Source: s,
		Put: func(t *testing.T, name string, files map[string][]byte) model.Ref {
			all[name] = maps.Clone(files)
			push(t, name, files)
			ref, err := model.ParseRef("oci://" + host + "/models/llama:" + name)
			require.NoError(t, err)
			return ref
		},
		Change: func(t *testing.T, name, path string, content []byte) {
			remove(t, name, all[name][path])
			all[name][path] = content
			push(t, name, all[name])
		},
		Missing: model.Ref{Scheme: "oci", Host: host, Path: "/models/missing:v1"},
		Digests: true,
	}
}

func TestContract(t *testing.T) {
	reg, host := newRegistry(t)
	push := func(t *testing.T, name string, files map[string][]byte) {
		var layers []ocispec.Descriptor
		for p, b := range files {
			layers = append(layers, reg.layer(ocispec.MediaTypeImageLayer, p, b))
		}
		slices.SortFunc(layers, func(a, b ocispec.Descriptor) int { return bytes.Compare([]byte(a.Digest), []byte(b.Digest)) })
		reg.put("models/llama", name, ocispec.MediaTypeImageManifest, manifest(t, layers...))
	}
	remove := func(_ *testing.T, _ string, content []byte) {
		reg.mu.Lock()
		defer reg.mu.Unlock()
		delete(reg.blobs, sha(content))
	}
	sourcetest.Contract(t, pushed(host, newSource(t, oci.Config{}), push, remove))
}

// TestContractOnDistribution runs against the registry that most are made of, where there is one.
func TestContractOnDistribution(t *testing.T) {
	host := distribution(t)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	call := func(t *testing.T, method, address, mediaType string, body []byte, want int) http.Header {
		req, err := http.NewRequestWithContext(t.Context(), method, address, bytes.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", mediaType)
		resp, err := transport.RoundTrip(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, want, resp.StatusCode, "%s %s", method, address)
		return resp.Header
	}
	base := "http://" + host + "/v2/models/llama/"
	blob := func(t *testing.T, b []byte) {
		at := call(t, http.MethodPost, base+"blobs/uploads/", "", nil, http.StatusAccepted).Get("Location")
		call(t, http.MethodPut, at+"&digest="+sha(b), "application/octet-stream", b, http.StatusCreated)
	}
	push := func(t *testing.T, name string, files map[string][]byte) {
		var layers []ocispec.Descriptor
		blob(t, ocispec.DescriptorEmptyJSON.Data)
		for p, b := range files {
			layers = append(layers, layer("application/vnd.cncf.model.weight.v1.raw", p, b))
			blob(t, b)
		}
		call(t, http.MethodPut, base+"manifests/"+name, ocispec.MediaTypeImageManifest, manifest(t, layers...), http.StatusCreated)
	}
	remove := func(t *testing.T, _ string, content []byte) {
		call(t, http.MethodDelete, base+"blobs/"+sha(content), "", nil, http.StatusAccepted)
	}
	sourcetest.Contract(t, pushed(host, newSource(t, oci.Config{}), push, remove))
}

// distribution is a running registry of the kind that most are made of, Debian's docker-registry.
func distribution(t *testing.T) string {
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("no docker-registry on PATH: apt-get install docker-registry")
	}
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host := l.Addr().String()
	require.NoError(t, l.Close())
	conf := filepath.Join(dir, "config.yml")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, `version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}
http: {addr: %s}
`, dir, host), 0o644))
	cmd := exec.Command(bin, "serve", conf)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", host)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, 20*time.Second, 20*time.Millisecond)
	return host
}
