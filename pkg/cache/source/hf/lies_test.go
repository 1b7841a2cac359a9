package hf_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hf"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestTheAPIsLiesEndInAReason(t *testing.T) {
	t.Parallel()
	sha := strings.Repeat("a", 40)
	info := func(path string) string {
		return fmt.Sprintf(`[{"type":"file","path":%q,"size":1,"oid":"%s"}]`, path, sha)
	}
	const rev, tree = "/revision/", "/tree/"
	for name, c := range map[string]struct {
		lie    func(http.ResponseWriter, *http.Request) bool
		reason string
		final  bool
		text   string
	}{
		"a web page":            {sourcetest.Lie(rev, 200, "<html>"), "WrongAnswer", false, "check the endpoint"},
		"no commit":             {sourcetest.Lie(rev, 200, `{"sha":"main"}`), "WrongAnswer", false, "it names no commit"},
		"disabled":              {sourcetest.Lie(rev, 200, `{"sha":"`+sha+`","disabled":true}`), "Disabled", true, "take another"},
		"disabled, as a status": {sourcetest.Lie(rev, 403, "", "X-Error-Message: Access to this resource is disabled."), "Disabled", true, ""},
		"gated":                 {sourcetest.Lie(rev, 403, "", "X-Error-Code: GatedRepo"), "Gated", true, "accept its terms"},
		"gated, masked":         {sourcetest.Lie(tree, 200, `[{"type":"file","path":"a","size":1,"oid":"****"}]`), "Gated", true, "accept its terms"},
		"no such repository":    {sourcetest.Lie(rev, 404, "", "X-Error-Code: RepoNotFound"), "NotFound", true, "or a private one"},
		"nothing at all":        {sourcetest.Lie(rev, 404, ""), "NotFound", true, ""},
		"no right":              {sourcetest.Lie(rev, 403, ""), "Forbidden", true, "no right to read"},
		"refused":               {sourcetest.Lie(rev, 400, ""), "Refused", true, ""},
		"throttled":             {sourcetest.Lie(rev, 429, "", `RateLimit: "api";r=0;t=7`), "Throttled", false, "a token of its own may raise it"},
		"busy":                  {sourcetest.Lie(rev, 503, "", "Retry-After: 7"), "Throttled", false, ""},
		"broken":                {sourcetest.Lie(tree, 500, ""), "Unavailable", false, ""},
		"not modified":          {sourcetest.Lie(tree, 304, ""), "WrongAnswer", false, ""},
		"gzip unasked":          {sourcetest.Lie(tree, 200, "x", "Content-Encoding: gzip"), "Encoded", true, "turn compression off"},
		"10 MB of JSON":         {sourcetest.Lie(rev, 200, `{"sha":"`+strings.Repeat(" ", 10<<20)), "TooLarge", true, "larger than 8 MiB"},
		"climbing path":         {sourcetest.Lie(tree, 200, info("../../etc/passwd")), "BadPath", true, "leaves the model's directory"},
		"absolute path":         {sourcetest.Lie(tree, 200, info("/etc/passwd")), "BadPath", true, "is absolute"},
		"a control character":   {sourcetest.Lie(tree, 200, strings.Replace(info("a#[31m"), "#", `\u001b`, 1)), "BadPath", true, ""},
		"one path twice":        {sourcetest.Lie(tree, 200, "["+strings.Trim(info("a"), "[]")+","+strings.Trim(info("a"), "[]")+"]"), "BadPath", true, "there twice"},
		"a submodule":           {sourcetest.Lie(tree, 200, `[{"type":"commit","path":"a"}]`), "WrongAnswer", false, `"a" is a "commit"`},
		"no digest":             {sourcetest.Lie(tree, 200, `[{"type":"file","path":"a","size":1,"oid":"x"}]`), "WrongAnswer", false, "want 40 hexadecimal digits"},
		"no files":              {sourcetest.Lie(tree, 200, `[]`), "Empty", true, "no files"},
		"pages for ever":        {sourcetest.Lie(tree, 200, `[]`, `Link: <https://h/?cursor=1>; rel="next"`), "TooManyFiles", true, "4000 pages"},
		"redirect for ever":     {sourcetest.Lie(rev, 307, "", "Location: /again/revision/?sig=SECRET"), "TooManyRedirects", true, ""},
		"redirect to nowhere":   {sourcetest.Lie(rev, 302, "", "Location: http://h:bad/?sig=SECRET"), "Unreachable", false, "not valid HTTP"},
		"redirect off http":     {sourcetest.Lie(rev, 302, "", "Location: ftp://h/?sig=SECRET"), "UnknownScheme", true, ""},
		"no answer":             {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, "Unreachable", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			h.put("org/m", "main", files)
			h.Lie = c.lie
			_, err := newSource(t, hf.Config{Endpoint: h.URL}).Resolve(t.Context(), sourcetest.Ref(t, "hf://org/m"))
			sourcetest.Fails(t, err, c.reason, c.final, c.text)
		})
	}
}

func TestAReadIsHeldToWhatWasAsked(t *testing.T) {
	t.Parallel()
	const cdn, direct = "/xet-bridge/", "/resolve/"
	ok := "Content-Range: bytes 5-9/5000"
	for name, c := range map[string]struct {
		lie    func(http.ResponseWriter, *http.Request) bool
		reason string
		final  bool
		text   string
	}{
		"200 to a range":         {sourcetest.Lie(cdn, 200, "0123456789"), "RangeIgnored", false, "turn on range requests"},
		"200 of the hub itself":  {sourcetest.Lie(direct, 200, "56789"), "RangeIgnored", false, ""},
		"206 at another offset":  {sourcetest.Lie(cdn, 206, "45678", "Content-Range: bytes 4-8/5000"), "WrongRange", false, `"bytes 4-8/5000"`},
		"206 of another size":    {sourcetest.Lie(cdn, 206, "56789", "Content-Range: bytes 5-9/5001"), "Changed", false, "size 5001, was 5000"},
		"206 without a range":    {sourcetest.Lie(cdn, 206, "56789"), "WrongRange", false, ""},
		"a length that lies":     {sourcetest.Lie(cdn, 206, "567", ok, "Content-Length: 3"), "WrongLength", false, "announces 3"},
		"gzip unasked":           {sourcetest.Lie(cdn, 206, "56789", ok, "Content-Encoding: gzip"), "Encoded", true, ""},
		"a signature refused":    {sourcetest.Lie(cdn, 403, ""), "Expired", false, "the signed address that the hub gave is not accepted"},
		"416":                    {sourcetest.Lie(cdn, 416, ""), "Changed", false, "shorter"},
		"429 of the CDN":         {sourcetest.Lie(cdn, 429, "", "Retry-After: 7"), "Throttled", false, ""},
		"500 of the CDN":         {sourcetest.Lie(cdn, 500, ""), "Unavailable", false, ""},
		"204":                    {sourcetest.Lie(cdn, 204, ""), "WrongAnswer", false, ""},
		"redirects for ever":     {sourcetest.Lie(cdn, 302, "", "Location: /xet-bridge/?sig=SECRET"), "TooManyRedirects", true, ""},
		"another commit":         {sourcetest.Lie(direct, 302, "", "Location: http://h/", "X-Repo-Commit: "+strings.Repeat("f", 40)), "Changed", false, "commit"},
		"another size":           {sourcetest.Lie(direct, 302, "", "Location: http://h/", "X-Linked-Size: 1"), "Changed", false, "size"},
		"another object":         {sourcetest.Lie(direct, 302, "", "Location: http://h/", `X-Linked-Etag: W/"`+strings.Repeat("f", 64)+`"`), "Changed", false, "object"},
		"history was rewritten":  {sourcetest.Lie(direct, 404, "", "X-Error-Code: RevisionNotFound"), "Changed", false, "the commit is gone"},
		"a file that went":       {sourcetest.Lie(direct, 404, "", "X-Error-Code: EntryNotFound"), "Changed", false, ""},
		"and who may not know":   {sourcetest.Lie(direct, 401, ""), "Changed", false, "it is gone"}, // without a token
		"access that was lost":   {sourcetest.Lie(direct, 403, "", "X-Error-Code: GatedRepo"), "Gated", true, "accept its terms"},
		"throttled by resolvers": {sourcetest.Lie(direct, 429, "", `RateLimit: "resolvers";r=0;t=7`), "Throttled", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			h.put("org/m", "main", files)
			s, r := newSource(t, hf.Config{Endpoint: h.URL}), sourcetest.Ref(t, "hf://org/m")
			m, err := s.Resolve(t.Context(), r)
			require.NoError(t, err)
			h.Lie = c.lie
			_, err = s.Open(t.Context(), r, m.Files[1], 5, 5)
			sourcetest.Fails(t, err, c.reason, c.final, c.text)
		})
	}
}

func TestASignedAddressServesAllRangesAndIsRenewed(t *testing.T) {
	t.Parallel()
	h, content := newHub(t), bytes.Repeat([]byte("0123456789"), 500)
	h.put("org/m", "main", map[string][]byte{"m.gguf": content})
	s, r := newSource(t, hf.Config{Endpoint: h.URL}), sourcetest.Ref(t, "hf://org/m")
	m, err := s.Resolve(t.Context(), r)
	require.NoError(t, err)
	all := func() {
		var g sync.WaitGroup
		for i := range int64(50) {
			g.Go(func() {
				got, err := sourcetest.Read(t, s, r, m.Files[0], i*100, 100)
				if err != nil || !bytes.Equal(got, content[i*100:i*100+100]) {
					t.Errorf("range %d: %d bytes, error %v", i, len(got), err)
				}
			})
		}
		g.Wait()
	}
	all()
	require.Equal(t, 1, h.Count(h.Server, "/resolve/"), "asked for once, not once a range")
	require.Equal(t, 50, h.Count(h.cdn, "/xet-bridge/"))

	clear(h.signed) // all expired, in the middle of the file
	all()
	require.Equal(t, 2, h.Count(h.Server, "/resolve/"), "and once more for all")
}

func TestALimitThatIsUsedUpIsLeftAlone(t *testing.T) {
	for name, limit := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"refused": sourcetest.Lie("/resolve/", 429, "", `RateLimit: "resolvers";r=0;t=55`),
		"the last that was granted": func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/resolve/") {
				w.Header().Set("RateLimit", `"resolvers";r=0;t=55`)
			}
			return false
		},
	} {
		h := newHub(t)
		h.put("org/m", "main", files)
		s, r := newSource(t, hf.Config{Endpoint: h.URL}), sourcetest.Ref(t, "hf://org/m")
		m, err := s.Resolve(t.Context(), r)
		require.NoError(t, err)
		h.Lie = limit
		_, err = sourcetest.Read(t, s, r, m.Files[0], 0, 7)
		require.Equal(t, name == "refused", err != nil)
		for range 5 {
			_, err = sourcetest.Read(t, s, r, m.Files[0], 0, 7)
			require.Equal(t, "Throttled", model.ReasonOf(err), name)
			require.InDelta(t, 55, model.RetryAfter(err).Seconds(), 5)
			require.ErrorContains(t, err, "its limit of requests is used up for another")
		}
		require.Equal(t, 1, h.Count(h.Server, "/resolve/"), name)
		_, err = s.Resolve(t.Context(), r)
		require.NoError(t, err, "the API has a limit of its own")
	}
}

func TestAHubIsNotLeftAloneForEver(t *testing.T) {
	for _, forEver := range []string{"2000000000", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		h := newHub(t)
		h.put("org/m", "main", files)
		h.Lie = sourcetest.Lie("/api/", 429, "", "Retry-After: "+forEver)
		s, r := newSource(t, hf.Config{Endpoint: h.URL}), sourcetest.Ref(t, "hf://org/m")
		for range 2 { // as it answers, and what is kept of that
			_, err := s.Resolve(t.Context(), r)
			require.Equal(t, "Throttled", model.ReasonOf(err))
			require.InDelta(t, time.Hour, model.RetryAfter(err), float64(time.Minute))
		}
	}
}

func TestAMirrorThatFailsIsPassedOver(t *testing.T) {
	const direct, cdn = "/resolve/", "/xet-bridge/"
	for name, c := range map[string]struct {
		lie   func(http.ResponseWriter, *http.Request) bool
		asked int // requests that the mirror gets for 10 ranges of each of 2 files
	}{
		"lacks each file":    {sourcetest.Lie(direct, 404, "", "X-Error-Code: EntryNotFound"), 2},
		"wants a token":      {sourcetest.Lie(direct, 401, ""), 2},
		"is broken":          {sourcetest.Lie(direct, 500, ""), 1},
		"is throttled":       {sourcetest.Lie(direct, 429, "", "Retry-After: 3600"), 1},
		"sends a web page":   {sourcetest.Lie(direct, 200, "<html>"), 1},
		"has another object": {sourcetest.Lie(direct, 302, "", "Location: http://h/", "X-Linked-Size: 1"), 2},
		"signs badly":        {sourcetest.Lie(cdn, 403, ""), 1},
	} {
		t.Run(name, func(t *testing.T) {
			h, mirror := newHub(t), newHub(t)
			big := bytes.Repeat([]byte("0123456789"), 500)
			h.put("org/m", "main", map[string][]byte{"a.gguf": big, "b.gguf": big})
			mirror.repos, mirror.Lie = h.repos, c.lie
			s, r := newSource(t, hf.Config{Endpoint: h.URL, Mirrors: []string{mirror.URL}}), sourcetest.Ref(t, "hf://org/m")
			m, err := s.Resolve(t.Context(), r)
			require.NoError(t, err)
			for i := range int64(10) {
				for _, f := range m.Files {
					got, err := sourcetest.Read(t, s, r, f, i, 100)
					require.NoError(t, err)
					require.Equal(t, big[i:i+100], got)
				}
			}
			require.Equal(t, c.asked, mirror.Count(mirror.Server, direct))
		})
	}
}

func TestAMirrorThatBreaksOff(t *testing.T) {
	h, mirror := newHub(t), newHub(t)
	h.put("org/m", "main", files)
	mirror.repos = h.repos
	mirror.Lie = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/xet-bridge/") {
			return false
		}
		w.Header().Set("Content-Range", "bytes 0-999/5000")
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(206)
		_, _ = w.Write(make([]byte, 10))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	s, r := newSource(t, hf.Config{Endpoint: h.URL, Mirrors: []string{mirror.URL}}), sourcetest.Ref(t, "hf://org/m")
	m, err := s.Resolve(t.Context(), r)
	require.NoError(t, err)
	got, err := sourcetest.Read(t, s, r, m.Files[1], 0, 1000)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Less(t, len(got), 1000)
	got, err = sourcetest.Read(t, s, r, m.Files[1], 0, 1000) // what the fetcher does
	require.NoError(t, err)
	require.Len(t, got, 1000, "from the endpoint")
}

func TestAMirrorsWrongBytesAreNotFetchedForEver(t *testing.T) {
	h, mirror := newHub(t), newHub(t)
	big := bytes.Repeat([]byte("0123456789"), 500)
	h.put("org/m", "main", map[string][]byte{"a.gguf": big, "b.gguf": big})
	mirror.repos = h.repos
	mirror.Lie = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/xet-bridge/") {
			return false
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, len(big))))
		return true
	}
	s, r := newSource(t, hf.Config{Endpoint: h.URL, Mirrors: []string{mirror.URL}}), sourcetest.Ref(t, "hf://org/m")
	m, err := s.Resolve(t.Context(), r)
	require.NoError(t, err)
	whole := func(f model.File) []byte {
		var all []byte
		for _, part := range [][2]int64{{0, 1000}, {1000, 4000}} {
			got, err := sourcetest.Read(t, s, r, f, part[0], part[1])
			require.NoError(t, err)
			all = append(all, got...)
		}
		return all
	}
	require.NotEqual(t, big, whole(m.Files[0]), "the cache finds that out by the digest")
	require.Equal(t, big, whole(m.Files[0]), "and its next try is the endpoint's")
	require.Equal(t, big, whole(m.Files[0]))
	require.NotEqual(t, big, whole(m.Files[1]), "the mirror is asked for other files all the same")
}

func TestARepositoryThatIsDeletedAfterItWasResolved(t *testing.T) {
	h := newHub(t)
	h.put("org/m", "main", map[string][]byte{"config.json": []byte("{}   ")})
	sourcetest.Gone(t, newSource(t, hf.Config{Endpoint: h.URL}), sourcetest.Ref(t, "hf://org/m"), h.Answer)
}

func TestAnAnswerThatIsNone(t *testing.T) {
	h := newHub(t)
	sourcetest.Unexpected(t, newSource(t, hf.Config{Endpoint: h.URL}), sourcetest.Ref(t, "hf://org/m"), h.Listener.Addr().String(), h.Answer)
}
