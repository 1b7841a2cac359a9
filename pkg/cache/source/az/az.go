// Package az reads models from Azure Blob Storage by its REST API, as az://account/container/prefix.
//
// What is asked of it is one listing and one read, so it is spoken here: Azure's client would bring its pipeline,
// its identity library and MSAL with it. Reads are pinned by ETag.
package az

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// apiVersion is the first that has all that is asked for here, and is served by Azurite.
const apiVersion = "2021-12-02"

// defaultEndpoint is Azure's public cloud.
const defaultEndpoint = "https://{account}.blob.core.windows.net"

// Config is how Blob Storage is reached. The zero value is Azure's public cloud, as the pod's workload identity or the
// node's managed identity.
type Config struct {
	// Endpoint is http(s)://host[:port]. With {account} in its host that is the account's own, as in other clouds
	// of Azure; without, the account comes first in the path, as with Azurite. "" for the public cloud.
	Endpoint        string
	Anonymous       bool     // send no credentials: public containers
	CredentialsFile string   // a connection string with AccountKey or SharedAccessSignature, read anew for each request; "" for none
	CAFile          string   // PEM certificates to trust beside the system's; "" for none
	Proxy           string   // http://host:port of a proxy to the store; "" for what the environment says
	Mirrors         []string // addresses below which other servers have the blobs, at account/container/name: see web.ObjectMirrors
	UserAgent       string   // "" means gpu-agent
	Streams         int      // idle connections kept; 0 means 64
}

// Source reads scheme az. Safe for concurrent use.
type Source struct {
	endpoint  *url.URL // with {account} in its host, or without
	userAgent string
	client    *http.Client
	mirrors   *web.ObjectMirrors
	anonymous bool
	file      string // of credentials; "" for the identity
	identity  *identity
}

// New checks the configuration and the files it names. It opens no connection.
func New(c Config) (*Source, error) {
	if c.Endpoint == "" {
		c.Endpoint = defaultEndpoint
	}
	var faults web.Faults
	u := faults.Endpoint(strings.Replace(c.Endpoint, "://{account}.", "://"+placeholder, 1), "http(s)://host[:port], or https://{account}.host,")
	switch {
	case u == nil, c.Anonymous:
	case u.Scheme == "http" && !web.Loopback(u.Hostname()):
		faults.Wrong("endpoint", "%s: credentials are not sent over plain http: use https, or say that the containers are anonymous", c.Endpoint)
	case c.CredentialsFile == "" && !azures(u.Hostname()):
		faults.Wrong("endpoint", "%s: the node's own token goes to Azure alone: name a credentials file, or say that the containers are anonymous", c.Endpoint)
	}
	switch {
	case c.CredentialsFile == "":
	case c.Anonymous:
		faults.Wrong("credentialsFile", "%s is not used when anonymous: remove one of the two", c.CredentialsFile)
	default:
		_, err := readCredentials(c.CredentialsFile)
		faults.File("credentialsFile", err)
	}
	if c.Streams <= 0 {
		c.Streams = 64
	}
	if c.UserAgent == "" {
		c.UserAgent = "gpu-agent"
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // credentials stay here
	transport := faults.Transport(c.CAFile, c.Proxy, c.Streams)
	mirrors, wrong := web.NewObjectMirrors(c.Mirrors, transport, c.UserAgent)
	faults = append(faults, wrong...)
	if err := faults.Of("az"); err != nil {
		return nil, err
	}
	s := &Source{endpoint: u, userAgent: c.UserAgent, anonymous: c.Anonymous, file: c.CredentialsFile, mirrors: mirrors,
		client: &http.Client{Transport: transport, CheckRedirect: stay}}
	if !c.Anonymous && c.CredentialsFile == "" {
		local := web.Transport(nil, nil, 1) // the node's metadata service is no proxy's business
		s.identity = &identity{
			client: &http.Client{Transport: s.client.Transport, Timeout: 30 * time.Second, CheckRedirect: stay},
			local:  &http.Client{Transport: local, Timeout: 10 * time.Second, CheckRedirect: stay},
		}
	}
	return s, nil
}

// placeholder stands in a host, where braces cannot.
const placeholder = "account.invalid."

// azures says whether a host is of Microsoft's clouds.
func azures(host string) bool {
	for _, cloud := range []string{".blob.core.windows.net", ".blob.core.usgovcloudapi.net", ".blob.core.chinacloudapi.cn", ".blob.storage.azure.net"} {
		if strings.HasSuffix(host, cloud) {
			return true
		}
	}
	return false
}

// CloseIdle closes the connections that are kept for the next request.
func (s *Source) CloseIdle() {
	s.client.CloseIdleConnections()
	if s.identity != nil {
		s.identity.local.CloseIdleConnections()
	}
}

var (
	accountForm   = lazyregexp.New(`^[a-z0-9]{3,24}$`)
	containerForm = lazyregexp.New(`^([a-z0-9](-?[a-z0-9]){2,62}|\$root|\$web)$`)
)

// place is a reference taken apart.
type place struct {
	ref       model.Ref
	account   string
	container string
	name      string // of the blob, or a prefix
}

// Check says why ref can never be read, whatever the account has.
func Check(ref model.Ref) error {
	_, err := parse(ref)
	return err
}

func parse(ref model.Ref) (place, error) {
	container, name, _ := strings.Cut(strings.TrimPrefix(ref.Path, "/"), "/")
	key, err := url.PathUnescape(name)
	if err != nil || ref.Query != "" || !accountForm().MatchString(ref.Host) || !containerForm().MatchString(container) {
		return place{}, &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("%s: want az://account/container/prefix, and no ?", ref)}
	}
	return place{ref, ref.Host, container, key}, nil
}

// address is that of a blob, or of the container where name is "".
func (s *Source) address(at place, name string) *url.URL {
	u := *s.endpoint
	u.Path, u.RawPath = "", ""
	if host, ok := strings.CutPrefix(u.Host, placeholder); ok {
		u.Host = at.account + "." + host
	} else {
		u.Path = "/" + at.account
	}
	u.Path += "/" + at.container
	if name != "" {
		u.Path += "/" + name
		u.RawPath = strings.TrimSuffix(u.Path, name) + escaped(name)
	}
	return &u
}

// escaped is a blob's name in a path, "/" as it is.
func escaped(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// send asks for u and returns answers of status 200 and 206 alone. what says what is tried; a
// header is that of a read.
func (s *Source) send(ctx context.Context, at place, what string, u *url.URL, header http.Header) (*http.Response, error) {
	text := fmt.Sprintf("%s: %s%s", at.ref, what, s.where())
	for again := false; ; again = true {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, &model.Error{Reason: "BadSource", Final: true, Text: text + ": not an address"}
		}
		maps.Copy(req.Header, header)
		req.Header.Set("Accept-Encoding", "identity")
		req.Header.Set("User-Agent", s.userAgent)
		req.Header.Set("X-Ms-Version", apiVersion)
		req.Header.Set("X-Ms-Date", time.Now().UTC().Format(http.TimeFormat))
		if err := s.authorize(req, at); err != nil {
			return nil, web.NoAnswer(ctx, text, err)
		}
		resp, err := s.client.Do(req)
		if e, ok := errors.AsType[*net.DNSError](err); ok && e.IsNotFound {
			text += ": there is no such account, or this node does not resolve its name"
		}
		if err != nil {
			return nil, web.NoAnswer(ctx, text, err)
		}
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			return resp, nil
		}
		resp.Body.Close()
		if again || resp.StatusCode != http.StatusUnauthorized || s.identity == nil {
			return nil, statusError(text, resp, header != nil)
		}
		s.identity.drop(strings.TrimPrefix(req.Header.Get("Authorization"), bearer)) // it ended before its time, or was revoked: another may do
	}
}

// where names the endpoint in an error, where it is not Azure's public cloud.
func (s *Source) where() string {
	if given := strings.Replace(s.endpoint.String(), placeholder, "{account}.", 1); given != defaultEndpoint {
		return " at " + given
	}
	return ""
}
