package hf

import (
	"context"
	"fmt"
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
func (s *Source) send(ctx context.Context, b *base, kind int, u *url.URL, part *web.Part) (*http.Response, error) {
	if b != nil {
		if wait := time.Until(time.Unix(0, b.quiet[kind].Load())); wait > 0 {
			return nil, &model.Error{Reason: "Throttled", RetryAfter: wait,
				Text: fmt.Sprintf("%s: its limit of requests is used up for another %s: a token of its own raises it", u.Host, wait.Round(time.Second))}
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("%s: not an address", web.Bare(u))}
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", s.config.UserAgent)
	if part != nil {
		part.Ask(req.Header)
	}
	if s.config.TokenFile != "" && s.endpoint.owns(u) {
		token, err := web.Token(s.config.TokenFile)
		if err != nil {
			return nil, &model.Error{Reason: "Credentials", Text: web.Bare(u), Err: err}
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, fmt.Errorf("%s: %w", web.Bare(u), cause)
		}
		return nil, web.SendError(u, err)
	}
	if b != nil {
		if wait := asks(resp); wait > 0 {
			b.quiet[kind].Store(time.Now().Add(wait).UnixNano())
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
func (s *Source) refusal(subject string, resp *http.Response) error {
	status, code := resp.StatusCode, resp.Header.Get("X-Error-Code")
	says := strings.ToLower(resp.Header.Get("X-Error-Message"))
	e := &model.Error{Final: true}
	what := ""
	switch {
	case throttled(resp):
		e.Reason, e.Final, e.RetryAfter = "Throttled", false, asks(resp)
		what = "the hub's limit of requests is used up: a token of its own raises it"
	case status >= 500, status == http.StatusRequestTimeout, status == http.StatusTooEarly:
		e.Reason, e.Final = "Unavailable", false
	case code == "GatedRepo":
		e.Reason, what = "Gated", s.gated()
	case strings.Contains(says, "disabled"):
		e.Reason, what = "Disabled", "the hub has disabled this repository: take another"
	case strings.Contains(says, "invalid credentials"):
		e.Reason, what = "Forbidden", "the hub does not accept the token, which is wrong or has expired: "+s.nameToken()
	case code == "RevisionNotFound":
		e.Reason, what = "NotFound", "the repository has no such revision: correct what follows the @"
	case code == "EntryNotFound":
		e.Reason, what = "NotFound", "the revision has no such file"
	case status == http.StatusNotFound, status == http.StatusGone, code == "RepoNotFound",
		status == http.StatusUnauthorized && s.config.TokenFile == "":
		e.Reason, what = "NotFound", "no such repository, or a private one, which the hub does not tell apart: correct the name, or "+s.nameToken()
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		e.Reason, what = "Forbidden", "the token has no right to read this repository, or has expired: "+s.nameToken()
	case status >= 400:
		e.Reason = "Refused"
	default:
		e.Reason, e.Final = "WrongAnswer", false
		what = "not the answer of a hub: check the endpoint"
	}
	e.Text = fmt.Sprintf("%s: %s", subject, web.StatusText(resp))
	if what != "" {
		e.Text += ": " + what
	}
	return e
}

// gated says what to do about a repository whose terms have to be accepted.
func (s *Source) gated() string {
	how := "the repository is gated: accept its terms on its page, and " + s.nameToken()
	if s.config.TokenFile != "" {
		how = "the repository is gated and the token's account has no access: ask for it on the repository's page, or " + s.nameToken()
	}
	return how
}

func (s *Source) nameToken() string {
	if s.config.TokenFile == "" {
		return "name a file with a token that may read it (cache.sources.hf.tokenFile)"
	}
	return "put one that may read it into " + s.config.TokenFile
}
