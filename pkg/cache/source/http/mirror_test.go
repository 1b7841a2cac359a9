package http_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/http"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// TestAMirrorIsAskedFirstWithoutRights: neither the query nor the token of the server goes there, and what is not
// known by its digest is not asked of it.
func TestAMirrorIsAskedFirstWithoutRights(t *testing.T) {
	t.Parallel()
	var atMirror, atServer []*nethttp.Request
	serve := sourcetest.Answer(206, text[5:10], "Content-Range: bytes 5-9/20", `ETag: "of the mirror"`)
	mirror := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		atMirror = append(atMirror, r)
		serve(w, r)
	}))
	defer mirror.Close()
	srv := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		atServer = append(atServer, r)
		w.Header().Set("ETag", `"v1"`)
		nethttp.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte("t0ken"), 0o600))
	config := http.Config{TokenFile: token, Hosts: []string{host}, Mirrors: []web.Mirror{{Of: host, URL: mirror.URL + "/cache/"}}}
	sum := sha256.Sum256([]byte(text))
	f := model.File{Path: "m.bin", Key: "/d/m.bin", Size: 20, Version: `"v1"`, Digest: model.Digest(hex.EncodeToString(sum[:]))}
	read := func(s *http.Source, f model.File, offset int64) string {
		body, err := s.Open(t.Context(), sourcetest.Ref(t, srv.URL+"/d/m.bin?sig=SECRET"), f, offset, 5)
		require.NoError(t, err)
		defer body.Close()
		got, err := io.ReadAll(body)
		require.NoError(t, err)
		return string(got)
	}

	s := newSource(t, config)
	require.Equal(t, text[5:10], read(s, f, 5))
	require.Empty(t, atServer)
	require.Equal(t, "/cache/d/m.bin", atMirror[0].URL.String())
	require.Empty(t, atMirror[0].Header.Get("Authorization"))
	require.Empty(t, atMirror[0].Header.Get("If-Match"))
	unknown := f
	unknown.Digest = ""
	require.Equal(t, text[5:10], read(s, unknown, 5))
	require.Len(t, atMirror, 1, "nothing would tell its content from another")
	require.Equal(t, "Bearer t0ken", atServer[0].Header.Get("Authorization"))

	for name, lie := range map[string]nethttp.HandlerFunc{
		"lacks it":      sourcetest.Answer(404, ""),
		"is busy":       sourcetest.Answer(503, "", "Retry-After: 3600"),
		"other offset":  sourcetest.Answer(206, "45678", "Content-Range: bytes 4-8/20"),
		"other size":    sourcetest.Answer(206, text[5:10], "Content-Range: bytes 5-9/21"),
		"ignores range": sourcetest.Answer(200, text),
		"gzip":          sourcetest.Answer(206, text[5:10], "Content-Range: bytes 5-9/20", "Content-Encoding: gzip"),
	} {
		s, serve, atMirror = newSource(t, config), lie, nil
		for range 3 {
			require.Equal(t, text[5:10], read(s, f, 5), name)
		}
		require.Len(t, atMirror, 1, "%s: it is passed over for a while", name)
	}

	s, serve = newSource(t, config), sourcetest.Answer(206, "WRONG", "Content-Range: bytes 0-4/20")
	require.Equal(t, "WRONG", read(s, f, 0), "the cache finds that out by the digest")
	require.Equal(t, text[:5], read(s, f, 0), "and its next try is the server's")
}
