package gs_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/gs"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const text = "0123456789abcdefghij"

// refused is Google's answer for a reason.
func refused(reason string) string {
	return `{"error":{"code":403,"message":"sEcReT","errors":[{"domain":"global","reason":"` + reason + `"}]}}`
}

func TestOpenHoldsTheStoreToWhatWasAsked(t *testing.T) {
	t.Parallel()
	const at, gen = "Content-Range: ", "X-Goog-Generation: "
	for name, c := range map[string]struct {
		serve  http.HandlerFunc
		reason string
		final  bool
	}{
		"200 to a range":     {sourcetest.Answer(200, text, gen+"7"), "RangeIgnored", false},
		"other start":        {sourcetest.Answer(206, "45678", gen+"7", at+"bytes 4-8/20"), "WrongRange", false},
		"other total":        {sourcetest.Answer(206, "56789", gen+"7", at+"bytes 5-9/21"), "Changed", false},
		"no content range":   {sourcetest.Answer(206, "56789", gen+"7"), "WrongRange", false},
		"too short":          {sourcetest.Answer(206, "567", gen+"7", at+"bytes 5-9/20", "Content-Length: 3"), "WrongLength", false},
		"another generation": {sourcetest.Answer(206, "56789", gen+"8", at+"bytes 5-9/20"), "Changed", false},
		"gzip unasked":       {sourcetest.Answer(206, "56789", gen+"7", at+"bytes 5-9/20", "Content-Encoding: gzip"), "Encoded", true},
		"404":                {sourcetest.Answer(404, ""), "Changed", false},
		"401":                {sourcetest.Answer(401, "\x1b"), "Forbidden", true},
		"403":                {sourcetest.Answer(403, ""), "Forbidden", true},
		"400":                {sourcetest.Answer(400, ""), "Refused", true},
		"412":                {sourcetest.Answer(412, ""), "Changed", false},
		"416":                {sourcetest.Answer(416, ""), "Changed", false},
		"429":                {sourcetest.Answer(429, "", "Retry-After: 7"), "Throttled", false},
		"503":                {sourcetest.Answer(503, "", "Retry-After: 7"), "Throttled", false},
		"500":                {sourcetest.Answer(500, ""), "Unavailable", false},
		"gzip unpacked":      {sourcetest.Answer(200, text, gen+"7", "X-Goog-Stored-Content-Encoding: gzip"), "Encoded", true},
		"a limit at 403":     {sourcetest.Answer(403, refused("userRateLimitExceeded"), "Retry-After: 7"), "Throttled", false},
		"who pays":           {sourcetest.Answer(400, refused("required")), "Refused", true},
		"a word that is not": {sourcetest.Answer(403, refused("\\u001b[31m sEcReT")), "Forbidden", true},
		"a redirect":         {sourcetest.Answer(302, "", "Location: http://192.0.2.1/?sig=SECRET"), "WrongAnswer", false},
		"no answer":          {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "Unreachable", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st, endpoint := newStore(t)
			st.before = c.serve
			f := model.File{Path: "m", Key: "a/m", Size: 20, Version: "7"}
			_, err := newSource(t, gs.Config{Endpoint: endpoint, Anonymous: true}).Open(t.Context(), sourcetest.Ref(t, "gs://models/a"), f, 5, 5)
			sourcetest.Fails(t, err, c.reason, c.final, "gs://models/a")
		})
	}
}

// account is the key of a service account whose tokens are to be had at tokens.
func account(t *testing.T, tokens string) string {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	text, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "agent@project.example", "token_uri": tokens,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	require.NoError(t, err)
	return string(text)
}

func TestATokenIsHadOnceAndKept(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	var refuse atomic.Bool
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuse.Load() {
			sourcetest.Answer(400, `{"error":"invalid_grant","error_description":"sEcReT"}`)(w, r)
			return
		}
		expires := 3600
		if asked.Add(1) == 1 {
			expires = 1 // already too old when it comes
		}
		sourcetest.Answer(200, fmt.Sprintf(`{"access_token":"t0ken%d","token_type":"Bearer","expires_in":%d}`, asked.Load(), expires),
			"Content-Type: application/json")(w, r)
	}))
	defer tokens.Close()
	st, endpoint := newStore(t)
	st.put("a/m", []byte(text), nil)
	config := sourcetest.Secret(t, account(t, tokens.URL))
	s := newSource(t, gs.Config{Endpoint: endpoint, CredentialsFile: config})
	ref := sourcetest.Ref(t, "gs://models/a/m")
	for range 4 {
		_, err := s.Resolve(t.Context(), ref)
		require.NoError(t, err)
	}
	require.EqualValues(t, 2, asked.Load())
	require.Equal(t, "Bearer t0ken1", st.seen[0].Header.Get("Authorization"))
	require.Equal(t, "Bearer t0ken2", st.seen[3].Header.Get("Authorization"))

	refuse.Store(true)
	other := newSource(t, gs.Config{Endpoint: endpoint, CredentialsFile: config})
	_, err := other.Resolve(t.Context(), ref)
	require.Equal(t, "Credentials", model.ReasonOf(err), "%v", err)
	require.NotContains(t, err.Error(), "sEcReT")
	require.NoError(t, os.Remove(config))
	_, err = other.Resolve(t.Context(), ref)
	require.Equal(t, "Credentials", model.ReasonOf(err), "%v", err)
	require.Len(t, st.seen, 4, "nothing is sent without a token")
}

// TestATokenThatIsNotAcceptedIsReplaced: the service forgets tokens before they end, and clocks are off.
func TestATokenThatIsNotAcceptedIsReplaced(t *testing.T) {
	t.Parallel()
	given := 0
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given++
		sourcetest.Answer(200, fmt.Sprintf(`{"access_token":"t0ken%d","token_type":"Bearer","expires_in":3600}`, given), "Content-Type: application/json")(w, r)
	}))
	defer tokens.Close()
	accepted := ""
	st, endpoint := newStore(t)
	st.before = func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != accepted {
			sourcetest.Answer(401, refused("authError"))(w, r)
			return
		}
		sourcetest.Answer(200, "{}")(w, r)
	}
	s := newSource(t, gs.Config{Endpoint: endpoint, CredentialsFile: sourcetest.Secret(t, account(t, tokens.URL))})
	for _, c := range []struct {
		accepted, reason string
		given            int
	}{
		{"Bearer t0ken1", "NotFound", 1},
		{"Bearer t0ken2", "NotFound", 2}, // the first is not accepted any more
		{"Bearer none", "Forbidden", 3},  // one more, and no more than that
	} {
		accepted = c.accepted
		_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "gs://models/m/"))
		require.Equal(t, c.reason, model.ReasonOf(err), "%v", err)
		require.Equal(t, c.given, given)
	}
}

// TestCredentialsThatChangeCountAtOnce: who mended the file is not kept waiting for the old token's end.
func TestCredentialsThatChangeCountAtOnce(t *testing.T) {
	t.Parallel()
	var tokens [2]*httptest.Server
	for i := range tokens {
		tokens[i] = httptest.NewServer(sourcetest.Answer(200, fmt.Sprintf(`{"access_token":"t0ken%d","token_type":"Bearer","expires_in":3600}`, i),
			"Content-Type: application/json"))
		defer tokens[i].Close()
	}
	st, endpoint := newStore(t)
	st.put("m/a", []byte(text), nil)
	file := sourcetest.Secret(t, account(t, tokens[0].URL))
	s, ref := newSource(t, gs.Config{Endpoint: endpoint, CredentialsFile: file}), sourcetest.Ref(t, "gs://models/m/")
	_, err := s.Resolve(t.Context(), ref)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(account(t, tokens[1].URL)), 0o600))
	_, err = s.Resolve(t.Context(), ref)
	require.NoError(t, err)
	require.Equal(t, "Bearer t0ken0", st.seen[0].Header.Get("Authorization"))
	require.Equal(t, "Bearer t0ken1", st.seen[1].Header.Get("Authorization"))
	require.NoError(t, os.WriteFile(file, []byte(`{"type": "authorized_user", "refresh_token": "sEcReT"}`), 0o600))
	_, err = s.Resolve(t.Context(), ref)
	require.Equal(t, "Credentials", model.ReasonOf(err), "%v", err)
	require.ErrorContains(t, err, "want the JSON of a service account's key")
	require.False(t, model.IsFinal(err))
	require.Len(t, st.seen, 2, "what is not usable any more is not used")
}

func TestWhyThereIsNoToken(t *testing.T) {
	t.Parallel()
	late := time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)
	for name, c := range map[string]struct {
		serve        http.HandlerFunc
		reason, text string
	}{
		"refused":   {sourcetest.Answer(400, `{"error":"invalid_grant","error_description":"sEcReT"}`), "Credentials", "(invalid_grant): check that their account is there and enabled"},
		"nonsense":  {sourcetest.Answer(400, `{"error":"\u001b[31m sEcReT"}`), "Credentials", "gives no token for these credentials: check"},
		"the clock": {sourcetest.Answer(400, `{"error":"invalid_grant"}`, "Date: "+late), "ClockSkew", "ahead of the server's"},
		"no answer": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "Unreachable", "no answer of Google's token service: the connection ended"},
	} {
		tokens := httptest.NewServer(c.serve)
		st, endpoint := newStore(t)
		s := newSource(t, gs.Config{Endpoint: endpoint, CredentialsFile: sourcetest.Secret(t, account(t, tokens.URL))})
		_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "gs://models/m/"))
		tokens.Close()
		sourcetest.Fails(t, err, c.reason, false, c.text)
		require.Empty(t, st.seen, name)
	}
}

func TestTLSIsVerified(t *testing.T) {
	t.Parallel()
	srv := httptest.NewUnstartedServer(sourcetest.Answer(404, ""))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // the handshake that must fail
	srv.StartTLS()
	defer srv.Close()
	_, err := newSource(t, gs.Config{Endpoint: srv.URL, Anonymous: true}).Resolve(t.Context(), sourcetest.Ref(t, "gs://models/a"))
	require.Equal(t, "Untrusted", model.ReasonOf(err), "%v", err)
	require.True(t, model.IsFinal(err))
	ca := sourcetest.Secret(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	_, err = newSource(t, gs.Config{Endpoint: srv.URL, Anonymous: true, CAFile: ca}).Resolve(t.Context(), sourcetest.Ref(t, "gs://models/a"))
	require.Equal(t, "NotFound", model.ReasonOf(err), "%v", err)
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	user := sourcetest.Secret(t, `{"type": "authorized_user", "refresh_token": "sEcReT"}`)
	const server = "setting endpoint: want http(s)://host[:port] and nothing more"
	const login = "name a credentials file, or say that the buckets are anonymous"
	for _, tc := range []struct {
		config gs.Config
		want   []string
	}{
		{gs.Config{Endpoint: "https://me:secret@host"}, []string{server}},
		{gs.Config{Endpoint: "http://h"}, []string{"setting endpoint: http://h: credentials are not sent over plain http: use https, or say that the buckets are anonymous"}},
		{gs.Config{Endpoint: "https://h"}, []string{"setting endpoint: https://h: the node's own Google token goes to Google alone: " + login}},
		{gs.Config{Endpoint: "https://notgoogleapis.com"}, []string{"setting endpoint: https://notgoogleapis.com: the node's own Google token goes to Google alone: " + login}},
		{gs.Config{CredentialsFile: "x", Anonymous: true}, []string{"setting credentialsFile: x is not used when anonymous: remove one of the two"}},
		{gs.Config{CredentialsFile: user}, []string{"content credentialsFile: credentials file " + user +
			": want the JSON of a service account's key or of a workload identity (type service_account or external_account)"}},
		{gs.Config{Endpoint: "h", CredentialsFile: "/nowhere", CAFile: "/nowhere", Proxy: "p", Mirrors: []string{"m"}}, []string{
			server,
			"machine caFile: open /nowhere: no such file or directory",
			"setting proxy: want http://host:port, https://host:port or socks5://host:port; one that asks for a login goes into HTTPS_PROXY",
			"setting mirrors[0]: want http(s)://host[:port] without credentials, such as https://mirror.example",
			"machine credentialsFile: credentials file: open /nowhere: no such file or directory",
		}},
	} {
		_, err := gs.New(tc.config)
		require.Equal(t, tc.want, sourcetest.Faults(t, err))
		require.False(t, strings.Contains(strings.ToLower(err.Error()), "secret"), "%v", err)
	}
}

func TestAnObjectThatIsDeletedAfterItWasResolved(t *testing.T) {
	for _, ref := range []string{"gs://models/llama", "gs://models/llama/m.bin"} {
		st, endpoint := newStore(t)
		st.put("llama/m.bin", []byte("weights"), nil)
		sourcetest.Gone(t, newSource(t, gs.Config{Endpoint: endpoint, Anonymous: true}), sourcetest.Ref(t, ref), func(serve http.HandlerFunc) { st.before = serve })
	}
}

func TestAnAnswerThatIsNone(t *testing.T) {
	st, endpoint := newStore(t)
	for _, ref := range []string{"gs://models/llama", "gs://models/llama/"} {
		sourcetest.Unexpected(t, newSource(t, gs.Config{Endpoint: endpoint, Anonymous: true}), sourcetest.Ref(t, ref), strings.TrimPrefix(endpoint, "http://"),
			func(serve http.HandlerFunc) { st.before = serve })
	}
}

func TestReferencesThatCanNeverBeRead(t *testing.T) {
	t.Parallel()
	sourcetest.Refused(t, gs.Check, map[string]string{"gs://b": "", "gs://b/p/": "", "gs://b/p?generation=1": "BadSource gs://b/p: want gs://bucket/prefix, and no ?"})
}
