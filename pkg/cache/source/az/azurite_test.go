package az_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/az"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// The account of Azurite, which everybody knows.
const (
	account = "devstoreaccount1"
	key     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// TestContractOnAzurite runs against Microsoft's own emulator. AZURITE_JS is a directory in which npm has installed
// azurite.
func TestContractOnAzurite(t *testing.T) {
	dir := os.Getenv("AZURITE_JS")
	if dir == "" {
		t.Skip("AZURITE_JS does not name a directory in which npm has installed azurite")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host := l.Addr().String()
	require.NoError(t, l.Close())
	_, port, err := net.SplitHostPort(host)
	require.NoError(t, err)
	cmd := exec.Command("node", filepath.Join(dir, "node_modules/azurite/dist/src/blob/main.js"), "--silent", "--blobPort", port,
		"--location", t.TempDir(), "--disableTelemetry")
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", host)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, time.Minute, 20*time.Millisecond)

	endpoint := "http://" + host
	put := func(t *testing.T, path, query string, body []byte, header map[string]string) {
		u := &url.URL{Scheme: "http", Host: host, Path: "/" + account + "/" + path, RawQuery: query}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, u.String(), bytes.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("X-Ms-Version", "2021-12-02")
		req.Header.Set("X-Ms-Date", time.Now().UTC().Format(http.TimeFormat))
		for k, v := range header {
			req.Header.Set(k, v)
		}
		req.Header.Set("Authorization", "SharedKey "+account+":"+signed(t, req, len(body)))
		resp, err := http.DefaultTransport.RoundTrip(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusCreated, resp.StatusCode, "%s: %s", u, resp.Header.Get("X-Ms-Error-Code"))
	}
	t.Cleanup(func() { http.DefaultTransport.(*http.Transport).CloseIdleConnections() })
	put(t, "models", "restype=container", nil, nil)
	put(t, "public", "restype=container", nil, map[string]string{"X-Ms-Blob-Public-Access": "container"})
	blob := func(t *testing.T, path string, body []byte) {
		put(t, path, "", body, map[string]string{"X-Ms-Blob-Type": "BlockBlob"})
	}
	shared := sourcetest.Secret(t, "DefaultEndpointsProtocol=http;AccountName="+account+";AccountKey="+key+";BlobEndpoint="+endpoint+"/"+account)
	sas := sourcetest.Secret(t, "AccountName="+account+";SharedAccessSignature="+signature(t))
	for name, c := range map[string]struct {
		container string
		config    az.Config
	}{
		"shared key": {"models", az.Config{Endpoint: endpoint, CredentialsFile: shared}},
		"SAS":        {"models", az.Config{Endpoint: endpoint, CredentialsFile: sas}},
		"anonymous":  {"public", az.Config{Endpoint: endpoint, Anonymous: true}},
	} {
		t.Run(name, func(t *testing.T) {
			s, prefix := newSource(t, c.config), strings.ReplaceAll(name, " ", "-")+"/"
			sourcetest.Contract(t, sourcetest.Store{Source: s, Root: "az://" + account + "/" + c.container + "/" + prefix,
				Put: func(t *testing.T, key string, b []byte) { blob(t, c.container+"/"+prefix+key, b) },
			}.Origin(t, "az://"+account+"/"+c.container+"/missing", false))
			m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://"+account+"/"+c.container+"/"+prefix+"contract/config.json"))
			require.NoError(t, err)
			require.Equal(t, "config.json", m.Files[0].Path)
			require.Contains(t, string(m.Files[0].Check), "md5:")
		})
	}
	for name, c := range map[string]struct {
		config az.Config
		ref    string
		reason string
		text   string
	}{
		"no container":   {az.Config{Endpoint: endpoint, CredentialsFile: shared}, "az://" + account + "/nowhere/x", "NotFound", "ContainerNotFound"},
		"not public":     {az.Config{Endpoint: endpoint, Anonymous: true}, "az://" + account + "/models/x", "Forbidden", "check that the credentials"},
		"a wrong key":    {az.Config{Endpoint: endpoint, CredentialsFile: sourcetest.Secret(t, "AccountName="+account+";AccountKey=c0VjUmVU")}, "az://" + account + "/models/x", "Forbidden", "(AuthorizationFailure)"},
		"an expired SAS": {az.Config{Endpoint: endpoint, CredentialsFile: sourcetest.Secret(t, "AccountName="+account+";SharedAccessSignature="+strings.Replace(signature(t), "se=20", "se=19", 1))}, "az://" + account + "/models/x", "Expired", "ended at 19"},
	} {
		_, err := newSource(t, c.config).Resolve(t.Context(), sourcetest.Ref(t, c.ref))
		require.Equal(t, c.reason, model.ReasonOf(err), "%s: %v", name, err)
		require.ErrorContains(t, err, c.text, name)
		require.Equal(t, c.reason != "Expired", model.IsFinal(err), name)
	}
}

// signed is the signature of a request that stores something.
func signed(t *testing.T, req *http.Request, size int) string {
	length := ""
	if size > 0 {
		length = fmt.Sprint(size)
	}
	text := "PUT\n\n\n" + length + "\n\n\n\n\n\n\n\n\n"
	for _, name := range slices.Sorted(maps.Keys(req.Header)) {
		if strings.HasPrefix(name, "X-Ms-") {
			text += strings.ToLower(name) + ":" + req.Header.Get(name) + "\n"
		}
	}
	text += "/" + account + req.URL.EscapedPath()
	for _, name := range slices.Sorted(maps.Keys(req.URL.Query())) {
		text += "\n" + name + ":" + req.URL.Query().Get(name)
	}
	return hmacOf(t, text)
}

// signature is one of the account that may list and read blobs until tomorrow ("Create an account SAS").
func signature(t *testing.T) string {
	until := time.Now().Add(24 * time.Hour).UTC().Format("2006-01-02T15:04:05Z")
	text := strings.Join([]string{account, "rl", "b", "sco", "", until, "", "", "2021-12-02", "", ""}, "\n")
	return url.Values{"sv": {"2021-12-02"}, "ss": {"b"}, "srt": {"sco"}, "sp": {"rl"}, "se": {until}, "sig": {hmacOf(t, text)}}.Encode()
}

func hmacOf(t *testing.T, text string) string {
	secret, err := base64.StdEncoding.DecodeString(key)
	require.NoError(t, err)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
