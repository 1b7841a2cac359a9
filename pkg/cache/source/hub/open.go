package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	signedFor = 30 * time.Minute // how long a signed address is used; the hub signs for an hour
	maxPlaces = 4096             // files whose places are remembered
)

// place is where one base has one file.
type place struct {
	// asking is held while the base is asked for the file: what it answers serves all ranges.
	asking chan struct{}

	// Guarded by Client.mu.
	signed *url.URL  // an address elsewhere that needs no token; nil where none is known
	until  time.Time // when signed is given up
	direct bool      // the base sends the file itself: no need to ask one after another
}

// Open reads length bytes of f from offset: from the first mirror that has them, where a digest tells what they are, else
// from the endpoint.
func (c *Client) Open(ctx context.Context, _ model.Ref, f model.File, offset, length int64) (io.ReadCloser, error) {
	part := web.Part{Offset: offset, Length: length, Size: f.Size}
	if err := part.Check(f.Path); err != nil {
		return nil, err
	}
	if !part.Whole() && length == 0 {
		return http.NoBody, nil // no Range header can ask for nothing
	}
	if f.Digest != "" || f.Check != "" {
		if body := c.mirrors.Open(ctx, c.endpoint.url.Host, f.Key+"\n"+f.Path, part, func(mirror *url.URL) (io.ReadCloser, error) {
			return c.openAt(ctx, c.bases[mirror.String()], f, part)
		}); body != nil {
			return body, nil
		}
	}
	return c.openAt(ctx, c.endpoint, f, part)
}

// place is the one of f at b, made where missing.
func (c *Client) place(b *base, f model.File) *place {
	key := b.url.String() + "\n" + f.Key + "\n" + f.Path
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.found[key]
	if p == nil {
		if len(c.found) >= maxPlaces {
			clear(c.found) // they are asked for again
		}
		p = &place{asking: make(chan struct{}, 1)}
		c.found[key] = p
	}
	return p
}

// openAt reads from b, or from where b sends us. An address that was signed earlier and is refused now
// has expired: then b is asked once more.
func (c *Client) openAt(ctx context.Context, b *base, f model.File, part web.Part) (io.ReadCloser, error) {
	p := c.place(b, f)
	if u := c.signed(p); u != nil {
		body, err := c.elsewhere(ctx, u, f, part)
		if !errors.Is(err, errExpired) {
			return body, err
		}
		c.forget(p, u)
	}
	resp, at, next, err := c.askBase(ctx, b, p, f, part)
	switch {
	case err != nil:
		return nil, err
	case next == nil:
		return c.take(at, resp, part)
	}
	body, err := c.elsewhere(ctx, next, f, part)
	if errors.Is(err, errExpired) {
		c.forget(p, next)
	}
	return body, err
}

// signed is the address to use for p without asking, or nil.
func (c *Client) signed(p *place) *url.URL {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.signed == nil || !time.Now().Before(p.until) {
		return nil
	}
	return p.signed
}

func (c *Client) forget(p *place, u *url.URL) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.signed == u {
		p.signed = nil
	}
}

// askBase asks b for the part. It returns the answer with its address, or the address elsewhere that b
// sends us to. Until b is known to send the file itself, one at a time asks, for all.
func (c *Client) askBase(ctx context.Context, b *base, p *place, f model.File, part web.Part) (*http.Response, *url.URL, *url.URL, error) {
	c.mu.Lock()
	direct := p.direct
	c.mu.Unlock()
	if !direct {
		select {
		case p.asking <- struct{}{}:
			defer func() { <-p.asking }()
		case <-ctx.Done():
			return nil, nil, nil, fmt.Errorf("%s: %w", f.Path, context.Cause(ctx))
		}
		if u := c.signed(p); u != nil {
			return nil, nil, u, nil // another was told meanwhile
		}
	}
	u, err := b.at(c.File(f))
	if err != nil {
		return nil, nil, nil, err
	}
	for range maxRedirects + 1 {
		resp, err := c.send(ctx, b, files, u, &part)
		if err != nil {
			return nil, nil, nil, err
		}
		next, err := redirected(u, resp)
		if err == nil {
			err = c.checkBase(u, resp, next != nil, f, part)
		}
		if err != nil {
			resp.Body.Close()
			return nil, nil, nil, err
		}
		if next == nil {
			c.mu.Lock()
			p.direct = true
			c.mu.Unlock()
			return resp, u, nil, nil
		}
		resp.Body.Close()
		if !b.owns(next) {
			c.mu.Lock()
			p.signed, p.until = next, time.Now().Add(signedFor)
			c.mu.Unlock()
			return nil, nil, next, nil
		}
		u = next // a repository that was renamed
	}
	return nil, nil, nil, tooManyRedirects(u)
}

// checkBase lets only an answer of b pass, a redirect or not, that speaks of the very file.
func (c *Client) checkBase(u *url.URL, resp *http.Response, sent bool, f model.File, part web.Part) error {
	if err := part.CheckStatus(u, resp); err != nil {
		return err
	}
	if c.Check != nil {
		if err := c.Check(u, resp, sent, f); err != nil {
			return err
		}
	}
	switch {
	case sent, part.Is(resp):
		return nil
	}
	err := c.refusal(web.Bare(u), resp)
	status := resp.StatusCode
	switch model.ReasonOf(err) {
	case "NotFound": // by whatever status the hub says so
		status = http.StatusNotFound
	case "Refused":
	default:
		return err
	}
	if stale := web.Stale(web.Bare(u)+": "+web.StatusText(resp), status); stale != nil {
		return stale
	}
	return err
}

// errExpired is the answer to an address whose signature does not hold, or not any more.
var errExpired = errors.New("it has expired, or this node's clock is off")

// elsewhere reads from an address that b sent us to, which carries its own rights.
func (c *Client) elsewhere(ctx context.Context, u *url.URL, f model.File, part web.Part) (io.ReadCloser, error) {
	for range maxRedirects + 1 {
		resp, err := c.send(ctx, nil, files, u, &part)
		if err != nil {
			return nil, err
		}
		next, err := redirected(u, resp)
		if next == nil && err == nil {
			if err = c.checkElsewhere(u, resp, part); err == nil {
				return c.take(u, resp, part)
			}
		}
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		u = next
	}
	return nil, tooManyRedirects(u)
}

func (c *Client) checkElsewhere(u *url.URL, resp *http.Response, part web.Part) error {
	if part.Is(resp) {
		return nil
	}
	text := fmt.Sprintf("%s: %s", web.Bare(u), web.StatusText(resp))
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		return part.CheckStatus(u, resp)
	case code == http.StatusBadRequest, code == http.StatusUnauthorized, code == http.StatusForbidden,
		code == http.StatusNotFound, code == http.StatusGone:
		return &model.Error{Reason: "Expired", Err: errExpired, Text: text + ": the signed address that the hub gave is not accepted"}
	case throttled(resp):
		return &model.Error{Reason: "Throttled", RetryAfter: asks(resp), Text: text}
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooEarly:
		return &model.Error{Reason: "Unavailable", Text: text}
	}
	if stale := web.Stale(text, resp.StatusCode); stale != nil {
		return stale
	}
	return &model.Error{Reason: "WrongAnswer", Text: text}
}

// take is the body of an answer that is held to the part.
func (c *Client) take(u *url.URL, resp *http.Response, part web.Part) (io.ReadCloser, error) {
	err := web.EncodingError(u, resp)
	if err == nil {
		err = part.CheckRange(u, resp)
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return part.Body(u, resp), nil
}
