package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// maxRedirects is how many redirects one request follows.
const maxRedirects = 5

// send asks for u, with part's headers where part is given. The token goes to the endpoint's host and to
// nobody else, whoever sent us there. Where b is given, u is at b, which may have asked to be left alone.
func (c *Client) send(ctx context.Context, b *base, kind int, u *url.URL, part *web.Part) (*http.Response, error) {
	if b != nil {
		until := b.quiet[kind].Load()
		if until == nil {
			until = &time.Time{}
		}
		if wait := time.Until(*until); wait > 0 {
			return nil, &model.Error{Reason: "Throttled", RetryAfter: wait,
				Text: fmt.Sprintf("%s: its limit of requests is used up for another %s: a token of its own may raise it", u.Host, wait.Round(time.Second))}
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("%s: not an address", web.Bare(u))}
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", c.config.UserAgent)
	if part != nil {
		part.Ask(req.Header)
	}
	if c.config.TokenFile != "" && c.endpoint.owns(u) {
		token, err := web.Token(c.config.TokenFile)
		if err != nil {
			return nil, &model.Error{Reason: "Credentials", Text: web.Bare(u), Err: err}
		}
		c.Authorize(req.Header, token)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, fmt.Errorf("%s: %w", web.Bare(u), cause)
		}
		return nil, web.SendError(u, err)
	}
	if b != nil {
		if wait := asks(resp); wait > 0 {
			b.quiet[kind].Store(new(time.Now().Add(wait)))
		}
	}
	return resp, nil
}

// asks is for how long an answer says that no further request is welcome; 0 where it does not.
func asks(resp *http.Response) time.Duration {
	wait := usedUp(resp.Header)
	if throttled(resp) {
		wait = max(wait, web.RetryAfter(resp.Header))
	}
	return wait
}

func throttled(resp *http.Response) bool {
	return resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable
}

// maxWindow bounds what a RateLimit may ask for: a hub's windows are of five minutes.
const maxWindow = time.Hour

// usedUp is the time until a limit that has nothing left begins anew, from a header such as
// RateLimit: "resolvers";r=0;t=55 (draft-ietf-httpapi-ratelimit-headers); 0 where something is left.
func usedUp(h http.Header) (wait time.Duration) {
	for limit := range strings.SplitSeq(h.Get("RateLimit"), ",") {
		left, reset := int64(-1), int64(0)
		for field := range strings.SplitSeq(limit, ";") {
			key, value, _ := strings.Cut(strings.TrimSpace(field), "=")
			n, err := strconv.ParseInt(value, 10, 32)
			switch {
			case err != nil:
			case key == "r":
				left = n
			case key == "t":
				reset = n
			}
		}
		if left == 0 {
			wait = max(wait, min(time.Duration(reset)*time.Second, maxWindow))
		}
	}
	return wait
}

// redirected is where an answer sends us; nil where it does not. It refuses to leave encryption.
func redirected(u *url.URL, resp *http.Response) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	next, err := u.Parse(resp.Header.Get("Location"))
	switch {
	case err != nil || resp.Header.Get("Location") == "" || next.Host == "" || next.User != nil:
		return nil, &model.Error{Reason: "WrongAnswer", Text: fmt.Sprintf("%s: redirects to what is not an address", web.Bare(u))}
	case next.Scheme != "https" && next.Scheme != "http":
		return nil, &model.Error{Reason: "UnknownScheme", Final: true, Text: fmt.Sprintf("%s: want https:// or http://", web.Bare(next))}
	case u.Scheme == "https" && next.Scheme != "https":
		return nil, &model.Error{Reason: "PlainHTTP", Final: true,
			Text: fmt.Sprintf("%s redirects to %s, which is not encrypted", web.Bare(u), web.Bare(next))}
	}
	return next, nil
}

func tooManyRedirects(u *url.URL) error {
	return &model.Error{Reason: "TooManyRedirects", Final: true,
		Text: fmt.Sprintf("%s: more than %d redirects", web.Bare(u), maxRedirects)}
}

// refusal says what an answer other than the wanted one means. subject is the reference, or a file's place.
func (c *Client) refusal(subject string, resp *http.Response) error {
	e := &model.Error{Final: true}
	what := ""
	switch status := resp.StatusCode; {
	case throttled(resp):
		e.Reason, e.Final, e.RetryAfter = "Throttled", false, asks(resp)
		what = "the hub's limit of requests is used up: a token of its own may raise it"
	case status >= 500, status == http.StatusRequestTimeout, status == http.StatusTooEarly:
		e.Reason, e.Final = "Unavailable", false
	case status >= 400:
		e.Reason, what = c.Refusal(c, resp)
	default:
		e.Reason, e.Final = "WrongAnswer", false
		what = "not the answer of a hub: check the endpoint"
	}
	e.Text = fmt.Sprintf("%s: %s", subject, web.StatusText(resp))
	switch {
	case what != "":
		e.Text += ": " + what
	case e.Reason == "Refused":
		e.Text += web.Unexpected(resp)
	}
	return e
}

// HasToken says whether the endpoint gets a token.
func (c *Client) HasToken() bool { return c.config.TokenFile != "" }

// NameToken says what to do where a token is missing, or is not enough.
func (c *Client) NameToken() string {
	if !c.HasToken() {
		return "name a file with a token that may read it (cache.sources." + c.Scheme + ".tokenFile)"
	}
	return "put one that may read it into " + c.config.TokenFile
}

// WrongAnswer is the error for an answer of the endpoint's API that a hub would not give.
func (c *Client) WrongAnswer(ref model.Ref, why string) error {
	return &model.Error{Reason: "WrongAnswer",
		Text: fmt.Sprintf("%s: the answer of %s is not a hub's: %s: check the endpoint", ref, c.endpoint.url.Host, why)}
}

// maxAnswer is how many bytes of JSON one answer may have. A thousand files take about 400 KB.
const maxAnswer = 8 << 20

// JSON asks the endpoint's API at an escaped path and decodes the answer, which is bounded. It follows redirects on the
// same host, as those of a renamed repository are; moved says that it did so to another path.
func (c *Client) JSON(ctx context.Context, ref model.Ref, path, query string, into any) (moved bool, h http.Header, err error) {
	first, err := c.endpoint.at(path, query)
	if err != nil {
		return false, nil, err
	}
	u := first
	for range maxRedirects + 1 {
		resp, err := c.send(ctx, c.endpoint, api, u, nil)
		if err != nil {
			return false, nil, fmt.Errorf("%s: %w", ref, err)
		}
		next, err := redirected(u, resp)
		switch {
		case err != nil:
		case next == nil:
			err = c.decode(ctx, ref, u, resp, into)
		case !c.endpoint.owns(next):
			err = &model.Error{Reason: "Moved", Final: true,
				Text: fmt.Sprintf("%s: %s redirects to %s: make that the endpoint if you trust it", ref, u.Host, origin(next))}
		}
		resp.Body.Close()
		if next == nil || err != nil {
			return u.Path != first.Path, resp.Header, err
		}
		u = next
	}
	return false, nil, tooManyRedirects(u)
}

func (c *Client) decode(ctx context.Context, ref model.Ref, u *url.URL, resp *http.Response, into any) error {
	if resp.StatusCode != http.StatusOK {
		return c.refusal(ref.String(), resp)
	}
	if err := web.EncodingError(u, resp); err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil && context.Cause(ctx) != nil:
		return fmt.Errorf("%s: %w", ref, context.Cause(ctx))
	case err != nil:
		return web.SendError(u, err)
	case len(text) > maxAnswer:
		return &model.Error{Reason: "TooLarge", Final: true,
			Text: fmt.Sprintf("%s: an answer of %s is larger than %d MiB: the repository is too large for the cache", ref, u.Host, maxAnswer>>20)}
	}
	if err := json.Unmarshal(text, into); err != nil {
		return c.WrongAnswer(ref, "it is not JSON of the form that is asked for")
	}
	return nil
}
