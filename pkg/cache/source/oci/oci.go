// Package oci reads models that registries hold: as artifacts with one layer a file, or with layers that are
// archives, as in ModelKits and container images.
//
// A layer is named by its sha256, so what is read cannot change, and a file needs no other pin. Requests
// are HTTP/1.1 on purpose: HTTP/2 would put all parallel ranges on one TCP connection.
package oci

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"

	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Config is how registries are reached. The zero value is usable: https with the system's trust, no credentials.
type Config struct {
	CredentialsFile string // in the form of ~/.docker/config.json, read anew for each login; "" for none
	CAFile          string // PEM certificates to trust beside the system's; "" for none
	Proxy           string // http://host:port of a proxy to registries; "" for what the environment says
	// Mirrors of registries are asked for layers first. A mirror's path comes before the repository. What it sends is held to
	// the digest that the registry named, and it gets no login but one of its own.
	Mirrors    []web.Mirror
	PlainHosts []string // host[:port] spoken to without TLS, and so without credentials; this machine always is
	UserAgent  string   // "" means gpu-agent
	Streams    int      // idle connections kept per host; 0 means 64
}

// maxRedirects is how many redirects one request follows.
const maxRedirects = 5

// Source reads scheme oci. Safe for concurrent use.
type Source struct {
	client *auth.Client
	logins *logins
	idle   *http.Transport
	plain  map[string]bool

	mirrors *web.Mirrors
}

// New checks the configuration and the files it names. It opens no connection.
func New(c Config) (*Source, error) {
	var faults web.Faults
	if c.UserAgent == "" {
		c.UserAgent = "gpu-agent"
	}
	if c.Streams <= 0 {
		c.Streams = 64
	}
	s := &Source{logins: newLogins(), plain: faults.Hosts("plainHosts", c.PlainHosts), idle: faults.Transport(c.CAFile, c.Proxy, c.Streams)}
	var wrong web.Faults
	s.mirrors, wrong = web.NewMirrors(c.Mirrors, s.mayAsk)
	faults = append(faults, wrong...)
	if c.CredentialsFile != "" {
		_, err := readCredentials(c.CredentialsFile)
		faults.File("credentialsFile", err)
	}
	if err := faults.Of("oci"); err != nil {
		return nil, err
	}
	s.client = &auth.Client{
		Client: &http.Client{Transport: guard{s}, CheckRedirect: s.redirect}, // and no retries: the fetcher retries
		Header: http.Header{"User-Agent": {c.UserAgent}},
		Cache:  s.logins,
	}
	if c.CredentialsFile == "" {
		return s, nil
	}
	s.client.Credential = func(ctx context.Context, host string) (auth.Credential, error) {
		store, err := readCredentials(c.CredentialsFile)
		if err != nil {
			return auth.EmptyCredential, &model.Error{Reason: "Credentials", Text: "registry credentials", Err: err}
		}
		return store.Get(ctx, credentials.ServerAddressFromHostname(host))
	}
	return s, nil
}

// logins are what registries took to let us in. A 401 has them replaced; some registries, as ECR, say 403 of a password that
// has ended.
type logins struct{ kept atomic.Pointer[auth.Cache] }

func newLogins() *logins {
	l := &logins{}
	l.forget()
	return l
}

// forget has the next request log in anew.
func (l *logins) forget() { l.kept.Store(new(auth.NewCache())) }

// GetScheme implements auth.Cache.
func (l *logins) GetScheme(ctx context.Context, host string) (auth.Scheme, error) {
	return (*l.kept.Load()).GetScheme(ctx, host)
}

// GetToken implements auth.Cache.
func (l *logins) GetToken(ctx context.Context, host string, scheme auth.Scheme, key string) (string, error) {
	return (*l.kept.Load()).GetToken(ctx, host, scheme, key)
}

// Set implements auth.Cache.
func (l *logins) Set(ctx context.Context, host string, scheme auth.Scheme, key string, fetch func(context.Context) (string, error)) (string, error) {
	return (*l.kept.Load()).Set(ctx, host, scheme, key, fetch)
}

// CloseIdle closes the connections that are kept for the next request.
func (s *Source) CloseIdle() { s.idle.CloseIdleConnections() }

// readCredentials takes the logins that the file holds itself: no credential helper is run.
func readCredentials(file string) (credentials.Store, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("credentials file: %w", err)
	}
	store, err := credentials.NewMemoryStoreFromDockerConfig(text)
	if err != nil || !strings.Contains(string(text), `"auths"`) { // its own words could repeat what is in the file
		return nil, fmt.Errorf(`credentials file %s: want a Docker config.json with {"auths": {"<registry>": {"auth": "<base64>"}}}; credential helpers are not run`, file)
	}
	return store, nil
}

// mayAsk says why u is never asked.
func (s *Source) mayAsk(u *url.URL) error {
	if u.Scheme == "https" || web.Loopback(u.Hostname()) || s.plain[strings.ToLower(u.Host)] {
		return nil
	}
	return &model.Error{Reason: "PlainHTTP", Final: true,
		Text: web.Bare(u) + ": plain http is accepted from this machine only: use https, or list the host as plain in the config"}
}

// guard is the last gate before the network, for requests of ours and those for tokens alike.
type guard struct{ *Source }

func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "https" || web.Loopback(req.URL.Hostname()) {
		return g.idle.RoundTrip(req)
	}
	err := g.mayAsk(req.URL)
	switch {
	case err != nil:
	case req.Header.Get("Authorization") != "" || req.Method == http.MethodPost: // a login with a refresh token is a POST
		err = &model.Error{Reason: "PlainHTTP", Final: true,
			Text: web.Bare(req.URL) + ": credentials are not sent over plain http: use https, or let everyone read there"}
	default:
		return g.idle.RoundTrip(req)
	}
	if req.Body != nil {
		req.Body.Close()
	}
	return nil, err
}

// redirect lets a request move to another address. The client has taken Authorization off by then where
// the scheme, the host or the port is another.
func (s *Source) redirect(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if len(via) > maxRedirects {
		return &model.Error{Reason: "TooManyRedirects", Final: true,
			Text: fmt.Sprintf("%s: more than %d redirects", web.Bare(first), maxRedirects)}
	}
	if first.Scheme == "https" && req.URL.Scheme != "https" {
		return &model.Error{Reason: "PlainHTTP", Final: true,
			Text: fmt.Sprintf("%s redirects to %s, which is not encrypted: name a registry that stays on https", web.Bare(first), web.Bare(req.URL))}
	}
	if !web.Loopback(first.Hostname()) && web.Loopback(req.URL.Hostname()) {
		return &model.Error{Reason: "Refused", Final: true,
			Text: fmt.Sprintf("%s redirects to this machine: name another registry", web.Bare(first))}
	}
	req.Header.Del("Referer") // a signed query stays where it is
	return nil
}

// Check says why ref can never be read, whatever the registry has.
func Check(ref model.Ref) error {
	_, err := parse(ref)
	return err
}

// parse takes ref apart into registry, repository and tag or digest.
func parse(ref model.Ref) (registry.Reference, error) {
	bad := func(text string) (registry.Reference, error) {
		return registry.Reference{}, &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("%s: %s", ref, text)}
	}
	if ref.Query != "" || ref.Digest != "" {
		return bad("a registry takes no ? and no #: pin the content with @sha256:<64 hexadecimal digits>")
	}
	r, err := registry.ParseReference(ref.Host + ref.Path)
	if err != nil || strings.HasSuffix(ref.Path, ":") {
		return bad("want oci://registry/repository, then nothing, :tag or @sha256:<64 hexadecimal digits>; repositories are in lower case")
	}
	if r.Reference == "" {
		r.Reference = "latest"
	}
	return r, nil
}

// request is for what of the registry, "manifests" or "blobs", in ref's repository.
func (s *Source) request(ctx context.Context, ref registry.Reference, what, name string) (*http.Request, error) {
	u := url.URL{Scheme: "https", Host: ref.Host()}
	if web.Loopback(u.Hostname()) || s.plain[strings.ToLower(u.Host)] {
		u.Scheme = "http"
	}
	return s.requestAt(ctx, u, ref, what, name)
}

// requestAt asks the server at u, by ref's repository.
func (s *Source) requestAt(ctx context.Context, u url.URL, ref registry.Reference, what, name string) (*http.Request, error) {
	u.Path = "/v2/" + ref.Repository + "/" + what + "/" + name
	ctx = auth.AppendRepositoryScope(ctx, ref, auth.ActionPull)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("oci://%s: not an address", ref)}
	}
	req.Header.Set("Accept-Encoding", "identity")
	return req, nil
}

// do sends req, with a login where the registry asks for one. An answer other than 200 or 206 comes back
// as an error; moved says that what is not there may have been, when it was resolved.
func (s *Source) do(req *http.Request, moved bool) (*http.Response, error) {
	resp, err := s.client.Do(req)
	if err != nil {
		if cause := context.Cause(req.Context()); cause != nil {
			return nil, fmt.Errorf("%s: %w", web.Bare(req.URL), cause)
		}
		return nil, sendError(req.URL, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		if resp.StatusCode == http.StatusForbidden {
			s.logins.forget()
		}
		return nil, statusError(req.URL, resp, moved)
	}
	if err := web.EncodingError(req.URL, resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}
