package http_test

import (
	"encoding/pem"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/http"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// spy is a server that notes the headers of what it is asked, and answers as told.
func spy(t *testing.T, then nethttp.HandlerFunc) (host string, seen *[]nethttp.Header) {
	seen = new([]nethttp.Header)
	srv := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		*seen = append(*seen, r.Header.Clone())
		then(w, r)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://"), seen
}

func TestTheTokenGoesToItsHostsAlone(t *testing.T) {
	t.Parallel()
	fine := sourcetest.Answer(200, "", "Content-Length: 20")
	other, atOther := spy(t, fine)
	redirects, atRedirects := spy(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		nethttp.Redirect(w, r, "http://"+other+"/m", nethttp.StatusFound)
	})
	stays, atStays := spy(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		if r.URL.Path == "/m" {
			nethttp.Redirect(w, r, "/n", nethttp.StatusFound)
			return
		}
		fine(w, r)
	})
	name := sourcetest.Secret(t, "t0ken\n")
	s := newSource(t, http.Config{TokenFile: name, Hosts: []string{redirects, stays}})
	ask := func(host string) {
		_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "http://"+host+"/m?sig=SECRET"))
		require.NoError(t, err)
	}

	ask(other)
	require.Empty(t, (*atOther)[0].Get("Authorization"), "not listed")
	ask(redirects)
	require.Equal(t, "Bearer t0ken", (*atRedirects)[0].Get("Authorization"))
	require.Len(t, *atOther, 2)
	require.Empty(t, (*atOther)[1].Get("Authorization"), "redirected to another host")
	require.Empty(t, (*atOther)[1].Get("Referer"), "it would carry the signed query")
	ask(stays)
	require.Equal(t, "Bearer t0ken", (*atStays)[1].Get("Authorization"), "redirected on the same host")

	require.NoError(t, os.WriteFile(name, []byte("rotated"), 0o600))
	ask(stays)
	require.Equal(t, "Bearer rotated", (*atStays)[2].Get("Authorization"))
	require.NoError(t, os.Remove(name))
	_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "http://"+stays+"/m"))
	require.Equal(t, "Credentials", model.ReasonOf(err))
	require.Len(t, *atStays, 4, "nothing is sent without the token")
}

func TestPlainHTTPIsForThisMachine(t *testing.T) {
	t.Parallel()
	closed := newSource(t, http.Config{})
	_, err := closed.Resolve(t.Context(), sourcetest.Ref(t, "http://192.0.2.1/m?sig=SECRET"))
	require.Equal(t, "PlainHTTP", model.ReasonOf(err))
	require.True(t, model.IsFinal(err))
	require.EqualError(t, err, "http://192.0.2.1/m: plain http is accepted from this machine only: use https, or allow plain http in the config")
	_, err = closed.Resolve(t.Context(), sourcetest.Ref(t, "ftp://localhost/m"))
	require.Equal(t, "UnknownScheme", model.ReasonOf(err))

	away, _ := spy(t, sourcetest.Answer(302, "", "Location: http://192.0.2.1/m"))
	_, err = closed.Resolve(t.Context(), sourcetest.Ref(t, "http://"+away+"/m"))
	require.Equal(t, "PlainHTTP", model.ReasonOf(err), "nor by a redirect")

	open := newSource(t, http.Config{AllowPlain: true, TokenFile: sourcetest.Secret(t, "t"), Hosts: []string{"192.0.2.1"}})
	_, err = open.Resolve(t.Context(), sourcetest.Ref(t, "http://192.0.2.1/m"))
	require.ErrorContains(t, err, "the token is not sent over plain http")
	_, err = open.Resolve(t.Context(), sourcetest.Ref(t, "http://192.0.2.1:80/m"))
	require.ErrorContains(t, err, "the token is not sent over plain http", "the default port is the same host")
}

func TestTLSIsVerified(t *testing.T) {
	t.Parallel()
	var major []int
	srv := httptest.NewUnstartedServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		major = append(major, r.ProtoMajor)
		if r.URL.Path == "/down" {
			nethttp.Redirect(w, r, "http://127.0.0.1:1/m", nethttp.StatusFound)
			return
		}
		w.Header().Set("Content-Length", "20")
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()

	_, err := newSource(t, http.Config{}).Resolve(t.Context(), sourcetest.Ref(t, srv.URL+"/m?sig=SECRET"))
	require.Equal(t, "Untrusted", model.ReasonOf(err), "%v", err)
	require.True(t, model.IsFinal(err))
	require.NotContains(t, err.Error(), "SECRET")

	ca := sourcetest.Secret(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	s := newSource(t, http.Config{CAFile: ca})
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, srv.URL+"/m"))
	require.NoError(t, err)
	require.EqualValues(t, 20, m.Size())
	require.Equal(t, []int{1}, major, "one connection a range needs HTTP/1.1")
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, srv.URL+"/down"))
	require.Equal(t, "PlainHTTP", model.ReasonOf(err), "not even to this machine: %v", err)
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	token, words := sourcetest.Secret(t, "t"), sourcetest.Secret(t, "two words")
	for _, tc := range []struct {
		config http.Config
		want   []string
	}{
		{http.Config{CAFile: "/nowhere"}, []string{"machine caFile: open /nowhere: no such file or directory"}},
		{http.Config{CAFile: token}, []string{"content caFile: " + token + ": want PEM certificates, there is none in it"}},
		{http.Config{TokenFile: token}, []string{"setting tokenFile: want tokenHosts with it: a token goes only to hosts that are named"}},
		{http.Config{Hosts: []string{"a", "b"}}, []string{"setting tokenHosts: want tokenFile with it: there is no token to send to a, b"}},
		{http.Config{TokenFile: "/nowhere", Hosts: []string{"a"}}, []string{"machine tokenFile: token file: open /nowhere: no such file or directory"}},
		{http.Config{TokenFile: words, Hosts: []string{"a"}}, []string{"content tokenFile: token file " + words + ": want one token and nothing else"}},
		{http.Config{TokenFile: token, Hosts: []string{"a", "https://a/b"}}, []string{`setting tokenHosts[1]: want host or host:port, got "https://a/b"`}},
		{http.Config{Proxy: "ftp://p", Mirrors: []web.Mirror{{Of: "a/b", URL: "https://m"}, {Of: "a", URL: "https://u:sEcReT@m"}, {Of: "a", URL: "http://m/x"}}}, []string{
			"setting proxy: want http://host:port, https://host:port or socks5://host:port; one that asks for a login goes into HTTPS_PROXY",
			`setting mirrors[0].of: want the host or host:port that it is a mirror of, such as registry.example, got "a/b"`,
			"setting mirrors[1].url: want http(s)://host[:port] without credentials, such as https://mirror.example",
			"setting mirrors[2].url: http://m/x: plain http is accepted from this machine only: use https, or allow plain http in the config",
		}},
		{http.Config{AllowPlain: true, TokenFile: token, Hosts: []string{"m"}, Mirrors: []web.Mirror{{Of: "a", URL: "http://m/x"}, {Of: "a", URL: "http://n"}}}, []string{
			"setting mirrors[0].url: http://m/x: the token is not sent over plain http: use https, or take the host off the token's list",
		}},
	} {
		_, err := http.New(tc.config)
		require.Equal(t, tc.want, sourcetest.Faults(t, err))
		require.ErrorContains(t, err, "http source: ")
	}
	newSource(t, http.Config{Mirrors: []web.Mirror{{Of: "a", URL: "http://127.0.0.1:1/x"}, {Of: "a", URL: "https://m"}}})
}

func TestReferencesThatCanNeverBeRead(t *testing.T) {
	t.Parallel()
	config := http.Config{Hosts: []string{"models.example"}}
	sourcetest.Refused(t, func(ref model.Ref) error { return http.Check(config, ref) }, map[string]string{
		"https://h/m.bin": "", "https://h/m.bin?sig=x#sha256=" + strings.Repeat("0", 64): "", "https://h/dir/": "", "https://h": "", "https://h/SHA256SUMS": "",
		"http://127.0.0.1/m.bin": "", "https://models.example/m": "",
		"http://h/m.bin":   "PlainHTTP http://h/m.bin: plain http is accepted from this machine only",
		"https://h/a%2f..": "BadPath https://h/a%2f..: file path",
	})
	config.AllowPlain = true
	sourcetest.Refused(t, func(ref model.Ref) error { return http.Check(config, ref) }, map[string]string{
		"http://h/m.bin": "", "http://models.example/m": "PlainHTTP http://models.example/m: the token is not sent over plain http",
	})
}
