package ms_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/ms"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

var files = map[string][]byte{"config.json": []byte(`{"a":1}`), "model.safetensors": bytes.Repeat([]byte("0123456789"), 500)}

func TestTheTokenReachesTheEndpointAlone(t *testing.T) {
	t.Parallel()
	h, mirror, other := newHub(t), newHub(t), newHub(t)
	h.token = "t0ken"
	h.put("org/m", "master", files)
	h.repos["org/m"].private = true
	s := newSource(t, ms.Config{Endpoint: h.URL, TokenFile: sourcetest.Secret(t, "t0ken\n"), Mirrors: []string{mirror.URL}})
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "ms://org/m"))
	require.NoError(t, err)
	for _, f := range m.Files {
		got, err := sourcetest.Read(t, s, sourcetest.Ref(t, "ms://org/m"), f, 0, f.Size)
		require.NoError(t, err)
		require.Equal(t, files[f.Path], got)
	}
	seen := map[string]int{}
	for _, r := range append(h.Asked(), mirror.Asked()...) {
		seen[r.Host]++
		if r.Host == h.Listener.Addr().String() {
			require.Equal(t, "Bearer t0ken", r.Header.Get("Authorization"))
			require.Equal(t, "m_session_id=t0ken", r.Header.Get("Cookie"))
			continue
		}
		for key, values := range r.Header {
			require.NotContains(t, strings.Join(values, " "), "t0ken", "%s to %s%s", key, r.Host, r.Path)
		}
	}
	require.Len(t, seen, 3, "endpoint, its CDN and the mirror: %v", seen)

	h.Lie = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, other.URL+r.URL.Path+"?sig=SECRET", http.StatusFound)
		return true
	}
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "ms://org/m"))
	require.Equal(t, "Moved", model.ReasonOf(err))
	require.ErrorContains(t, err, "redirects to "+other.URL+": make that the endpoint if you trust it")
	require.NotContains(t, err.Error(), "SECRET")
	require.Empty(t, other.Asked())
}

func TestASignedAddressServesAllRangesAndIsRenewed(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.put("org/m", "master", files)
	s, r := newSource(t, ms.Config{Endpoint: h.URL}), sourcetest.Ref(t, "ms://org/m")
	m, err := s.Resolve(t.Context(), r)
	require.NoError(t, err)
	f := m.Files[1]
	all := func() {
		var g sync.WaitGroup
		for i := range int64(50) {
			g.Go(func() {
				got, err := sourcetest.Read(t, s, r, f, i*100, 100)
				if err != nil || !bytes.Equal(got, files[f.Path][i*100:i*100+100]) {
					t.Errorf("range %d: %d bytes, error %v", i, len(got), err)
				}
			})
		}
		g.Wait()
	}
	all()
	require.Equal(t, 1, h.reads(), "asked for once, not once a range")
	clear(h.signed) // all expired, in the middle of the file
	all()
	require.Equal(t, 2, h.reads(), "and once more for all")
}

func TestTheAPIsLiesEndInAReason(t *testing.T) {
	t.Parallel()
	const at = "/repo/files"
	list := func(entries string) string { return `{"Code":200,"Success":true,"Data":{"Files":[` + entries + `]}}` }
	blob := func(path string) string {
		return fmt.Sprintf(`{"Type":"blob","Path":%q,"Size":1,"Sha256":"%064d"}`, path, 7)
	}
	for name, c := range map[string]struct {
		lie    func(http.ResponseWriter, *http.Request) bool
		reason string
		final  bool
		text   string
	}{
		"no such repository":     {sourcetest.Lie(at, 404, `{"Code":10010205001,"Message":"record not found"}`), "NotFound", true, "no such repository"},
		"no access":              {sourcetest.Lie(at, 404, `{"Code":10010200001}`), "Forbidden", true, "private, or gated"},
		"no access, said in 200": {sourcetest.Lie(at, 200, `{"Code":10010200001}`), "Forbidden", true, "private, or gated"},
		"no revision":            {sourcetest.Lie(at, 404, `{"Code":10990101004}`), "NotFound", true, "correct what follows the @"},
		"no files":               {sourcetest.Lie(at, 200, `{"Code":200,"Data":{"Files":null}}`), "NotFound", true, "correct what follows the @"},
		"403":                    {sourcetest.Lie(at, 403, "<html>"), "Forbidden", true, "(cache.sources.ms.tokenFile)"},
		"refused":                {sourcetest.Lie(at, 400, ""), "Refused", true, ""},
		"throttled":              {sourcetest.Lie(at, 429, "", "Retry-After: 7"), "Throttled", false, ""},
		"broken":                 {sourcetest.Lie(at, 502, ""), "Unavailable", false, ""},
		"a web page":             {sourcetest.Lie(at, 200, "<html>"), "WrongAnswer", false, "check the endpoint"},
		"gzip unasked":           {sourcetest.Lie(at, 200, "x", "Content-Encoding: gzip"), "Encoded", true, ""},
		"10 MB of JSON":          {sourcetest.Lie(at, 200, `{"Code":200`+strings.Repeat(" ", 10<<20)), "TooLarge", true, "larger than 8 MiB"},
		"climbing path":          {sourcetest.Lie(at, 200, list(blob("../../etc/passwd"))), "BadPath", true, "leaves the model's directory"},
		"absolute path":          {sourcetest.Lie(at, 200, list(blob("/etc/passwd"))), "BadPath", true, "is absolute"},
		"one path twice":         {sourcetest.Lie(at, 200, list(blob("a")+","+blob("a"))), "BadPath", true, "there twice"},
		"a submodule":            {sourcetest.Lie(at, 200, list(`{"Type":"commit","Path":"a"}`)), "WrongAnswer", false, `"a" is a "commit"`},
		"a digest that is none":  {sourcetest.Lie(at, 200, list(`{"Type":"blob","Path":"a","Sha256":"****"}`)), "WrongAnswer", false, "want 64 hexadecimal digits"},
		"redirect for ever":      {sourcetest.Lie(at, 307, "", "Location: /again/repo/files?sig=SECRET"), "TooManyRedirects", true, ""},
		"no answer":              {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, "Unreachable", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			h.put("org/m", "master", files)
			h.Lie = c.lie
			_, err := newSource(t, ms.Config{Endpoint: h.URL}).Resolve(t.Context(), sourcetest.Ref(t, "ms://org/m"))
			sourcetest.Fails(t, err, c.reason, c.final, c.text)
		})
	}
}

func TestAReadIsHeldToWhatWasAsked(t *testing.T) {
	t.Parallel()
	const direct = "/repo"
	cdn := func(status int, body string, headers ...string) func(http.ResponseWriter, *http.Request) bool {
		return sourcetest.Lie("/prod/", status, body, headers...)
	}
	ok := "Content-Range: bytes 5-9/5000"
	for name, c := range map[string]struct {
		lie    func(http.ResponseWriter, *http.Request) bool
		reason string
		final  bool
		text   string
	}{
		"200 to a range":        {cdn(200, "0123456789"), "RangeIgnored", false, ""},
		"an error as a file":    {sourcetest.Lie(direct, 200, `{"Code":10990101007}`), "RangeIgnored", false, ""},
		"206 at another offset": {cdn(206, "45678", "Content-Range: bytes 4-8/5000"), "WrongRange", false, ""},
		"206 of another size":   {cdn(206, "56789", "Content-Range: bytes 5-9/5001"), "Changed", false, ""},
		"a length that lies":    {cdn(206, "567", ok, "Content-Length: 3"), "WrongLength", false, "announces 3"},
		"gzip unasked":          {cdn(206, "56789", ok, "Content-Encoding: gzip"), "Encoded", true, ""},
		"a signature refused":   {cdn(403, ""), "Expired", false, "the signed address that the hub gave is not accepted"},
		"416":                   {cdn(416, ""), "Changed", false, "shorter"},
		"history was rewritten": {sourcetest.Lie(direct, 404, `{"Code":10990101004}`), "Changed", false, "the commit is gone"},
		"a file that went":      {sourcetest.Lie(direct, 404, `{"Code":10990101007}`), "Changed", false, ""},
		"access that was lost":  {sourcetest.Lie(direct, 404, `{"Code":10010200001}`), "Forbidden", true, "private, or gated"},
		"the repository went":   {sourcetest.Lie(direct, 404, `{"Code":10010205001}`), "Changed", false, "it is gone"},
		"throttled":             {sourcetest.Lie(direct, 429, "", "Retry-After: 7"), "Throttled", false, ""},
		"off encryption":        {sourcetest.Lie(direct, 302, "", "Location: ftp://h/?sig=SECRET"), "UnknownScheme", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			h.put("org/m", "master", files)
			s, r := newSource(t, ms.Config{Endpoint: h.URL}), sourcetest.Ref(t, "ms://org/m")
			m, err := s.Resolve(t.Context(), r)
			require.NoError(t, err)
			h.Lie = c.lie
			_, err = sourcetest.Read(t, s, r, m.Files[1], 5, 5)
			sourcetest.Fails(t, err, c.reason, c.final, c.text)
		})
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"ms://org/m/sub/dir": "want ms://organization/name",
		"ms://m":             "want ms://organization/name",
		"ms://org/..":        "want ms://organization/name",
		"ms://org/m@":        "want a branch, a tag or a commit",
		"ms://org/m?a=b":     "want include=<pattern>",
	} {
		_, err := newSource(t, ms.Config{}).Resolve(t.Context(), sourcetest.Ref(t, source))
		require.Equal(t, "BadSource", model.ReasonOf(err), source)
		require.True(t, model.IsFinal(err))
		require.ErrorContains(t, err, want, source)
		require.EqualError(t, ms.Check(sourcetest.Ref(t, source)), err.Error())
	}
	sourcetest.Refused(t, ms.Check, map[string]string{
		"ms://org/m": "", "ms://org/m@v1": "", "ms://org/m#sha256=" + strings.Repeat("0", 64): "BadSource ms://org/m: a hub takes no #sha256",
	})
	h := newHub(t)
	h.put("org/m", "master", files)
	h.repos["org/m"].private = true
	file := sourcetest.Secret(t, "other")
	_, err := newSource(t, ms.Config{Endpoint: h.URL, TokenFile: file}).Resolve(t.Context(), sourcetest.Ref(t, "ms://org/m"))
	require.Equal(t, "Forbidden", model.ReasonOf(err))
	require.ErrorContains(t, err, "put one that may read it into "+file)
	_, err = ms.New(ms.Config{Endpoint: "http://192.0.2.1", TokenFile: file})
	require.EqualError(t, err, "ms source: tokenFile: the token is not sent to 192.0.2.1 over plain http: use https, or no token file")
	_, err = ms.New(ms.Config{Endpoint: "modelscope.cn"})
	require.EqualError(t, err, "ms source: endpoint: want http(s)://host[:port] without credentials, such as https://modelscope.cn")
}

func TestARepositoryThatIsDeletedAfterItWasResolved(t *testing.T) {
	h := newHub(t)
	h.put("org/m", "master", map[string][]byte{"config.json": []byte("{}   ")})
	sourcetest.Gone(t, newSource(t, ms.Config{Endpoint: h.URL}), sourcetest.Ref(t, "ms://org/m"), h.Answer)
}

func TestAnAnswerThatIsNone(t *testing.T) {
	h := newHub(t)
	sourcetest.Unexpected(t, newSource(t, ms.Config{Endpoint: h.URL}), sourcetest.Ref(t, "ms://org/m"), h.Listener.Addr().String(), h.Answer)
}
