// Package http reads models from web servers: one file, or the files that a SHA256SUMS lists.
//
// Reads are pinned to what Resolve saw: by a strong ETag, else by Last-Modified. A file without either has no version.
// Requests are HTTP/1.1 on purpose: HTTP/2 would put all parallel ranges on one TCP connection.
package http

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Config is how web servers are reached. The zero value is usable: https with the system's trust.
type Config struct {
	CAFile string // PEM certificates to trust beside the system's; "" for none
	Proxy  string // http://host:port of a proxy to web servers; "" for what the environment says
	// Mirrors of servers are asked first for files whose sha256 is known, without the query of the source, which may be a right.
	Mirrors    []web.Mirror
	TokenFile  string   // holds a bearer token, read anew for each request so that it may rotate; "" for none
	Hosts      []string // host[:port] that get the token; nobody else does
	AllowPlain bool     // accept http:// beyond this machine; content is then protected by its digest alone
	UserAgent  string   // "" means gpu-agent
	Streams    int      // idle connections kept per host; 0 means 64
}

// maxRedirects is how many redirects one request follows.
const maxRedirects = 5

// Source reads schemes https and http. Safe for concurrent use.
type Source struct {
	config Config
	hosts  map[string]bool
	mirror *web.Mirrors
	client *http.Client
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
	s := &Source{config: c, hosts: faults.Hosts("tokenHosts", c.Hosts)}
	s.client = &http.Client{Transport: faults.Transport(c.CAFile, c.Proxy, c.Streams), CheckRedirect: s.redirect}
	var wrong web.Faults
	s.mirror, wrong = web.NewMirrors(c.Mirrors, s.mayAsk)
	faults = append(faults, wrong...)
	switch {
	case c.TokenFile != "" && len(c.Hosts) == 0:
		faults.Wrong("tokenFile", "want tokenHosts with it: a token goes only to hosts that are named")
	case c.TokenFile == "" && len(c.Hosts) > 0:
		faults.Wrong("tokenHosts", "want tokenFile with it: there is no token to send to %s", strings.Join(c.Hosts, ", "))
	case c.TokenFile != "":
		_, err := web.Token(c.TokenFile)
		faults.File("tokenFile", err)
	}
	if err := faults.Of("http"); err != nil {
		return nil, err
	}
	return s, nil
}

// Check says why ref can never be read with this configuration, whatever the server has.
func Check(c Config, ref model.Ref) error {
	u, err := url.Parse(ref.URL())
	if err != nil {
		return notAddress(ref)
	}
	s := &Source{config: c, hosts: new(web.Faults).Hosts("", c.Hosts)}
	if err := s.mayAsk(u); err != nil {
		return err
	}
	_, err = nameOf(ref)
	return err
}

// mayAsk says why u is never asked.
func (s *Source) mayAsk(u *url.URL) error {
	if err := s.checkScheme(u); err != nil {
		return err
	}
	if s.listed(u) && u.Scheme != "https" && !web.Loopback(u.Hostname()) {
		return &model.Error{Reason: "PlainHTTP", Final: true,
			Text: fmt.Sprintf("%s: the token is not sent over plain http: use https, or take the host off the token's list", web.Bare(u))}
	}
	return nil
}

// CloseIdle closes the connections that are kept for the next request.
func (s *Source) CloseIdle() { s.client.CloseIdleConnections() }

// redirect lets a request move to another address, without what was meant for the first one.
func (s *Source) redirect(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if len(via) > maxRedirects {
		return &model.Error{Reason: "TooManyRedirects", Final: true,
			Text: fmt.Sprintf("%s: more than %d redirects", web.Bare(first), maxRedirects)}
	}
	if first.Scheme == "https" && req.URL.Scheme != "https" {
		return &model.Error{Reason: "PlainHTTP", Final: true,
			Text: fmt.Sprintf("%s redirects to %s, which is not encrypted: name a source that stays on https", web.Bare(first), web.Bare(req.URL))}
	}
	if err := s.checkScheme(req.URL); err != nil {
		return err
	}
	// net/http keeps Authorization for subdomains, and a Referer would carry a signed query elsewhere.
	if req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		req.Header.Del("Authorization")
	}
	req.Header.Del("Referer")
	return nil
}

// checkScheme refuses what is not https, except http where it cannot be overheard or is asked for.
func (s *Source) checkScheme(u *url.URL) error {
	switch {
	case u.Scheme == "https", u.Scheme == "http" && (s.config.AllowPlain || web.Loopback(u.Hostname())):
		return nil
	case u.Scheme == "http":
		return &model.Error{Reason: "PlainHTTP", Final: true,
			Text: fmt.Sprintf("%s: plain http is accepted from this machine only: use https, or allow plain http in the config", web.Bare(u))}
	}
	return &model.Error{Reason: "UnknownScheme", Final: true, Text: fmt.Sprintf("%s: want https:// or http://", web.Bare(u))}
}

// authorize adds the token where u's host is one of the listed.
func (s *Source) authorize(req *http.Request) error {
	if !s.listed(req.URL) {
		return nil
	}
	token, err := web.Token(s.config.TokenFile)
	if err != nil {
		return &model.Error{Reason: "Credentials", Text: web.Bare(req.URL), Err: err}
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return nil
}

// listed matches a host without its scheme's default port, however either side spells it.
func (s *Source) listed(u *url.URL) bool {
	port := map[string]string{"https": ":443", "http": ":80"}[u.Scheme]
	host := strings.TrimSuffix(strings.ToLower(u.Host), port)
	return s.hosts[host] || s.hosts[host+port]
}
