package http_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	nethttp "net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/http"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const text = "0123456789abcdefghij"

func TestOpenHoldsTheServerToWhatWasAsked(t *testing.T) {
	t.Parallel()
	const tag = `ETag: "v1"`
	ok := "Content-Range: bytes 5-9/20"
	for name, c := range map[string]struct {
		serve  nethttp.HandlerFunc
		reason string
		final  bool
		text   string
	}{
		"200 to a range":        {sourcetest.Answer(200, text, tag), "RangeIgnored", false, "turn on range requests"},
		"200 of the right size": {sourcetest.Answer(200, "56789", tag), "RangeIgnored", false, ""},
		"other start":           {sourcetest.Answer(206, "45678", tag, "Content-Range: bytes 4-8/20"), "WrongRange", false, `"bytes 4-8/20"`},
		"other end":             {sourcetest.Answer(206, "5678", tag, "Content-Range: bytes 5-8/20"), "WrongRange", false, ""},
		"other total":           {sourcetest.Answer(206, "56789", tag, "Content-Range: bytes 5-9/21"), "Changed", false, "size 21, was 20"},
		"unknown total":         {sourcetest.Answer(206, "56789", tag, "Content-Range: bytes 5-9/*"), "WrongRange", false, ""},
		"no content range":      {sourcetest.Answer(206, "56789", tag), "WrongRange", false, ""},
		"garbage range":         {sourcetest.Answer(206, "56789", tag, "Content-Range: bytes x-y/z"), "WrongRange", false, ""},
		"too short":             {sourcetest.Answer(206, "567", tag, ok, "Content-Length: 3"), "WrongLength", false, "announces 3"},
		"too long":              {sourcetest.Answer(206, "56789a", tag, ok, "Content-Length: 6"), "WrongLength", false, "announces 6"},
		"gzip unasked":          {sourcetest.Answer(206, "56789", tag, ok, "Content-Encoding: gzip"), "Encoded", true, "turn compression off"},
		"another ETag":          {sourcetest.Answer(206, "56789", `ETag: "v2"`, ok), "Changed", false, `version "v2", was "v1"`},
		"no ETag":               {sourcetest.Answer(206, "56789", ok), "Changed", false, "version none"},
		"weak ETag":             {sourcetest.Answer(206, "56789", `ETag: W/"v1"`, ok), "Changed", false, ""},
		"412":                   {sourcetest.Answer(412, ""), "Changed", false, ""},
		"416":                   {sourcetest.Answer(416, ""), "Changed", false, "shorter"},
		"404":                   {sourcetest.Answer(404, ""), "Changed", false, "it is gone"},
		"410":                   {sourcetest.Answer(410, ""), "Changed", false, ""},
		"401":                   {sourcetest.Answer(401, ""), "Forbidden", true, "token file"},
		"403":                   {sourcetest.Answer(403, ""), "Forbidden", true, "token file"},
		"400":                   {sourcetest.Answer(400, ""), "Refused", true, ""},
		"429":                   {sourcetest.Answer(429, "", "Retry-After: 7"), "Throttled", false, ""},
		"503":                   {sourcetest.Answer(503, "", "Retry-After: 7"), "Throttled", false, ""},
		"500":                   {sourcetest.Answer(500, ""), "Unavailable", false, ""},
		"501":                   {sourcetest.Answer(501, ""), "Unavailable", false, ""},
		"204":                   {sourcetest.Answer(204, ""), "WrongAnswer", false, ""},
		"304":                   {sourcetest.Answer(304, ""), "WrongAnswer", false, ""},
		"no answer":             {func(nethttp.ResponseWriter, *nethttp.Request) { panic(nethttp.ErrAbortHandler) }, "Unreachable", false, ""},
		"redirect for ever": {func(w nethttp.ResponseWriter, r *nethttp.Request) {
			nethttp.Redirect(w, r, "/again?sig=SECRET", nethttp.StatusFound)
		}, "TooManyRedirects", true, ""},
		"a reason phrase of its own": {func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			conn, _, err := w.(nethttp.Hijacker).Hijack()
			if err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 404 \x1b[31mPWNED\r\nContent-Length: 0\r\n\r\n")
				conn.Close()
			}
		}, "Changed", false, "404 Not Found: changed since"},
		"a redirect to nowhere": {sourcetest.Answer(302, "", "Location: http://h:bad/?sig=SECRET"), "Unreachable", false, "not valid HTTP"},
		"redirect off http":     {sourcetest.Answer(302, "", "Location: ftp://example.com/?sig=SECRET"), "UnknownScheme", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(c.serve)
			defer srv.Close()
			ref := sourcetest.Ref(t, srv.URL+"/m.bin?sig=SECRET")
			f := model.File{Path: "m.bin", Key: "/m.bin", Size: 20, Version: `"v1"`}
			_, err := newSource(t, http.Config{}).Open(t.Context(), ref, f, 5, 5)
			sourcetest.Fails(t, err, c.reason, c.final, c.text)
		})
	}
}

func TestABodyIsNeverTakenForMoreThanItIs(t *testing.T) {
	t.Parallel()
	chunked := func(body string) nethttp.HandlerFunc {
		return func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			w.Header().Set("Content-Range", "bytes 5-9/20")
			w.WriteHeader(206)
			w.(nethttp.Flusher).Flush()
			_, _ = io.WriteString(w, body)
		}
	}
	cut := func(w nethttp.ResponseWriter, _ *nethttp.Request) {
		w.Header().Set("Content-Range", "bytes 5-9/20")
		w.Header().Set("Content-Length", "5")
		w.WriteHeader(206)
		_, _ = io.WriteString(w, "567")
	}
	for name, c := range map[string]struct {
		serve nethttp.HandlerFunc
		got   string
		err   string
	}{
		"cut off":             {cut, "567", "unexpected EOF"},
		"chunked":             {chunked("56789"), "56789", ""},
		"chunked, too short":  {chunked("567"), "567", "unexpected EOF"},
		"chunked, too long":   {chunked("56789a"), "56789", "more than asked"},
		"chunked and nothing": {chunked(""), "", "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(c.serve)
			defer srv.Close()
			body, err := newSource(t, http.Config{}).Open(t.Context(), sourcetest.Ref(t, srv.URL+"/m"), model.File{Path: "m", Key: "/m", Size: 20}, 5, 5)
			require.NoError(t, err)
			defer body.Close()
			got, err := io.ReadAll(body)
			require.Equal(t, c.got, string(got))
			if c.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.err)
			}
		})
	}
}

func TestResolveFindsTheSizeOfOneFile(t *testing.T) {
	t.Parallel()
	byMethod := func(head, get nethttp.HandlerFunc) nethttp.HandlerFunc {
		return func(w nethttp.ResponseWriter, r *nethttp.Request) {
			if r.Method == nethttp.MethodHead {
				head(w, r)
				return
			}
			get(w, r)
		}
	}
	chunked := func(w nethttp.ResponseWriter, _ *nethttp.Request) {
		w.(nethttp.Flusher).Flush()
		_, _ = io.WriteString(w, text)
	}
	first := sourcetest.Answer(206, "0", "Content-Range: bytes 0-0/20", `ETag: "v1"`)
	for name, c := range map[string]struct {
		serve   nethttp.HandlerFunc
		size    int64
		version string
		reason  string
	}{
		"HEAD":                     {sourcetest.Answer(200, "", "Content-Length: 20", `ETag: "v1"`), 20, `"v1"`, ""},
		"a date is a version":      {sourcetest.Answer(200, "", "Content-Length: 20", `ETag: W/"v1"`, "Last-Modified: Mon, 02 Jan 2006 15:04:05 GMT"), 20, "Mon, 02 Jan 2006 15:04:05 GMT", ""},
		"no version":               {sourcetest.Answer(200, "", "Content-Length: 20"), 20, "", ""},
		"HEAD forbidden":           {byMethod(sourcetest.Answer(403, ""), first), 20, `"v1"`, ""},
		"HEAD not allowed":         {byMethod(sourcetest.Answer(405, ""), first), 20, `"v1"`, ""},
		"HEAD without a size":      {byMethod(chunked, first), 20, `"v1"`, ""},
		"HEAD says 0":              {byMethod(sourcetest.Answer(200, "", "Content-Length: 0"), first), 20, `"v1"`, ""},
		"HEAD gzip, GET not":       {byMethod(sourcetest.Answer(200, "", "Content-Length: 9", "Content-Encoding: gzip"), first), 20, `"v1"`, ""},
		"empty":                    {byMethod(sourcetest.Answer(200, ""), sourcetest.Answer(416, "", "Content-Range: bytes */0")), 0, "", ""},
		"empty, range ignored":     {byMethod(sourcetest.Answer(200, ""), sourcetest.Answer(200, "", "Content-Length: 0")), 0, "", ""},
		"no range, but size":       {byMethod(sourcetest.Answer(405, ""), sourcetest.Answer(200, text)), 20, "", ""},
		"no size at all":           {chunked, 0, "", "NoSize"},
		"both forbidden":           {sourcetest.Answer(403, ""), 0, "", "Forbidden"},
		"not there":                {sourcetest.Answer(404, ""), 0, "", "NotFound"},
		"gzip on GET":              {byMethod(sourcetest.Answer(405, ""), sourcetest.Answer(206, "x", "Content-Range: bytes 0-0/20", "Content-Encoding: gzip")), 0, "", "Encoded"},
		"throttled":                {sourcetest.Answer(429, ""), 0, "", "Throttled"},
		"not implemented anywhere": {sourcetest.Answer(501, ""), 0, "", "Unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(c.serve)
			defer srv.Close()
			hex := strings.Repeat("ab", 32)
			m, err := newSource(t, http.Config{}).Resolve(t.Context(), sourcetest.Ref(t, srv.URL+"/dir/m%20x.bin?sig=SECRET#sha256="+hex))
			if c.reason != "" {
				require.Equal(t, c.reason, model.ReasonOf(err), "%v", err)
				require.NotContains(t, err.Error(), "SECRET")
				return
			}
			require.NoError(t, err)
			require.Equal(t, []model.File{{Path: "m x.bin", Key: "/dir/m%20x.bin", Size: c.size, Version: c.version, Digest: model.Digest(hex)}}, m.Files)
		})
	}
}

// The page about a model, a login or a portal is not the file that was asked for.
func TestAWebPageIsNoModel(t *testing.T) {
	t.Parallel()
	const page, what = "<html>login</html>", ": a web page (text/html) and not a file: "
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(page)))
	const otherwise = "name the file's own address, or look at what stands between; a page that is wanted is named with its #sha256"
	for path, c := range map[string]struct{ kind, want string }{
		"/html":                     {"text/html", what + otherwise},
		"/m.gguf?sig=SECRET":        {"Text/HTML; charset=utf-8", what + otherwise},
		"/m.bin":                    {"application/xhtml+xml", ": a web page (application/xhtml+xml) and not a file: " + otherwise},
		"/m.html.bin":               {"text/html", what + otherwise},
		"/m.pt":                     {"TEXT/html ; charset", what + otherwise},
		"/m.onnx":                   {"text/html;charset=utf-8;charset=utf-8", what + otherwise},
		"/a.html":                   {"text/html", ""},
		"/a.HTM":                    {"text/html", ""},
		"/a.xhtml":                  {"application/xhtml+xml", ""},
		"/pinned#sha256=" + digest:  {"text/html", ""},
		"/README.txt":               {"text/plain", ""},
		"/nonsense":                 {"text/html/x", ""},
		"/none":                     {"", ""},
		"/listed/":                  {"text/html", ""}, // the digest decides
		"/listed/" + model.SumsName: {"text/html", ""},
		"/login/" + model.SumsName:  {"text/html", what + otherwise},
		"/log/" + model.SumsName:    {"text/plain", model.SumsName + ": line 1"},
	} {
		serve := func(w nethttp.ResponseWriter, r *nethttp.Request) {
			w.Header()["Content-Type"] = []string{c.kind}
			if strings.HasPrefix(r.URL.Path, "/listed/") && strings.HasSuffix(r.URL.Path, model.SumsName) {
				_, _ = io.WriteString(w, digest+"  page\n")
				return
			}
			nethttp.ServeContent(w, r, "", time.Time{}, strings.NewReader(page))
		}
		srv := httptest.NewServer(nethttp.HandlerFunc(serve))
		_, err := newSource(t, http.Config{}).Resolve(t.Context(), sourcetest.Ref(t, srv.URL+path))
		srv.Close()
		if c.want == "" {
			require.NoError(t, err, path)
			continue
		}
		if c.kind == "text/plain" {
			sourcetest.Fails(t, err, "BadSums", true, c.want)
			continue
		}
		name, _, _ := strings.Cut(path, "?")
		sourcetest.Fails(t, err, "WrongAnswer", true, srv.URL+name+c.want)
	}
}

// A HEAD may be of another kind than what is read, and an empty file's 416 comes with a page.
func TestAPageIsOneToARead(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		serve nethttp.HandlerFunc
		size  int64
	}{
		"HEAD is a page": {func(w nethttp.ResponseWriter, r *nethttp.Request) {
			w.Header().Set("Content-Type", map[bool]string{true: "text/html", false: "application/octet-stream"}[r.Method == nethttp.MethodHead])
			nethttp.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
		}, 20},
		"empty": {func(w nethttp.ResponseWriter, r *nethttp.Request) {
			if r.Method == nethttp.MethodHead {
				return
			}
			sourcetest.Answer(416, "<html>", "Content-Type: text/html", "Content-Range: bytes */0")(w, r)
		}, 0},
	} {
		srv := httptest.NewServer(c.serve)
		m, err := newSource(t, http.Config{}).Resolve(t.Context(), sourcetest.Ref(t, srv.URL+"/m"))
		srv.Close()
		require.NoError(t, err, name)
		require.Equal(t, c.size, m.Files[0].Size, name)
	}
}

// Whoever copies the address of a hub's page is told how to write the model; who is led elsewhere, where to.
func TestAPageOfAHubNamesTheModel(t *testing.T) {
	t.Parallel()
	proxy := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		switch {
		case r.Host == "hf.co":
			nethttp.Redirect(w, r, "http://huggingface.co"+r.URL.Path, nethttp.StatusFound)
		case strings.HasSuffix(r.URL.Path, ".bin"):
			nethttp.Redirect(w, r, "http://portal.example/login?from=SECRET", nethttp.StatusFound)
		default:
			sourcetest.Answer(200, "<html>", "Content-Type: text/html")(w, r)
		}
	}))
	defer proxy.Close()
	s := newSource(t, http.Config{AllowPlain: true, Proxy: proxy.URL})
	const page, moved = ": a web page (text/html) and not a file: write ", ": a web page of huggingface.co (text/html) and not a file: write "
	const portal = ": a web page of portal.example (text/html) and not a file: name the file's own address, or look at what stands between"
	for address, want := range map[string]string{
		"http://huggingface.co/org/name":                    page + "hf://org/name for the model",
		"http://huggingface.co/org/name/tree/main":          page + "hf://org/name for the model",
		"http://hf.co/org/name/blob/main/config.json":       moved + "hf://org/name for the model",
		"http://huggingface.co/datasets/org/name":           page + "hf://organization/name for the model",
		"http://huggingface.co/models":                      page + "hf://organization/name for the model",
		"http://www.modelscope.cn/models/org/name/summary":  page + "ms://org/name for the model",
		"http://modelscope.cn/models/org/name":              page + "ms://org/name for the model",
		"http://modelscope.cn/home":                         page + "ms://organization/name for the model",
		"http://huggingface.co/org/name/resolve/main/m.bin": portal,
		"http://models.example/m.bin":                       portal,
	} {
		_, err := s.Resolve(t.Context(), sourcetest.Ref(t, address))
		sourcetest.Fails(t, err, "WrongAnswer", true, address+want)
	}
}

func TestResolveRefusesABadListOfFiles(t *testing.T) {
	t.Parallel()
	hex := strings.Repeat("ab", 32)
	for name, c := range map[string]struct {
		serve  nethttp.HandlerFunc
		ref    string
		reason string
		text   string
	}{
		"traversal":    {sourcetest.Answer(200, hex+"  ../../etc/passwd\n"), "/d/", "BadSums", "line 1: file path"},
		"a web page":   {sourcetest.Answer(200, "<html>"), "/d/", "WrongAnswer", "/d/SHA256SUMS: a web page (text/html) and not a file: "},
		"too large":    {sourcetest.Answer(200, strings.Repeat(" \n", 9_000_000)), "/d/SHA256SUMS", "BadSums", "larger than 16 MiB"},
		"not there":    {sourcetest.Answer(404, ""), "/d/", "NotFound", "/d/SHA256SUMS: not there: a directory needs one"},
		"other digest": {sourcetest.Answer(200, hex+"  a\n"), "/d/#sha256=" + hex, "WrongDigest", "the source says abab"},
		"root":         {sourcetest.Answer(200, ""), "", "BadSums", "/SHA256SUMS: it lists no file"},
		"a bad name":   {sourcetest.Answer(200, text), "/d/..%2F..%2Fetc", "BadPath", "leaves the model's directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(c.serve)
			defer srv.Close()
			_, err := newSource(t, http.Config{}).Resolve(t.Context(), sourcetest.Ref(t, srv.URL+c.ref))
			require.Equal(t, c.reason, model.ReasonOf(err), "%v", err)
			require.True(t, model.IsFinal(err))
			require.ErrorContains(t, err, c.text)
		})
	}
}

func TestAReadIsPinned(t *testing.T) {
	t.Parallel()
	var got nethttp.Header
	srv := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		got = r.Header.Clone()
		w.WriteHeader(412)
	}))
	defer srv.Close()
	s := newSource(t, http.Config{UserAgent: "gpu-agent/1.2"})
	f := model.File{Path: "m", Key: "/m", Size: 20, Version: `"v1"`}
	_, err := s.Open(t.Context(), sourcetest.Ref(t, srv.URL+"/m"), f, 5, 5)
	require.Error(t, err)
	require.Equal(t, nethttp.Header{"If-Match": {`"v1"`}, "Range": {"bytes=5-9"},
		"Accept-Encoding": {"identity"}, "User-Agent": {"gpu-agent/1.2"}}, got)

	f.Version = "Mon, 02 Jan 2006 15:04:05 GMT"
	_, err = s.Open(t.Context(), sourcetest.Ref(t, srv.URL+"/m"), f, 0, 20)
	require.Error(t, err)
	require.Equal(t, nethttp.Header{"If-Unmodified-Since": {f.Version},
		"Accept-Encoding": {"identity"}, "User-Agent": {"gpu-agent/1.2"}}, got, "the whole file is asked for without a Range")
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	t.Parallel()
	addrs := map[string]bool{}
	srv := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		addrs[r.RemoteAddr] = true
		nethttp.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
	}))
	defer srv.Close()
	s := newSource(t, http.Config{})
	for i := range int64(5) {
		body, err := s.Open(t.Context(), sourcetest.Ref(t, srv.URL+"/m"), model.File{Path: "m", Key: "/m", Size: 20}, i, 5)
		require.NoError(t, err)
		b := make([]byte, 5)
		_, err = io.ReadFull(body, b) // as the fetcher reads: not to EOF
		require.NoError(t, err)
		require.Equal(t, text[i:i+5], string(b))
		require.NoError(t, body.Close())
	}
	require.Len(t, addrs, 1, fmt.Sprint(addrs))
}

func TestAFileThatIsDeletedAfterItWasResolved(t *testing.T) {
	var st sourcetest.Standin
	srv := st.Serve(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		nethttp.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
	})
	sourcetest.Gone(t, newSource(t, http.Config{}), sourcetest.Ref(t, srv.URL+"/m.bin?sig=SECRET"), st.Answer)
}

func TestAnAnswerThatIsNone(t *testing.T) {
	var st sourcetest.Standin
	srv := st.Serve(t, nethttp.NotFound)
	for _, path := range []string{"/m.bin?sig=SECRET", "/m/?sig=SECRET"} {
		sourcetest.Unexpected(t, newSource(t, http.Config{}), sourcetest.Ref(t, srv.URL+path), srv.Listener.Addr().String(), st.Answer)
	}
}
