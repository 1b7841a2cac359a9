package s3_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/s3"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// refuse is how S3 says no.
func refuse(status int, code string, headers ...string) http.HandlerFunc {
	return sourcetest.Answer(status, fmt.Sprintf(`<?xml version="1.0"?><Error><Code>%s</Code><Message>because</Message></Error>`, code),
		append(headers, "Content-Type: application/xml")...)
}

func TestOpenHoldsTheStoreToWhatWasAsked(t *testing.T) {
	t.Parallel()
	const tag = `ETag: "v1"`
	ok := "Content-Range: bytes 5-9/20"
	late := time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)
	for name, c := range map[string]struct {
		serve  http.HandlerFunc
		reason string
		final  bool
		text   string
	}{
		"200 to a range":        {sourcetest.Answer(200, "0123456789abcdefghij", tag), "RangeIgnored", false, "object llama/m.bin"},
		"other start":           {sourcetest.Answer(206, "45678", tag, "Content-Range: bytes 4-8/20"), "WrongRange", false, `"bytes 4-8/20"`},
		"other total":           {sourcetest.Answer(206, "56789", tag, "Content-Range: bytes 5-9/21"), "WrongRange", false, ""},
		"too short":             {sourcetest.Answer(206, "567", tag, ok, "Content-Length: 3"), "WrongLength", false, "announces 3"},
		"too long":              {sourcetest.Answer(206, "56789a", tag, ok, "Content-Length: 6"), "WrongLength", false, "announces 6"},
		"another ETag":          {sourcetest.Answer(206, "56789", `ETag: "v2"`, ok), "Changed", false, `ETag "v2", was "v1"`},
		"no ETag":               {sourcetest.Answer(206, "56789", ok), "Changed", false, ""},
		"stored as gzip":        {sourcetest.Answer(206, "56789", tag, ok, "Content-Encoding: gzip"), "Encoded", true, `object llama/m.bin is stored with Content-Encoding "gzip": upload it without`},
		"precondition failed":   {refuse(412, "PreconditionFailed"), "Changed", false, "changed since it was resolved"},
		"shrunk":                {refuse(416, "InvalidRange"), "Changed", false, ""},
		"no such key":           {refuse(404, "NoSuchKey"), "Changed", false, "changed since it was resolved: it is gone: 404 Not Found: NoSuchKey: because"},
		"no such bucket":        {refuse(404, "NoSuchBucket"), "Changed", false, "NoSuchBucket"},
		"404 of a proxy":        {sourcetest.Answer(404, "<html>"), "Changed", false, ""},
		"denied":                {refuse(403, "AccessDenied"), "Forbidden", true, "check the credentials"},
		"wrong key":             {refuse(403, "InvalidAccessKeyId"), "Forbidden", true, ""},
		"clock":                 {refuse(403, "RequestTimeTooSkewed"), "ClockSkew", false, "clock is off"},
		"a clock an hour ahead": {refuse(403, "RequestTimeTooSkewed", "Date: "+late), "ClockSkew", false, "ahead of the server's: set it right"},
		"and not said so":       {refuse(403, "SignatureDoesNotMatch", "Date: "+late), "ClockSkew", false, "ahead of the server's"},
		"an expired token":      {refuse(400, "ExpiredToken"), "Expired", false, "the credentials have expired: renew them"},
		"archived":              {refuse(403, "InvalidObjectState"), "Archived", true, "restore it first"},
		"other region":          {refuse(301, "PermanentRedirect", "X-Amz-Bucket-Region: eu-west-1"), "WrongRegion", true, `set the region to "eu-west-1"`},
		"malformed region":      {refuse(400, "AuthorizationHeaderMalformed"), "WrongRegion", true, "another region"},
		"slow down":             {refuse(503, "SlowDown", "Retry-After: 7"), "Throttled", false, "SlowDown: because"},
		"429":                   {sourcetest.Answer(429, "", "Retry-After: 7"), "Throttled", false, ""},
		"internal error":        {refuse(500, "InternalError"), "Unavailable", false, ""},
		"bad gateway":           {sourcetest.Answer(502, "<html>"), "Unavailable", false, ""},
		"400":                   {refuse(400, "InvalidRequest"), "Refused", true, ""},
		"a redirect to nowhere": {sourcetest.Answer(302, "", "Location: http://h:bad/?sig=SECRET"), "Unreachable", false, "not valid HTTP"},
		"no answer":             {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "Unreachable", false, "llama/m.bin"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				c.serve(w, r)
			}))
			defer srv.Close()
			f := model.File{Path: "m.bin", Key: "llama/m.bin", Size: 20, Version: "v1"}
			_, err := newSource(t, srv.URL).Open(t.Context(), sourcetest.Ref(t, "s3://models/llama"), f, 5, 5)
			sourcetest.Fails(t, err, c.reason, c.final, c.text)
			require.EqualValues(t, 1, asked.Load(), "the fetcher retries, not the source")
		})
	}
}

func TestAPageIsNoObject(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(sourcetest.Answer(200, "<html>", `ETag: "v1"`, "Content-Type: text/html; charset=utf-8"))
	defer srv.Close()
	source := newSource(t, srv.URL)
	_, err := source.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/llama/m.bin"))
	sourcetest.Fails(t, err, "WrongAnswer", false, "object llama/m.bin: a web page (text/html) and not a file: check the endpoint and what stands between; a page that is wanted is named with its #sha256")
	for _, wanted := range []string{"s3://models/about.html", "s3://models/m.bin#sha256=" + strings.Repeat("0", 64)} {
		m, err := source.Resolve(t.Context(), sourcetest.Ref(t, wanted))
		require.NoError(t, err)
		require.EqualValues(t, len("<html>"), m.Size())
	}
}

func TestABodyThatIsCutOffIsAnError(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(sourcetest.Answer(206, "567", `ETag: "v1"`, "Content-Range: bytes 5-9/20", "Content-Length: 5"))
	defer srv.Close()
	f := model.File{Path: "m", Key: "m", Size: 20, Version: "v1"}
	body, err := newSource(t, srv.URL).Open(t.Context(), sourcetest.Ref(t, "s3://models/m"), f, 5, 5)
	require.NoError(t, err)
	defer body.Close()
	got, err := io.ReadAll(body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Equal(t, "567", string(got))
}

func TestSignaturesStayAtTheEndpoint(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("asked elsewhere, with %q", r.Header.Get("Authorization"))
	}))
	defer other.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Authorization"), "AKIDTEST") {
			t.Errorf("not signed: %q", r.Header.Get("Authorization"))
		}
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	}))
	defer srv.Close()
	f := model.File{Path: "m", Key: "m", Size: 20, Version: "v1"}
	_, err := newSource(t, srv.URL).Open(t.Context(), sourcetest.Ref(t, "s3://models/m"), f, 5, 5)
	require.Equal(t, "WrongRegion", model.ReasonOf(err), "%v", err)
}

func TestAnonymousSignsNothing(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "" {
			t.Errorf("signed: %q", got)
		}
		refuse(404, "NoSuchBucket")(w, r)
	}))
	defer srv.Close()
	s, err := s3.New(s3.Config{Endpoint: srv.URL, Anonymous: true, PathStyle: true})
	require.NoError(t, err)
	defer s.CloseIdle()
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/m/"))
	require.Equal(t, "NotFound", model.ReasonOf(err))
	require.ErrorContains(t, err, "NoSuchBucket")
}

func TestAnObjectThatIsDeletedAfterItWasResolved(t *testing.T) {
	endpoint, put := store(t)
	put("llama/m.bin", []byte("weights"), nil)
	target, err := url.Parse(endpoint)
	require.NoError(t, err)
	var st sourcetest.Standin
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
	}}
	srv := st.Serve(t, proxy.ServeHTTP)
	for _, ref := range []string{"s3://models/llama", "s3://models/llama/m.bin"} {
		sourcetest.Gone(t, newSource(t, srv.URL), sourcetest.Ref(t, ref), st.Answer)
		st.Lie = nil
	}
}

func TestAnAnswerThatIsNone(t *testing.T) {
	var st sourcetest.Standin
	srv := st.Serve(t, http.NotFound)
	for _, ref := range []string{"s3://models/llama", "s3://models/llama/"} {
		sourcetest.Unexpected(t, newSource(t, srv.URL), sourcetest.Ref(t, ref), srv.Listener.Addr().String(), st.Answer)
	}
}
