package az_test

import (
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/az"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const text = "0123456789abcdefghij"

func TestOpenHoldsTheStoreToWhatWasAsked(t *testing.T) {
	t.Parallel()
	const at, etag, why = "Content-Range: ", "ETag: ", "X-Ms-Error-Code: "
	late := time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)
	for name, c := range map[string]struct {
		serve  http.HandlerFunc
		reason string
		final  bool
		text   string
	}{
		"200 to a range":   {sourcetest.Answer(200, text, etag+`"7"`), "RangeIgnored", false, ""},
		"other start":      {sourcetest.Answer(206, "45678", etag+`"7"`, at+"bytes 4-8/20"), "WrongRange", false, ""},
		"other total":      {sourcetest.Answer(206, "56789", etag+`"7"`, at+"bytes 5-9/21"), "Changed", false, ""},
		"no content range": {sourcetest.Answer(206, "56789", etag+`"7"`), "WrongRange", false, ""},
		"too short":        {sourcetest.Answer(206, "567", etag+`"7"`, at+"bytes 5-9/20", "Content-Length: 3"), "WrongLength", false, ""},
		"another version":  {sourcetest.Answer(206, "56789", etag+`"8"`, at+"bytes 5-9/20"), "Changed", false, ""},
		"no version":       {sourcetest.Answer(206, "56789", at+"bytes 5-9/20"), "Changed", false, ""},
		"gzip unasked":     {sourcetest.Answer(206, "56789", etag+`"7"`, at+"bytes 5-9/20", "Content-Encoding: gzip"), "Encoded", true, ""},
		"404":              {sourcetest.Answer(404, "", why+"ContainerNotFound"), "Changed", false, "404 Not Found (ContainerNotFound): changed since it was resolved: it is gone"},
		"401":              {sourcetest.Answer(401, "\x1b", why+"<b>"), "Forbidden", true, "401 Unauthorized: check that the credentials"},
		"403":              {sourcetest.Answer(403, "", why+"AuthorizationPermissionMismatch"), "Forbidden", true, "(AuthorizationPermissionMismatch): check that the credentials are right"},
		"an old clock":     {sourcetest.Answer(403, "", why+"AuthenticationFailed", "Date: "+late), "ClockSkew", false, "ahead of the server's: set it right"},
		"not public":       {sourcetest.Answer(409, "", why+"PublicAccessNotPermitted"), "Forbidden", true, "give credentials"},
		"archived":         {sourcetest.Answer(409, "", why+"BlobArchived"), "Archived", true, "rehydrate it"},
		"400":              {sourcetest.Answer(400, "", why+"InvalidQueryParameterValue"), "Refused", true, ""},
		"412":              {sourcetest.Answer(412, ""), "Changed", false, ""},
		"416":              {sourcetest.Answer(416, ""), "Changed", false, ""},
		"429":              {sourcetest.Answer(429, "", "Retry-After: 7"), "Throttled", false, ""},
		"503":              {sourcetest.Answer(503, "", "Retry-After: 7", why+"ServerBusy"), "Throttled", false, ""},
		"500":              {sourcetest.Answer(500, ""), "Unavailable", false, ""},
		"a redirect":       {sourcetest.Answer(302, "", "Location: http://192.0.2.1/?sig=SECRET"), "WrongAnswer", false, "check the endpoint"},
		"no answer":        {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "Unreachable", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st, endpoint := newStore(t)
			st.before = c.serve
			f := model.File{Path: "m", Key: "a/m", Size: 20, Version: `"7"`}
			credentials := sourcetest.Secret(t, "AccountName=acct;SharedAccessSignature=sv=2021&sig=SECRET")
			_, err := newSource(t, az.Config{Endpoint: endpoint, CredentialsFile: credentials}).Open(t.Context(), sourcetest.Ref(t, "az://acct/models/a"), f, 5, 5)
			sourcetest.Fails(t, err, c.reason, c.final, c.text)
			require.Equal(t, "SECRET", st.requests()[0].URL.Query().Get("sig"))
		})
	}
}

func TestCredentialsThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config az.Config
		want   string
	}{
		"nowhere":               {az.Config{Endpoint: "azure"}, "want http(s)://host"},
		"a path":                {az.Config{Endpoint: "https://h/p"}, "want http(s)://host"},
		"plain http":            {az.Config{Endpoint: "http://h", CredentialsFile: "x"}, "not sent over plain http"},
		"the node's, elsewhere": {az.Config{Endpoint: "https://minio.example"}, "goes to Azure alone"},
		"alike in name":         {az.Config{Endpoint: "https://{account}.blob.core.windows.net.evil.example"}, "goes to Azure alone"},
		"no file":               {az.Config{CredentialsFile: "/nowhere"}, "credentialsFile: credentials file: open /nowhere"},
		"both":                  {az.Config{Anonymous: true, CredentialsFile: "/nowhere"}, "remove one of the two"},
		"not a string of it":    {az.Config{CredentialsFile: sourcetest.Secret(t, "sEcReT")}, "want one connection string"},
		"no account":            {az.Config{CredentialsFile: sourcetest.Secret(t, "AccountKey=c0VjUmVU")}, "want one connection string"},
		"a key that is none":    {az.Config{CredentialsFile: sourcetest.Secret(t, "AccountName=acct;AccountKey=sEcReT!")}, "want one connection string"},
		"a key and a signature": {az.Config{CredentialsFile: sourcetest.Secret(t, "AccountName=acct;AccountKey=c0VjUmVU;SharedAccessSignature=sig=x")}, "want one connection string"},
		"no CA":                 {az.Config{CAFile: "/nowhere"}, "caFile: open /nowhere"},
	} {
		_, err := az.New(c.config)
		require.ErrorContains(t, err, c.want, name)
		require.NotContains(t, err.Error(), "sEcReT", name)
	}
	for _, good := range []az.Config{{}, {Endpoint: "https://{account}.blob.core.chinacloudapi.cn"}, {Endpoint: "http://127.0.0.1:10000", Anonymous: true},
		{CredentialsFile: sourcetest.Secret(t, "BlobEndpoint=https://acct.blob.core.windows.net/;SharedAccessSignature=sv=x&sig=y")}} {
		newSource(t, good)
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := az.New(az.Config{Endpoint: "h", Anonymous: true, CredentialsFile: "x", CAFile: "/nowhere", Proxy: "p", Mirrors: []string{"https://m", "m"}})
	require.Equal(t, []string{
		"setting endpoint: want http(s)://host[:port], or https://{account}.host, and nothing more",
		"setting credentialsFile: x is not used when anonymous: remove one of the two",
		"machine caFile: open /nowhere: no such file or directory",
		"setting proxy: want http://host:port, https://host:port or socks5://host:port; one that asks for a login goes into HTTPS_PROXY",
		"setting mirrors[1]: want http(s)://host[:port] without credentials, such as https://mirror.example",
	}, sourcetest.Faults(t, err))
	file := sourcetest.Secret(t, "x")
	_, err = az.New(az.Config{CredentialsFile: file})
	require.Equal(t, []string{"content credentialsFile: credentials file " + file +
		`: want one connection string with AccountName or BlobEndpoint, and AccountKey or SharedAccessSignature, joined by ";"`}, sourcetest.Faults(t, err))
}

func TestReferencesThatCanNeverBeRead(t *testing.T) {
	t.Parallel()
	sourcetest.Refused(t, az.Check, map[string]string{
		"az://acct/models": "", "az://acct/models/m/": "", "az://ACCT_/models": "BadSource az://ACCT_/models: want az://account/container/prefix",
		"az://acct": "want az://account/container/prefix", "az://acct/models/m?sig=x": "and no ?",
	})
}

func TestASignatureGoesToItsAccountAlone(t *testing.T) {
	t.Parallel()
	st, endpoint := newStore(t)
	for _, text := range []string{"AccountName=other;SharedAccessSignature=sig=SECRET", "AccountName=other;AccountKey=c0VjUmVU"} {
		s := newSource(t, az.Config{Endpoint: endpoint, CredentialsFile: sourcetest.Secret(t, text)})
		_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/m"))
		require.Equal(t, "Credentials", model.ReasonOf(err), "%v", err)
		require.ErrorContains(t, err, "the credentials file is for account other: name a source there, or the credentials of acct")
	}
	require.Empty(t, st.requests())
}

// TestARedirectGetsNothing: neither a token nor a signature goes where a server points.
func TestARedirectGetsNothing(t *testing.T) {
	t.Parallel()
	var followed atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	defer elsewhere.Close()
	st, endpoint := newStore(t)
	st.before = func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	}
	s := newSource(t, az.Config{Endpoint: endpoint, CredentialsFile: sourcetest.Secret(t, "AccountName=acct;SharedAccessSignature=sig=SECRET")})
	_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/m"))
	require.Equal(t, "WrongAnswer", model.ReasonOf(err), "%v", err)
	require.Zero(t, followed.Load())
}

// azure is the public cloud, which trusts t's token and has an empty container, and Entra, which gives it.
func azure(t *testing.T, entra http.HandlerFunc) (addr, ca string, seen *[]*http.Request) {
	seen = new([]*http.Request)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		*seen = append(*seen, r)
		if strings.HasPrefix(r.URL.Path, "/tenant-1/") {
			entra(w, r)
			return
		}
		sourcetest.Answer(200, "<EnumerationResults><Blobs></Blobs></EnumerationResults>")(w, r)
	}))
	t.Cleanup(srv.Close)
	ca = sourcetest.Secret(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	return srv.Listener.Addr().String(), ca, seen
}

func TestAWorkloadIdentityIsExchangedOnce(t *testing.T) {
	refuse := false
	addr, ca, seen := azure(t, func(w http.ResponseWriter, r *http.Request) {
		if refuse {
			sourcetest.Answer(400, `{"error":"invalid_client","error_description":"AADSTS70021 sEcReT"}`, "Content-Type: application/json")(w, r)
			return
		}
		sourcetest.Answer(200, `{"access_token":"t0ken","token_type":"Bearer","expires_in":3600}`, "Content-Type: application/json")(w, r)
	})
	// The certificate of httptest is for example.com.
	t.Setenv("AZURE_AUTHORITY_HOST", "https://login.example.com/")
	t.Setenv("AZURE_CLIENT_ID", "client-1")
	t.Setenv("AZURE_TENANT_ID", "tenant-1")
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", sourcetest.Secret(t, "assertion\n"))
	for name, refused := range map[string]bool{"taken": false, "refused": true} {
		refuse, *seen = refused, nil
		s := newSource(t, az.Config{CAFile: ca})
		az.DialAzure(s, addr)
		az.TrustAs(s, "example.com")
		for range 2 {
			_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/m"))
			if refused {
				require.Equal(t, "Credentials", model.ReasonOf(err), "%v", err)
				require.ErrorContains(t, err, "Entra gives no token for workload identity client-1 (invalid_client)")
				require.NotContains(t, err.Error(), "sEcReT")
				require.False(t, model.IsFinal(err), "the token file rotates")
			} else {
				require.Equal(t, "NotFound", model.ReasonOf(err), "%v", err)
			}
		}
		if refused {
			continue
		}
		login := (*seen)[0]
		require.Equal(t, "/tenant-1/oauth2/v2.0/token", login.URL.Path, name)
		require.Equal(t, "login.example.com", login.Host)
		for key, want := range map[string]string{"client_id": "client-1", "client_assertion": "assertion", "scope": "https://storage.azure.com/.default",
			"grant_type": "client_credentials", "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_secret": ""} {
			require.Equal(t, want, login.PostForm.Get(key), key)
		}
		require.Empty(t, login.Header.Get("Authorization"))
		require.Len(t, *seen, 5, "one login for all")
		for _, r := range (*seen)[1:] {
			require.Equal(t, "acct.blob.core.windows.net", r.Host)
			require.Equal(t, "/models", r.URL.Path)
			require.Equal(t, "Bearer t0ken", r.Header.Get("Authorization"))
		}
	}
	require.NoError(t, os.Unsetenv("AZURE_TENANT_ID"))
	_, err := newSource(t, az.Config{}).Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/m"))
	require.ErrorContains(t, err, "AZURE_TENANT_ID")
}

// TestATokenThatIsNotAcceptedIsReplaced: the service forgets tokens before they end, and clocks are off.
func TestATokenThatIsNotAcceptedIsReplaced(t *testing.T) {
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", "")
	given := 0
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given++
		sourcetest.Answer(200, fmt.Sprintf(`{"access_token":"t0ken%d","expires_in":"3599"}`, given))(w, r)
	}))
	defer node.Close()
	accepted := "Bearer t0ken1"
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != accepted {
			sourcetest.Answer(401, "", "X-Ms-Error-Code: InvalidAuthenticationInfo")(w, r)
			return
		}
		sourcetest.Answer(200, "<EnumerationResults><Blobs></Blobs></EnumerationResults>")(w, r)
	}))
	defer srv.Close()
	s := newSource(t, az.Config{CAFile: sourcetest.Secret(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))})
	az.DialAzure(s, srv.Listener.Addr().String())
	az.TrustAs(s, "example.com")
	az.DialMetadata(s, node.Listener.Addr().String())
	for _, c := range []struct {
		accepted, reason string
		given            int
	}{
		{"Bearer t0ken1", "NotFound", 1},
		{"Bearer t0ken2", "NotFound", 2}, // the first is not accepted any more
		{"Bearer none", "Forbidden", 3},  // one more, and no more than that
	} {
		accepted = c.accepted
		_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/m/"))
		require.Equal(t, c.reason, model.ReasonOf(err), "%v", err)
		require.Equal(t, c.given, given)
	}
}

func TestASignatureThatHasEndedSaysSo(t *testing.T) {
	t.Parallel()
	for until, reason := range map[string]string{
		"2024-01-02T03:04:05Z": "Expired", "2024-01-02T03:04Z": "Expired", "2024-01-02": "Expired", // as the portal, people and tools write them
		"2124-01-02": "Forbidden", "soon": "Forbidden",
	} {
		st, endpoint := newStore(t)
		st.before = sourcetest.Answer(403, "", "X-Ms-Error-Code: AuthenticationFailed")
		file := sourcetest.Secret(t, "AccountName=acct;SharedAccessSignature=sv=2021&sig=SECRET&se="+until)
		_, err := newSource(t, az.Config{Endpoint: endpoint, CredentialsFile: file}).Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/m/"))
		require.Equal(t, reason, model.ReasonOf(err), "%s: %v", until, err)
		require.Equal(t, reason == "Forbidden", model.IsFinal(err), "the file may be renewed by itself")
		require.NotContains(t, err.Error(), "SECRET")
		if reason == "Expired" {
			require.ErrorContains(t, err, "in the credentials file ended at 2024-01-02T")
		}
	}
}

func TestAnAccountThatIsNotThereIsSaid(t *testing.T) {
	t.Parallel()
	s := newSource(t, az.Config{Anonymous: true})
	az.DialFails(s, &net.DNSError{Err: "no such host", Name: "nobody.blob.core.windows.net", IsNotFound: true})
	_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://nobody/models/m/"))
	require.Equal(t, "Unreachable", model.ReasonOf(err), "%v", err)
	require.ErrorContains(t, err, "no such account")
	require.False(t, model.IsFinal(err), "names are not resolved for other reasons, too")
}

func TestTheNodesIdentityIsAskedOfItsMetadataService(t *testing.T) {
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", "")
	t.Setenv("AZURE_CLIENT_ID", "")
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:3128") // which it is not asked through
	addr, ca, seen := azure(t, nil)
	serve := sourcetest.Answer(200, `{"access_token":"t0ken","expires_in":"3599"}`)
	var asked []*http.Request
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r)
		serve(w, r)
	}))
	defer node.Close()
	resolve := func() error {
		s := newSource(t, az.Config{CAFile: ca})
		az.DialAzure(s, addr)
		az.TrustAs(s, "example.com")
		az.DialMetadata(s, node.Listener.Addr().String())
		_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/m"))
		return err
	}
	require.Equal(t, "NotFound", model.ReasonOf(resolve()))
	require.Equal(t, "true", asked[0].Header.Get("Metadata"))
	require.Equal(t, "https://storage.azure.com/", asked[0].URL.Query().Get("resource"))
	require.Equal(t, "Bearer t0ken", (*seen)[0].Header.Get("Authorization"))
	for _, serve = range []http.HandlerFunc{sourcetest.Answer(400, "\x1b sEcReT"), sourcetest.Answer(200, "<html>"), sourcetest.Answer(200, "{}")} {
		err := resolve()
		require.Equal(t, "Credentials", model.ReasonOf(err), "%v", err)
		require.ErrorContains(t, err, "no Azure identity: its metadata service")
		require.ErrorContains(t, err, "give the pod a workload identity")
		require.NotContains(t, err.Error(), "sEcReT")
	}
	node.Close()
	require.ErrorContains(t, resolve(), "this node has no metadata service")
}

func TestABlobThatIsDeletedAfterItWasResolved(t *testing.T) {
	for _, ref := range []string{"az://acct/models/llama", "az://acct/models/llama/m.bin"} {
		st, endpoint := newStore(t)
		st.put("llama/m.bin", []byte("weights"), "", "")
		sourcetest.Gone(t, newSource(t, az.Config{Endpoint: endpoint, Anonymous: true}), sourcetest.Ref(t, ref), func(serve http.HandlerFunc) { st.before = serve })
	}
}

func TestAnAnswerThatIsNone(t *testing.T) {
	st, endpoint := newStore(t)
	credentials := sourcetest.Secret(t, "AccountName=acct;SharedAccessSignature=sv=2021&sig=SECRET")
	for _, ref := range []string{"az://acct/models/llama", "az://acct/models/llama/"} {
		sourcetest.Unexpected(t, newSource(t, az.Config{Endpoint: endpoint, CredentialsFile: credentials}), sourcetest.Ref(t, ref), strings.TrimPrefix(endpoint, "http://"),
			func(serve http.HandlerFunc) { st.before = serve })
	}
}
