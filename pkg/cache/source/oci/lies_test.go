package oci_test

import (
	"io"
	"net/http"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/oci"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const text = "0123456789abcdefghij"

// answer writes an answer with the given headers, "name", "value", ….
func answer(status int, body string, headers ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	}
}

func TestOpenHoldsTheRegistryToWhatWasAsked(t *testing.T) {
	t.Parallel()
	const at = "Content-Range"
	for name, c := range map[string]struct {
		serve  func(http.ResponseWriter, *http.Request) bool
		reason string
		final  bool
		text   string
	}{
		"200 to a range":        {answer(200, text), "RangeIgnored", false, "sends the whole layer"},
		"200 of the right size": {answer(200, "56789"), "RangeIgnored", false, ""},
		"other start":           {answer(206, "45678", at, "bytes 4-8/20"), "WrongRange", false, `"bytes 4-8/20"`},
		"other total":           {answer(206, "56789", at, "bytes 5-9/21"), "WrongRange", false, ""},
		"no content range":      {answer(206, "56789"), "WrongRange", false, ""},
		"too short":             {answer(206, "567", at, "bytes 5-9/20", "Content-Length", "3"), "WrongLength", false, "announces 3"},
		"too long":              {answer(206, "56789a", at, "bytes 5-9/20", "Content-Length", "6"), "WrongLength", false, "announces 6"},
		"no length":             {answer(206, "56789", at, "bytes 5-9/20", "Transfer-Encoding", "chunked"), "WrongLength", false, "announces -1"},
		"gzip unasked":          {answer(206, "56789", at, "bytes 5-9/20", "Content-Encoding", "gzip"), "Encoded", true, "turn compression off"},
		"404":                   {answer(404, ""), "Changed", false, "changed since it was resolved: it is gone"},
		"401":                   {answer(401, ""), "Forbidden", true, "credentials file"},
		"403":                   {answer(403, ""), "Forbidden", true, "credentials file"},
		"400":                   {answer(400, ""), "Refused", true, ""},
		"416":                   {answer(416, ""), "Refused", true, ""},
		"429":                   {answer(429, "", "Retry-After", "7"), "Throttled", false, ""},
		"503":                   {answer(503, "", "Retry-After", "7"), "Throttled", false, ""},
		"500":                   {answer(500, "\x1b[31m"), "Unavailable", false, ""},
		"204":                   {answer(204, ""), "WrongAnswer", false, ""},
		"no answer":             {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, "Unreachable", false, ""},
		"redirect for ever": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "/again?sig=SECRET", http.StatusTemporaryRedirect)
			return true
		}, "TooManyRedirects", true, ""},
		"redirect to nowhere":      {answer(307, "", "Location", "http://h:bad/?sig=SECRET"), "Unreachable", false, "not valid HTTP"},
		"redirect to plain http":   {answer(307, "", "Location", "http://192.0.2.1/?sig=SECRET"), "PlainHTTP", true, "list the host as plain"},
		"login at file:":           {answer(401, "", "WWW-Authenticate", `Bearer realm="file:///etc/passwd"`), "BadLogin", true, "token service"},
		"login at the cloud's ear": {answer(401, "", "WWW-Authenticate", `Bearer realm="http://169.254.169.254/token"`), "BadLogin", true, ""},
		"login in plain http":      {answer(401, "", "WWW-Authenticate", `Bearer realm="http://192.0.2.1/token"`), "PlainHTTP", true, ""},
		"login with a password":    {answer(401, "", "WWW-Authenticate", `Basic realm="x"`), "Forbidden", true, "asks for a login, and the credentials file in the config has none for it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg, host := newRegistry(t)
			reg.answer(c.serve)
			ref := sourcetest.Ref(t, "oci://"+host+"/m:v1")
			f := model.File{Path: "m.bin", Key: sha([]byte(text)), Size: 20}
			_, err := newSource(t, oci.Config{}).Open(t.Context(), ref, f, 5, 5)
			sourcetest.Fails(t, err, c.reason, c.final, c.text)
		})
	}
}

func TestABodyThatEndsEarlyIsAnError(t *testing.T) {
	t.Parallel()
	reg, host := newRegistry(t)
	reg.answer(answer(200, text[:7], "Content-Length", "20"))
	f := model.File{Path: "m.bin", Key: sha([]byte(text)), Size: 20}
	body, err := newSource(t, oci.Config{}).Open(t.Context(), sourcetest.Ref(t, "oci://"+host+"/m:v1"), f, 0, 20)
	require.NoError(t, err)
	defer body.Close()
	_, err = io.ReadAll(body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func TestAnswersThatEndEarlyAreTriedAgain(t *testing.T) {
	t.Parallel()
	reg, host := newRegistry(t)
	ref := sourcetest.Ref(t, "oci://"+host+"/m:v1")
	for name, c := range map[string]struct{ token, reason string }{
		"a manifest":        {"", "Unreachable"},
		"half a token":      {`{"token": "t0`, "Unreachable"},
		"no token at all":   {"", "Unreachable"},
		"a page of a proxy": {"<html>\x1b[31m</html>", "WrongAnswer"},
	} {
		reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case name == "a manifest":
				return answer(200, "{", "Content-Length", "100")(w, r)
			case r.URL.Path == "/token":
				return answer(200, c.token)(w, r)
			}
			return answer(401, "", "WWW-Authenticate", `Bearer realm="http://`+host+`/token"`)(w, r)
		})
		_, err := newSource(t, oci.Config{}).Resolve(t.Context(), ref)
		require.Equal(t, c.reason, model.ReasonOf(err), "%s: %v", name, err)
		require.False(t, model.IsFinal(err), name)
		require.NotContains(t, err.Error(), "\x1b")
	}
}

func TestALayerGoneFromAPinnedManifestIsNotFound(t *testing.T) {
	t.Parallel()
	_, host := newRegistry(t)
	f := model.File{Path: "m.bin", Key: sha([]byte(text)), Size: 20}
	_, err := newSource(t, oci.Config{}).Open(t.Context(), sourcetest.Ref(t, "oci://"+host+"/m@"+sha([]byte("m"))), f, 0, 20)
	require.Equal(t, "NotFound", model.ReasonOf(err), "%v", err)
	require.True(t, model.IsFinal(err), "nothing moves under a digest")
}

func TestALayerThatIsDeletedAfterItWasResolved(t *testing.T) {
	reg, host := newRegistry(t)
	reg.put("m", "v1", ocispec.MediaTypeImageManifest, manifest(t, reg.layer("application/x", "a", []byte("weights"))))
	sourcetest.Gone(t, newSource(t, oci.Config{}), sourcetest.Ref(t, "oci://"+host+"/m:v1"), func(serve http.HandlerFunc) {
		reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
			serve(w, r)
			return true
		})
	})
}

func TestAnAnswerThatIsNone(t *testing.T) {
	reg, host := newRegistry(t)
	sourcetest.Unexpected(t, newSource(t, oci.Config{}), sourcetest.Ref(t, "oci://"+host+"/m:v1"), host, func(serve http.HandlerFunc) {
		reg.answer(func(w http.ResponseWriter, r *http.Request) bool {
			serve(w, r)
			return true
		})
	})
}
