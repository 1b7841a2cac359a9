package http

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Open reads length bytes of f from offset, pinned to f.Version.
func (s *Source) Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error) {
	part := web.Part{Offset: offset, Length: length, Size: f.Size}
	if err := part.Check(f.Path); err != nil {
		return nil, err
	}
	req, err := s.request(ctx, http.MethodGet, ref, f.Key)
	if err != nil {
		return nil, err
	}
	if !part.Whole() && length == 0 {
		return http.NoBody, nil // no Range header can ask for nothing
	}
	if f.Digest != "" {
		same := f
		same.Version = "" // the mirror's own would be another, and the digest says more
		if body := s.mirror.Open(ctx, ref.Host, f.Key, part, func(u *url.URL) (io.ReadCloser, error) {
			at := model.Ref{Scheme: u.Scheme, Host: u.Host}
			req, err := s.request(ctx, http.MethodGet, at, u.EscapedPath()+f.Key)
			if err != nil {
				return nil, err
			}
			return s.read(req, same, part)
		}); body != nil {
			return body, nil
		}
	}
	return s.read(req, f, part)
}

// read sends a request for part of f.
func (s *Source) read(req *http.Request, f model.File, part web.Part) (io.ReadCloser, error) {
	part.Ask(req.Header)
	if strings.HasPrefix(f.Version, `"`) {
		req.Header.Set("If-Match", f.Version)
	} else if f.Version != "" {
		req.Header.Set("If-Unmodified-Since", f.Version)
	}
	resp, err := s.do(req)
	if err != nil {
		return nil, err
	}
	if err := checkAnswer(req.URL, resp, f, part); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return part.Body(req.URL, resp), nil
}

// checkAnswer lets only an answer pass that is the very range of the very version.
func checkAnswer(u *url.URL, resp *http.Response, f model.File, part web.Part) error {
	if err := part.CheckStatus(u, resp); err != nil {
		return err
	}
	if err := web.Stale(web.Bare(u)+": "+web.StatusText(resp), resp.StatusCode); err != nil {
		return err
	}
	if !part.Is(resp) {
		return statusError(u, resp)
	}
	if err := web.EncodingError(u, resp); err != nil {
		return err
	}
	if got := version(resp.Header); f.Version != "" && got != f.Version {
		return web.Changed(u, fmt.Sprintf("version %s, was %s", orNone(got), f.Version))
	}
	return part.CheckRange(u, resp)
}

// request is for the file at key, with the query and the rights of ref.
func (s *Source) request(ctx context.Context, method string, ref model.Ref, key string) (*http.Request, error) {
	at := ref
	at.Path = key
	req, err := http.NewRequestWithContext(ctx, method, at.URL(), nil)
	if err != nil {
		return nil, notAddress(at)
	}
	if err := s.mayAsk(req.URL); err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", s.config.UserAgent)
	return req, s.authorize(req)
}

func notAddress(ref model.Ref) error {
	return &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("%s: not an address", ref)}
}

// do sends req. An answer that needs no look at what was asked for comes back as an error: forbidden,
// throttled, unavailable.
func (s *Source) do(req *http.Request) (*http.Response, error) {
	resp, err := s.client.Do(req)
	if err != nil {
		if cause := context.Cause(req.Context()); cause != nil {
			return nil, fmt.Errorf("%s: %w", web.Bare(req.URL), cause)
		}
		return nil, web.SendError(req.URL, err)
	}
	switch {
	case resp.StatusCode == http.StatusForbidden && req.Method == http.MethodHead: // see probe
	case resp.StatusCode == http.StatusNotImplemented:
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden,
		resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= 500:
		resp.Body.Close()
		return nil, statusError(req.URL, resp)
	}
	return resp, nil
}

// statusError says what a status other than the wanted one means, of a read also web.Stale.
func statusError(u *url.URL, resp *http.Response) error {
	e := &model.Error{Text: fmt.Sprintf("%s: %s", web.Bare(u), web.StatusText(resp))}
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound, code == http.StatusGone:
		e.Reason, e.Final = "NotFound", true
		e.Text += ": no such file: correct the source"
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		e.Reason, e.Final = "Forbidden", true
		e.Text += ": give this host a token file in the config, or the token more rights, or renew the signed address"
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		e.Reason, e.RetryAfter = "Throttled", web.RetryAfter(resp.Header)
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooEarly:
		e.Reason = "Unavailable"
	case code >= 400:
		e.Reason, e.Final = "Refused", true
		e.Text += ": not an answer to expect there: check the address and what stands between"
	default:
		e.Reason = "WrongAnswer"
		e.Text += ": not an answer to expect there: check the address and what stands between"
	}
	return e
}

// version is the strong ETag, which If-Match can use (RFC 9110, 13.1.1), or Last-Modified, or "". A file that was changed
// in the second of the answer may change again in it, and Last-Modified says nothing of that (8.8.2.2).
func version(h http.Header) string {
	if etag := h.Get("ETag"); strings.HasPrefix(etag, `"`) {
		return etag
	}
	modified := h.Get("Last-Modified")
	at, err := http.ParseTime(modified)
	now, errNow := http.ParseTime(h.Get("Date"))
	if err != nil || errNow != nil || now.Sub(at) < time.Second {
		return ""
	}
	return modified
}

func orNone(version string) string {
	if version == "" {
		return "none"
	}
	return version
}
