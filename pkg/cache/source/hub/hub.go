// Package hub is what the sources share that read hubs of models. One endpoint says what a reference stands for, the
// files with their sizes and digests, and alone gets the token. The bytes come from the mirrors first and are held to
// what the endpoint said. Large files are redirected to addresses that are signed for a while: each is asked for once,
// not once a range, and again when it has expired.
package hub

import (
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

// Config is one hub. The zero value is the public one, without a token.
type Config struct {
	Endpoint    string   // http(s)://host[:port][/prefix]; "" for the public hub
	Mirrors     []string // addresses of the same form that are asked for files before the endpoint, in order
	TokenFile   string   // holds a token, read anew for each request so that it may rotate; "" for none
	Proxy       string   // http://host:port of a proxy to the endpoint and the mirrors; "" for what the environment says
	CAFile      string   // PEM certificates to trust beside the system's; "" for none
	AllowPickle bool     // take pickle files of every model; see model.Filter
	UserAgent   string   // "" means gpu-agent
	Streams     int      // idle connections kept per host; 0 means 64
}

// Protocol is what each kind of hub has its own way for. Safe for concurrent use.
type Protocol struct {
	Scheme string // of references, and the name under cache.sources
	Public string // the public hub's address
	Branch string // what a reference without a revision means
	// Authorize adds the token to a request to the endpoint.
	Authorize func(h http.Header, token string)
	// File is where a file is: the escaped path and the query that follow a server's address.
	File func(f model.File) (path, query string)
	// Check refuses an answer, redirected says whether it is a redirect, that is not about the very file. It may leave what
	// is no answer at all to Refusal. nil where answers say nothing of that.
	Check func(u *url.URL, resp *http.Response, redirected bool, f model.File) error
	// Refusal is the reason of a status of 400 and more, and what a person should do about it; "" where there is no more
	// to say than the status.
	Refusal func(c *Client, resp *http.Response) (reason, what string)
}

// Client speaks to one hub and its mirrors. Safe for concurrent use.
type Client struct {
	Protocol
	config   Config
	endpoint *base
	bases    map[string]*base // the mirrors by address
	mirrors  *web.Mirrors
	client   *http.Client

	mu    sync.Mutex
	found map[string]*place // where files were found, by base, key and path
}

// base is a server that speaks the protocol.
type base struct {
	url *url.URL // without a slash at its end
	// quiet is until when it asked to be left alone, nil for never, by what is asked of it: it counts calls of the API
	// and of files apart. Not a number: the clock may be set meanwhile.
	quiet [kinds]atomic.Pointer[time.Time]
}

// The kinds of requests that a hub counts apart.
const (
	api = iota
	files
	kinds
)

// New checks the configuration and the files it names. It opens no connection.
func New(p Protocol, c Config) (*Client, error) {
	var faults web.Faults
	if c.Endpoint == "" {
		c.Endpoint = p.Public
	}
	if c.UserAgent == "" {
		c.UserAgent = "gpu-agent"
	}
	if c.Streams <= 0 {
		c.Streams = 64
	}
	h := &Client{Protocol: p, config: c, bases: map[string]*base{}, found: map[string]*place{}}
	at, err := web.Address(c.Endpoint, p.Public)
	faults.Add("endpoint", err)
	h.endpoint = &base{url: at}
	var list []web.Mirror
	for i, m := range c.Mirrors {
		u, err := web.Address(m, p.Public)
		faults.Add(fmt.Sprintf("mirrors[%d]", i), err)
		if err == nil && at != nil {
			h.bases[u.String()] = &base{url: u}
			list = append(list, web.Mirror{Of: at.Host, URL: u.String()})
		}
	}
	h.mirrors, _ = web.NewMirrors(list, nil) // which were checked
	if c.TokenFile != "" {
		if at != nil && at.Scheme != "https" && !web.Loopback(at.Hostname()) {
			faults.Wrong("tokenFile", "the token is not sent to %s over plain http: use https, or no token file", at.Host)
		}
		_, err := web.Token(c.TokenFile)
		faults.File("tokenFile", err)
	}
	transport := faults.Transport(c.CAFile, c.Proxy, c.Streams)
	if err := faults.Of(p.Scheme); err != nil {
		return nil, err
	}
	h.client = &http.Client{
		Transport: transport,
		// Redirects are followed by hand: each is another host with other rights, or the same one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return h, nil
}

// CloseIdle closes the connections that are kept for the next request.
func (c *Client) CloseIdle() { c.client.CloseIdleConnections() }

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
