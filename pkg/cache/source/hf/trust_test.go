package hf_test

import (
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hf"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// pull reads all files of a model, in two ranges where they are long enough.
func pull(t *testing.T, s *hf.Source, r model.Ref) (model.Manifest, error) {
	m, err := s.Resolve(t.Context(), r)
	if err != nil {
		return m, err
	}
	for _, f := range m.Files {
		for _, part := range [][2]int64{{0, f.Size / 2}, {f.Size / 2, f.Size - f.Size/2}} {
			body, err := s.Open(t.Context(), r, f, part[0], part[1])
			if err != nil {
				return m, err
			}
			n, err := io.Copy(io.Discard, body)
			require.NoError(t, err)
			require.Equal(t, part[1], n)
			require.NoError(t, body.Close())
		}
	}
	return m, nil
}

var files = map[string][]byte{"config.json": []byte(`{"a":1}`), "model.safetensors": make([]byte, 5000)}

func TestTheTokenReachesTheEndpointAlone(t *testing.T) {
	h, mirror := newHub(t), newHub(t)
	h.token = "t0ken"
	h.put("org/m", "main", files)
	h.renamed["org/old"] = "org/m"
	mirror.put("org/m", "main", map[string][]byte{}) // lacks the commit
	name := sourcetest.Secret(t, "t0ken\n")
	c := hf.Config{Endpoint: h.URL, TokenFile: name, Mirrors: []string{mirror.URL, strings.Replace(mirror.cdn.URL, "127.0.0.1", "localhost", 1)}}
	s := newSource(t, c)
	for _, source := range []string{"hf://org/m", "hf://org/old"} {
		_, err := pull(t, s, sourcetest.Ref(t, source))
		require.NoError(t, err)
	}

	endpoint, seen := h.Listener.Addr().String(), map[string]int{}
	for _, r := range append(h.Asked(), mirror.Asked()...) {
		seen[r.Host]++
		if r.Host == endpoint {
			require.Equal(t, "Bearer t0ken", r.Header.Get("Authorization"), r.Path)
			continue
		}
		for key, values := range r.Header {
			require.NotContains(t, strings.Join(values, " "), "t0ken", "%s to %s%s", key, r.Host, r.Path)
		}
		require.Empty(t, r.Header.Get("Referer"))
	}
	require.Len(t, seen, 4, "endpoint, CDN and both mirrors: %v", seen)

	// The API of an endpoint that sends us away is not followed.
	other := newHub(t)
	h.Lie = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Host == endpoint {
			http.Redirect(w, r, other.URL+r.URL.Path+"?sig=SECRET", http.StatusFound)
			return true
		}
		return false
	}
	_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "hf://org/m"))
	require.Equal(t, "Moved", model.ReasonOf(err))
	require.ErrorContains(t, err, "redirects to "+other.URL+": make that the endpoint if you trust it")
	require.NotContains(t, err.Error(), "SECRET")
	require.Empty(t, other.Asked())
	h.Lie = nil

	require.NoError(t, os.WriteFile(name, []byte("rotated"), 0o600))
	h.token = "rotated"
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "hf://org/m"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(name))
	before := len(h.Asked())
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "hf://org/m"))
	require.Equal(t, "Credentials", model.ReasonOf(err))
	require.Len(t, h.Asked(), before, "nothing is sent without the token")
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.put("org/m", "main", files)
	h.put("org/gated", "main", files)
	h.repos["org/gated"].gated = true
	anonymous := newSource(t, hf.Config{Endpoint: h.URL})
	fails := func(s *hf.Source, source, reason, text string) {
		t.Helper()
		_, err := pull(t, s, sourcetest.Ref(t, source))
		require.Equal(t, reason, model.ReasonOf(err), "%v", err)
		require.True(t, model.IsFinal(err))
		require.ErrorContains(t, err, source)
		require.ErrorContains(t, err, text)
		require.NotContains(t, err.Error(), "t0ken")
	}
	fails(anonymous, "hf://org/none", "NotFound", "no such repository, or a private one, which the hub does not tell apart")
	fails(anonymous, "hf://org/m@v9", "NotFound", "no such revision: correct what follows the @")
	fails(anonymous, "hf://org/gated", "Gated", "accept its terms on its page, and name a file with a token that may read it (cache.sources.hf.tokenFile)")

	h.token = "t0ken"
	fails(anonymous, "hf://org/m", "NotFound", "or name a file with a token that may read it")
	file := sourcetest.Secret(t, "t0ken")
	mine := newSource(t, hf.Config{Endpoint: h.URL, TokenFile: file})
	fails(mine, "hf://org/none", "NotFound", "correct the name, or put one that may read it into "+file)
	_, err := pull(t, mine, sourcetest.Ref(t, "hf://org/gated"))
	require.NoError(t, err, "the token has access")
	h.token = "other"
	fails(mine, "hf://org/m", "Forbidden", "the hub does not accept the token, which is wrong or has expired: put one")
}

func TestTLSIsVerifiedAndNotLeft(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.put("org/m", "main", files)
	tls := httptest.NewTLSServer(http.HandlerFunc(h.serve))
	defer tls.Close()
	_, err := pull(t, newSource(t, hf.Config{Endpoint: tls.URL}), sourcetest.Ref(t, "hf://org/m"))
	require.Equal(t, "Untrusted", model.ReasonOf(err), "%v", err)
	ca := sourcetest.Secret(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw})))
	_, err = pull(t, newSource(t, hf.Config{Endpoint: tls.URL, CAFile: ca}), sourcetest.Ref(t, "hf://org/m"))
	require.Equal(t, "PlainHTTP", model.ReasonOf(err), "the stand-in's CDN is not encrypted: %v", err)
	require.NotContains(t, err.Error(), "SECRET")
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	const address = "want http(s)://host[:port] without credentials, such as https://huggingface.co"
	token := sourcetest.Secret(t, "t")
	for _, tc := range []struct {
		config hf.Config
		want   []string
	}{
		{hf.Config{Endpoint: "huggingface.co", Mirrors: []string{"https://m", "https://u:p@h"}, CAFile: "/nowhere", TokenFile: "/nowhere", Proxy: "p"}, []string{
			"setting endpoint: " + address,
			"setting mirrors[1]: " + address,
			"machine tokenFile: token file: open /nowhere: no such file or directory",
			"machine caFile: open /nowhere: no such file or directory",
			"setting proxy: want http://host:port, https://host:port or socks5://host:port; one that asks for a login goes into HTTPS_PROXY",
		}},
		{hf.Config{Endpoint: "http://192.0.2.1", TokenFile: token}, []string{"setting tokenFile: the token is not sent to 192.0.2.1 over plain http: use https, or no token file"}},
		{hf.Config{TokenFile: sourcetest.Secret(t, "")}, nil},
	} {
		_, err := hf.New(tc.config)
		got := sourcetest.Faults(t, err)
		if tc.want == nil {
			tc.want = []string{"content tokenFile: token file " + tc.config.TokenFile + ": want one token and nothing else"}
		}
		require.Equal(t, tc.want, got)
	}
}

func TestReferencesThatCanNeverBeRead(t *testing.T) {
	t.Parallel()
	refused := map[string]string{
		"hf://org/m/sub/dir":                           "want hf://organization/name",
		"hf://datasets/org/m":                          "want hf://organization/name",
		"hf://org/..":                                  "want hf://organization/name",
		"hf://org/m@":                                  "want a branch, a tag or a commit",
		"hf://org/m?revision=main":                     "want include=<pattern>",
		"hf://org/m?include=%5b":                       "want one such as *.safetensors",
		"hf://org/m@a%0d%0aX:%20y":                     "want a branch, a tag or a commit",
		"hf://org/%2e%2e%2fm%2fetc":                    "want hf://organization/name",
		"hf://org/m#sha256=" + strings.Repeat("0", 64): "a hub takes no #sha256: it names the digest of each file itself; pin the revision with @<commit>",
	}
	sourcetest.Refused(t, hf.Check, refused)
	sourcetest.Refused(t, func(ref model.Ref) error {
		_, err := newSource(t, hf.Config{}).Resolve(t.Context(), ref)
		return err
	}, refused)
	sourcetest.Refused(t, hf.Check, map[string]string{"hf://org/m": "", "hf://m": "", "hf://org/m@refs%2fpr%2f1?include=*.json": ""})
}
