// Package http reads models from web servers: one file, or the files that a SHA256SUMS lists.
//
// Reads are pinned to what Resolve saw: by a strong ETag, else by Last-Modified, else by size alone.
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
	trust, err := web.Roots(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("http source: %w", err)
	}
	proxy, err := web.Proxy(c.Proxy)
	if err != nil {
		return nil, fmt.Errorf("http source: %w", err)
	}
	if c.UserAgent == "" {
		c.UserAgent = "gpu-agent"
	}
	if c.Streams <= 0 {
		c.Streams = 64
	}
	s := &Source{config: c, hosts: map[string]bool{}}
	if s.mirror, err = web.NewMirrors(c.Mirrors); err != nil {
		return nil, fmt.Errorf("http source: %w", err)
	}
	for _, h := range c.Hosts {
		u, err := url.Parse("https://" + h)
		if err != nil || h == "" || u.Host != h {
			return nil, fmt.Errorf("http source: host %q: want host or host:port", h)
		}
		s.hosts[strings.ToLower(h)] = true
	}
	switch {
	case c.TokenFile != "" && len(c.Hosts) == 0:
		return nil, fmt.Errorf("http source: token file %s: name the hosts that may get the token", c.TokenFile)
	case c.TokenFile == "" && len(c.Hosts) > 0:
		return nil, fmt.Errorf("http source: hosts %s: there is no token file to send to them", strings.Join(c.Hosts, ", "))
	case c.TokenFile != "":
		if _, err := web.Token(c.TokenFile); err != nil {
			return nil, fmt.Errorf("http source: %w", err)
		}
	}
	s.client = &http.Client{Transport: web.Transport(trust, proxy, c.Streams), CheckRedirect: s.redirect}
	return s, nil
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
	if req.URL.Scheme != "https" && !web.Loopback(req.URL.Hostname()) {
		return &model.Error{Reason: "PlainHTTP", Final: true,
			Text: fmt.Sprintf("%s: the token is not sent over plain http: use https, or take the host off the token's list", web.Bare(req.URL))}
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
