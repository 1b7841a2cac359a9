package web_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestAProxyIsForAllButThisMachineAndWhatIsExempt(t *testing.T) {
	t.Setenv("NO_PROXY", "registry.internal,10.0.0.0/8")
	t.Setenv("HTTPS_PROXY", "http://other.example:3128")
	proxy, err := web.Proxy("http://proxy.example:3128")
	require.NoError(t, err)
	for address, want := range map[string]string{
		"https://hub.example/x":      "http://proxy.example:3128",
		"http://hub.example/x":       "http://proxy.example:3128",
		"https://registry.internal/": "",
		"https://10.1.2.3/":          "",
		"http://127.0.0.1:5000/":     "",
		"http://localhost/":          "",
	} {
		u, err := proxy(httptest.NewRequest(http.MethodGet, address, nil))
		require.NoError(t, err)
		got := ""
		if u != nil {
			got = u.String()
		}
		require.Equal(t, want, got, address)
	}
	for _, bad := range []string{"proxy", "proxy:3128", "ftp://proxy", "http://user:sEcReT@proxy", "http://proxy/path", "http://proxy?x"} {
		_, err := web.Proxy(bad)
		require.ErrorContains(t, err, "want http://host:port", bad)
		require.NotContains(t, err.Error(), "sEcReT")
	}
}

// TestARequestGoesThroughTheProxy sees one arrive there, for a host that there is not.
func TestARequestGoesThroughTheProxy(t *testing.T) {
	asked := make(chan string, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked <- r.RequestURI }))
	defer srv.Close()
	proxy, err := web.Proxy(srv.URL)
	require.NoError(t, err)
	transport := web.Transport(nil, proxy, 1)
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://models.invalid/a", nil)
	require.NoError(t, err)
	resp, err := transport.RoundTrip(req)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, "http://models.invalid/a", <-asked)
}

func TestAListingHasRoomForAsManyFilesAsAModelMayHave(t *testing.T) {
	var l web.Listing
	for range 100 {
		require.NoError(t, l.Page(1000))
	}
	require.NoError(t, l.Page(1), "and for their SHA256SUMS")
	for range 9 {
		require.NoError(t, l.Page(100))
	}
	require.Equal(t, "TooManyFiles", model.ReasonOf(l.Page(1)))
}

// A server that is named with the port that goes without saying is the same one.
func TestAMirrorIsOfAHostHoweverItIsSpelled(t *testing.T) {
	t.Parallel()
	for of, hosts := range map[string]map[string]bool{
		"models.example":      {"models.example": true, "Models.Example:443": true, "models.example:8443": false, "example": false},
		"Models.example:443":  {"models.example": true, "models.example:443": true, "models.example:8443": false},
		"models.example:8443": {"models.example:8443": true, "models.example": false},
	} {
		mirrors, faults := web.NewMirrors([]web.Mirror{{Of: of, URL: "https://mirror.example"}}, nil)
		require.Empty(t, faults)
		for host, want := range hosts {
			asked := false
			mirrors.Open(t.Context(), host, host, web.Part{Length: 1, Size: 1}, func(*url.URL) (io.ReadCloser, error) {
				asked = true
				return http.NoBody, nil
			})
			require.Equal(t, want, asked, "a mirror of %s for %s", of, host)
		}
	}
}
