// Package hf reads models from the Hugging Face hub and servers that speak its protocol: the API under
// /api/models, the files under /<repository>/resolve/<commit>.
//
// The endpoint says what a reference stands for: a commit, its files, their sizes and digests. The bytes
// come from the mirrors first and are held to what the endpoint said. Large files are redirected to
// addresses that are signed for about an hour: each is asked for once, not once a range, and again when
// it has expired.
package hf

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Hub is the endpoint where none is given.
const Hub = "https://huggingface.co"

// Config is one hub. The zero value is the public one, without a token.
type Config struct {
	Endpoint    string   // http(s)://host[:port][/prefix]; "" for Hub
	Mirrors     []string // addresses of the same form that are asked for files before the endpoint, in order
	TokenFile   string   // holds a token, read anew for each request so that it may rotate; "" for none
	Proxy       string   // http://host:port of a proxy to the endpoint and the mirrors; "" for what the environment says
	CAFile      string   // PEM certificates to trust beside the system's; "" for none
	AllowPickle bool     // take pickle files of every model; see model.Filter
	UserAgent   string   // "" means gpu-agent
	Streams     int      // idle connections kept per host; 0 means 64
}

// Source reads scheme hf. Safe for concurrent use.
type Source struct {
	config   Config
	endpoint *base
	mirrors  []*base
	client   *http.Client

	mu    sync.Mutex
	found map[string]*place // where files were found, by base, commit and path
}

// base is a server that speaks the protocol.
type base struct {
	url *url.URL // without a slash at its end
	// quiet is until when it asked to be left alone, in Unix nanoseconds, by what is asked of it: it counts
	// calls of the API and of files apart.
	quiet [kinds]atomic.Int64
	away  atomic.Int64 // of a mirror: until when it is passed over, in Unix nanoseconds
}

// The kinds of requests that a hub counts apart.
const (
	api = iota
	files
	kinds
)

// New checks the configuration and the files it names. It opens no connection.
func New(c Config) (*Source, error) {
	trust, err := web.Roots(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("hf source: %w", err)
	}
	proxy, err := web.Proxy(c.Proxy)
	if err != nil {
		return nil, fmt.Errorf("hf source: %w", err)
	}
	if c.Endpoint == "" {
		c.Endpoint = Hub
	}
	if c.UserAgent == "" {
		c.UserAgent = "gpu-agent"
	}
	if c.Streams <= 0 {
		c.Streams = 64
	}
	s := &Source{config: c, found: map[string]*place{}}
	if s.endpoint, err = parseBase(c.Endpoint); err != nil {
		return nil, fmt.Errorf("hf source: endpoint: %w", err)
	}
	for _, m := range c.Mirrors {
		b, err := parseBase(m)
		if err != nil {
			return nil, fmt.Errorf("hf source: mirror: %w", err)
		}
		s.mirrors = append(s.mirrors, b)
	}
	if c.TokenFile != "" {
		if u := s.endpoint.url; u.Scheme != "https" && !web.Loopback(u.Hostname()) {
			return nil, fmt.Errorf("hf source: the token is not sent to %s over plain http: use https, or no token file", u.Host)
		}
		if _, err := web.Token(c.TokenFile); err != nil {
			return nil, fmt.Errorf("hf source: %w", err)
		}
	}
	s.client = &http.Client{
		Transport: web.Transport(trust, proxy, c.Streams),
		// Redirects are followed by hand: each is another host with other rights, or the same one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, nil
}

// CloseIdle closes the connections that are kept for the next request.
func (s *Source) CloseIdle() { s.client.CloseIdleConnections() }

func parseBase(address string) (*base, error) {
	u, err := url.Parse(strings.TrimRight(address, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil ||
		u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("want http(s)://host[:port] without credentials, such as " + Hub)
	}
	return &base{url: u}, nil
}

// at is the address of an escaped path under b.
func (b *base) at(path, query string) (*url.URL, error) {
	u, err := url.Parse(b.url.String() + path)
	if err != nil {
		return nil, &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("%s: a path under it is not an address", b.url.Host)}
	}
	u.RawQuery = query
	return u, nil
}

// owns reports whether u is on b's very host, by the very protocol.
func (b *base) owns(u *url.URL) bool { return origin(u) == origin(b.url) }

// origin is scheme and host without the scheme's default port, however they are spelled.
func origin(u *url.URL) string {
	port := map[string]string{"https": ":443", "http": ":80"}[u.Scheme]
	return u.Scheme + "://" + strings.TrimSuffix(strings.ToLower(u.Host), port)
}

// passOver has a mirror not asked for d.
func (b *base) passOver(d time.Duration) { b.away.Store(time.Now().Add(d).UnixNano()) }
