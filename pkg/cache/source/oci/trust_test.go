package oci_test

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/oci"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// logins is a Docker config.json with one login.
func logins(host, user, password string) string {
	return fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

func readAll(t *testing.T, s *oci.Source, ref model.Ref, content string) (string, error) {
	f := model.File{Path: "m", Key: sha([]byte(content)), Size: int64(len(content))}
	body, err := s.Open(t.Context(), ref, f, 2, 3)
	if err != nil {
		return "", err
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	return string(b), err
}

func TestATokenIsHadOnceAndKept(t *testing.T) {
	t.Parallel()
	reg, host := newRegistry(t)
	reg.layer("application/x", "m", []byte(text))
	var logged atomic.Int32
	token := atomic.Pointer[string]{}
	token.Store(new("t0ken"))
	reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			user, password, _ := r.BasicAuth()
			if user != "me" || password != "sEcReT" || r.URL.Query().Get("scope") != "repository:org/m:pull" {
				return answer(401, `{"errors":[{"code":"DENIED","message":"no sEcReT"}]}`)(w, r)
			}
			logged.Add(1)
			return answer(200, fmt.Sprintf(`{"token": %q}`, *token.Load()))(w, r)
		case r.Header.Get("Authorization") == "Bearer "+*token.Load():
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="r",scope="repository:org/m:pull"`, host))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	ref := sourcetest.Ref(t, "oci://"+host+"/org/m:v1")
	config := sourcetest.Secret(t, logins(host, "me", "sEcReT"))
	s := newSource(t, oci.Config{CredentialsFile: config})
	for range 3 {
		got, err := readAll(t, s, ref, text)
		require.NoError(t, err)
		require.Equal(t, "234", got)
	}
	require.EqualValues(t, 1, logged.Load())
	token.Store(new("an0ther"))
	_, err := readAll(t, s, ref, text)
	require.NoError(t, err, "a token that is no longer good is replaced")
	require.EqualValues(t, 2, logged.Load())

	token.Store(new("third"))
	require.NoError(t, os.WriteFile(config, []byte(logins(host, "me", "0ld")), 0o600))
	_, err = readAll(t, s, ref, text)
	require.Equal(t, "Forbidden", model.ReasonOf(err), "the file is read anew: %v", err)
	require.True(t, model.IsFinal(err))
	require.NotContains(t, err.Error(), "sEcReT", "a token service may repeat anything")
	require.NoError(t, os.Remove(config))
	_, err = readAll(t, s, ref, text)
	require.Equal(t, "Credentials", model.ReasonOf(err), "%v", err)
	require.False(t, model.IsFinal(err), "a mounted secret may come back")

	_, err = readAll(t, newSource(t, oci.Config{CredentialsFile: sourcetest.Secret(t, logins("elsewhere.example", "me", "sEcReT"))}), ref, text)
	require.Equal(t, "Forbidden", model.ReasonOf(err), "a login of another registry is not tried: %v", err)
}

// ECR says 403 of a password whose twelve hours are over.
func TestALoginThatIsRefusedIsReadAnew(t *testing.T) {
	t.Parallel()
	for name, bearer := range map[string]bool{"basic": false, "bearer": true} {
		reg, host := newRegistry(t)
		reg.layer("application/x", "m", []byte(text))
		var password atomic.Pointer[string]
		password.Store(new("0ld"))
		reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
			_, given, _ := r.BasicAuth()
			switch token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "); {
			case r.URL.Path == "/token":
				return answer(200, fmt.Sprintf(`{"token": %q}`, given))(w, r)
			case token == "" && bearer:
				return answer(401, "", "WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="r"`, host))(w, r)
			case token == "":
				return answer(401, "", "WWW-Authenticate", `Basic realm="x"`)(w, r)
			case given != *password.Load() && token != *password.Load():
				return answer(403, `{"errors":[{"code":"DENIED","message":"Your authorization token has expired"}]}`)(w, r)
			}
			return false
		})
		config := sourcetest.Secret(t, logins(host, "AWS", "0ld"))
		s, ref := newSource(t, oci.Config{CredentialsFile: config}), sourcetest.Ref(t, "oci://"+host+"/m:v1")
		_, err := readAll(t, s, ref, text)
		require.NoError(t, err, name)
		password.Store(new("n3w"))
		for range 2 {
			_, err = readAll(t, s, ref, text)
			require.Equal(t, "Forbidden", model.ReasonOf(err), "%s: %v", name, err)
		}
		require.NoError(t, os.WriteFile(config, []byte(logins(host, "AWS", "n3w")), 0o600))
		got, err := readAll(t, s, ref, text)
		require.NoError(t, err, name)
		require.Equal(t, "234", got)
	}
}

func TestARegistryThatIsNeverContentIsAskedTwice(t *testing.T) {
	t.Parallel()
	reg, host := newRegistry(t)
	reg.answer(answer(401, "", "WWW-Authenticate", `Basic realm="x"`))
	s := newSource(t, oci.Config{CredentialsFile: sourcetest.Secret(t, logins(host, "me", "sEcReT"))})
	_, err := readAll(t, s, sourcetest.Ref(t, "oci://"+host+"/m"), text)
	require.Equal(t, "Forbidden", model.ReasonOf(err), "%v", err)
	require.Len(t, reg.seen, 2)
}

func TestStorageElsewhereSeesNoLogin(t *testing.T) {
	t.Parallel()
	storage, at := newRegistry(t)
	storage.layer("application/x", "m", []byte(text))
	reg, host := newRegistry(t)
	reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if _, _, ok := r.BasicAuth(); !ok {
			return answer(401, "", "WWW-Authenticate", `Basic realm="x"`)(w, r)
		}
		http.Redirect(w, r, "http://"+at+r.URL.Path+"?sig=SECRET", http.StatusTemporaryRedirect)
		return true
	})
	s := newSource(t, oci.Config{CredentialsFile: sourcetest.Secret(t, logins(host, "me", "sEcReT"))})
	ref := sourcetest.Ref(t, "oci://"+host+"/m")
	for range 2 {
		got, err := readAll(t, s, ref, text)
		require.NoError(t, err)
		require.Equal(t, "234", got)
	}
	require.Len(t, storage.seen, 2)
	for _, r := range storage.seen {
		require.Empty(t, r.Header.Get("Authorization"), "the same machine on another port is another host")
		require.Empty(t, r.Header.Get("Referer"))
		require.Equal(t, "bytes=2-4", r.Header.Get("Range"))
	}

	storage.answer(answer(403, "", "WWW-Authenticate", `Basic realm="x"`))
	_, err := readAll(t, s, ref, text)
	require.Equal(t, "Refused", model.ReasonOf(err), "%v", err)
	require.False(t, model.IsFinal(err), "the next address is signed anew")
	require.NotContains(t, err.Error(), "SECRET")
	storage.answer(answer(401, "", "WWW-Authenticate", `Basic realm="x"`))
	_, err = readAll(t, s, ref, text)
	require.Equal(t, "Refused", model.ReasonOf(err), "%v", err)
	for _, r := range storage.seen {
		require.Empty(t, r.Header.Get("Authorization"), "nor where it asks for one")
	}
}

func TestPlainHTTPIsForThisMachine(t *testing.T) {
	t.Parallel()
	reg, host := newRegistry(t)
	reg.layer("application/x", "m", []byte(text))
	proxied := func(c oci.Config) *oci.Source { // plain.example is the registry
		s := newSource(t, c)
		oci.DialAll(s, host)
		return s
	}
	ref := sourcetest.Ref(t, "oci://plain.example/m")
	_, err := readAll(t, proxied(oci.Config{}), ref, text)
	require.Equal(t, "Unreachable", model.ReasonOf(err), "it is spoken to in TLS: %v", err)
	require.Empty(t, reg.seen)
	got, err := readAll(t, proxied(oci.Config{PlainHosts: []string{"Plain.example"}}), ref, text)
	require.NoError(t, err)
	require.Equal(t, "234", got)

	reg.answer(answer(401, "", "WWW-Authenticate", `Basic realm="x"`))
	s := proxied(oci.Config{PlainHosts: []string{"plain.example"}, CredentialsFile: sourcetest.Secret(t, logins("plain.example", "me", "sEcReT"))})
	_, err = readAll(t, s, ref, text)
	require.Equal(t, "PlainHTTP", model.ReasonOf(err), "%v", err)
	require.ErrorContains(t, err, "credentials are not sent over plain http")
	require.Len(t, reg.seen, 1)

	reg.answer(answer(307, "", "Location", "http://127.0.0.1:1/"))
	_, err = readAll(t, proxied(oci.Config{PlainHosts: []string{"plain.example"}}), ref, text)
	require.ErrorContains(t, err, "redirects to this machine")
}

func TestTLSIsVerified(t *testing.T) {
	t.Parallel()
	var major atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		major.Store(int32(r.ProtoMajor))
		if strings.Contains(r.URL.Path, "/down/") {
			http.Redirect(w, r, "http://127.0.0.1:1/m", http.StatusFound)
			return
		}
		if strings.Contains(r.URL.Path, "/plain/") {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://example.com/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Range", "bytes 2-4/20")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, "234")
	}))
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // the handshake that must fail
	srv.StartTLS()
	defer srv.Close()
	source := func(c oci.Config) *oci.Source {
		s := newSource(t, c)
		oci.DialAll(s, srv.Listener.Addr().String())
		return s
	}
	_, err := readAll(t, source(oci.Config{}), sourcetest.Ref(t, "oci://example.com/m"), text)
	require.Equal(t, "Untrusted", model.ReasonOf(err), "%v", err)
	require.True(t, model.IsFinal(err))

	ca := sourcetest.Secret(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	s := source(oci.Config{CAFile: ca})
	got, err := readAll(t, s, sourcetest.Ref(t, "oci://example.com/m"), text)
	require.NoError(t, err)
	require.Equal(t, "234", got)
	require.EqualValues(t, 1, major.Load(), "one connection a range needs HTTP/1.1")
	_, err = readAll(t, s, sourcetest.Ref(t, "oci://example.com/down/m"), text)
	require.Equal(t, "PlainHTTP", model.ReasonOf(err), "not even to this machine: %v", err)
	_, err = readAll(t, s, sourcetest.Ref(t, "oci://example.com/plain/m"), text)
	require.Equal(t, "BadLogin", model.ReasonOf(err), "no login in the clear for a registry with TLS: %v", err)
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	helpers := sourcetest.Secret(t, `{"credsStore": "desktop", "x": "sEcReT"}`)
	_, err := oci.New(oci.Config{
		CAFile: helpers, Proxy: "p", CredentialsFile: helpers, PlainHosts: []string{"a", "http://b"},
		Mirrors: []web.Mirror{{Of: "a/b", URL: "https://u:sEcReT@m"}, {Of: "c", URL: "http://m"}, {Of: "c", URL: "http://a"}, {Of: "c", URL: "http://127.0.0.1:1"}},
	})
	require.Equal(t, []string{
		`setting plainHosts[1]: want host or host:port, got "http://b"`,
		"content caFile: " + helpers + ": want PEM certificates, there is none in it",
		"setting proxy: want http://host:port, https://host:port or socks5://host:port; one that asks for a login goes into HTTPS_PROXY",
		`setting mirrors[0].of: want the host or host:port that it is a mirror of, such as registry.example, got "a/b"`,
		"setting mirrors[0].url: want http(s)://host[:port] without credentials, such as https://mirror.example",
		"setting mirrors[1].url: http://m: plain http is accepted from this machine only: use https, or list the host as plain in the config",
		"content credentialsFile: credentials file " + helpers + `: want a Docker config.json with {"auths": {"<registry>": {"auth": "<base64>"}}}; credential helpers are not run`,
	}, sourcetest.Faults(t, err))
	require.NotContains(t, err.Error(), "sEcReT")
	_, err = oci.New(oci.Config{CAFile: "/nowhere", CredentialsFile: "/nowhere"})
	require.Equal(t, []string{
		"machine caFile: open /nowhere: no such file or directory",
		"machine credentialsFile: credentials file: open /nowhere: no such file or directory",
	}, sourcetest.Faults(t, err))
}

func TestReferencesThatCanNeverBeRead(t *testing.T) {
	t.Parallel()
	sourcetest.Refused(t, oci.Check, map[string]string{
		"oci://r.example/a/m": "", "oci://r.example/m:v1": "", "oci://r.example/m@sha256:" + strings.Repeat("0", 64): "",
		"oci://r.example":       "BadSource oci://r.example: want oci://registry/repository",
		"oci://r.example/M":     "repositories are in lower case",
		"oci://r.example/m?a=b": "a registry takes no ?",
		"oci://r.example/m#sha256=" + strings.Repeat("0", 64): "and no #: pin the content with @sha256:",
	})
}

// TestAMirrorIsAskedForLayersWithoutTheRegistrysLogin: the registry says what a tag is, the mirror has the bytes.
func TestAMirrorIsAskedForLayersWithoutTheRegistrysLogin(t *testing.T) {
	t.Parallel()
	reg, host := newRegistry(t)
	pull, there := newRegistry(t)
	l := reg.layer("application/x", "a", []byte(text))
	reg.put("m", "v1", ocispec.MediaTypeImageManifest, manifest(t, l))
	pull.layer("application/x", "a", []byte(text))
	reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if _, password, _ := r.BasicAuth(); password == "sEcReT" {
			return false
		}
		return answer(401, "", "WWW-Authenticate", `Basic realm="x"`)(w, r)
	})
	login := filepath.Join(t.TempDir(), "config.json")
	require.NoError(t, os.WriteFile(login, []byte(`{"auths":{"`+host+`":{"username":"u","password":"sEcReT"}}}`), 0o600))
	config := oci.Config{CredentialsFile: login, Mirrors: []web.Mirror{{Of: host, URL: "http://" + there + "/cache"}}}
	read := func(s *oci.Source) {
		ref := sourcetest.Ref(t, "oci://"+host+"/m:v1")
		m, err := s.Resolve(t.Context(), ref)
		require.NoError(t, err)
		body, err := s.Open(t.Context(), ref, m.Files[0], 5, 5)
		require.NoError(t, err)
		defer body.Close()
		got, err := io.ReadAll(body)
		require.NoError(t, err)
		require.Equal(t, text[5:10], string(got))
	}
	blobs := func(r *registry) (n int) {
		for _, req := range r.seen {
			if strings.Contains(req.URL.Path, "/blobs/") {
				n++
			}
		}
		return n
	}
	read(newSource(t, config))
	require.Zero(t, blobs(reg))
	require.Len(t, pull.seen, 1)
	require.Equal(t, "/v2/cache/m/blobs/"+l.Digest.String(), pull.seen[0].URL.Path)
	require.Empty(t, pull.seen[0].Header.Get("Authorization"))

	for name, lie := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"wants a login": answer(401, "", "WWW-Authenticate", `Basic realm="x"`), "lacks it": answer(404, ""), "breaks": answer(500, ""),
		"another offset": answer(206, text[4:9], "Content-Range", "bytes 4-8/20"),
	} {
		pull.answer(lie)
		before := blobs(reg)
		read(newSource(t, config))
		require.Greater(t, blobs(reg), before, name)
		for _, req := range pull.seen {
			require.Empty(t, req.Header.Get("Authorization"), name)
		}
	}
	// Docker's registry is asked under another name than it is known by.
	pull.answer(nil)
	body, err := newSource(t, oci.Config{Mirrors: []web.Mirror{{Of: "docker.io", URL: "http://" + there}}}).Open(t.Context(),
		sourcetest.Ref(t, "oci://docker.io/library/m:v1"), model.File{Path: "a", Key: l.Digest.String(), Size: 20}, 5, 5)
	require.NoError(t, err)
	require.NoError(t, body.Close())
}
