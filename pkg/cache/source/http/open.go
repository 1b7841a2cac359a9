package http

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Open reads length bytes of f from offset, pinned to f.Version.
func (s *Source) Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || length < 0 || offset > f.Size-length {
		return nil, fmt.Errorf("open %s: %d bytes at %d are not within its %d", f.Path, length, offset, f.Size)
	}
	req, err := s.request(ctx, http.MethodGet, ref, f.Key)
	if err != nil {
		return nil, err
	}
	whole := offset == 0 && length == f.Size
	if !whole && length == 0 {
		return http.NoBody, nil // no Range header can ask for nothing
	}
	if !whole {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	}
	if strings.HasPrefix(f.Version, `"`) {
		req.Header.Set("If-Match", f.Version)
	} else if f.Version != "" {
		req.Header.Set("If-Unmodified-Since", f.Version)
	}
	resp, err := s.do(req)
	if err != nil {
		return nil, err
	}
	if err := checkAnswer(req.URL, resp, f, offset, length, whole); err != nil {
		resp.Body.Close()
		return nil, err
	}
	if resp.ContentLength >= 0 {
		return resp.Body, nil // net/http holds the server to its Content-Length
	}
	return &exactly{ReadCloser: resp.Body, left: length, url: req.URL}, nil
}

// checkAnswer lets only an answer pass that is the very range of the very version.
func checkAnswer(u *url.URL, resp *http.Response, f model.File, offset, length int64, whole bool) error {
	switch {
	case resp.StatusCode == http.StatusOK && !whole:
		return &model.Error{Reason: "RangeIgnored",
			Text: fmt.Sprintf("%s: the server sends the whole file where a range is asked: turn on range requests there", bare(u))}
	case resp.StatusCode == http.StatusOK && whole, resp.StatusCode == http.StatusPartialContent && !whole:
	default:
		return statusError(u, resp)
	}
	if err := encodingError(u, resp); err != nil {
		return err
	}
	if got := version(resp.Header); f.Version != "" && got != f.Version {
		return changed(u, fmt.Sprintf("version %s, was %s", orNone(got), f.Version))
	}
	if !whole {
		first, last, total, ok := contentRange(resp.Header)
		if !ok || first != offset || last != offset+length-1 {
			return &model.Error{Reason: "WrongRange", Text: fmt.Sprintf("%s: asked for bytes %d-%d, the server answers with %q",
				bare(u), offset, offset+length-1, resp.Header.Get("Content-Range"))}
		}
		if total != f.Size {
			return changed(u, fmt.Sprintf("size %d, was %d", total, f.Size))
		}
	}
	if resp.ContentLength >= 0 && resp.ContentLength != length {
		return &model.Error{Reason: "WrongLength",
			Text: fmt.Sprintf("%s: want %d bytes, the server announces %d", bare(u), length, resp.ContentLength)}
	}
	return nil
}

// exactly is a body of unknown length that must have left bytes: fewer is io.ErrUnexpectedEOF, more is an error.
type exactly struct {
	io.ReadCloser
	left int64
	url  *url.URL
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		var one [1]byte
		n, err := e.ReadCloser.Read(one[:])
		if n > 0 {
			return 0, &model.Error{Reason: "WrongLength", Text: bare(e.url) + ": the server sends more than asked"}
		}
		return 0, err
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.ReadCloser.Read(p)
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// request is for the file at key, with the query and the rights of ref.
func (s *Source) request(ctx context.Context, method string, ref model.Ref, key string) (*http.Request, error) {
	at := ref
	at.Path = key
	req, err := http.NewRequestWithContext(ctx, method, at.URL(), nil)
	if err != nil {
		return nil, &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("%s: not an address", at)}
	}
	if err := s.checkScheme(req.URL); err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", s.config.UserAgent)
	return req, s.authorize(req)
}

// do sends req. An answer that needs no look at what was asked for comes back as an error: not found,
// forbidden, throttled, unavailable.
func (s *Source) do(req *http.Request) (*http.Response, error) {
	resp, err := s.client.Do(req)
	if err != nil {
		if cause := context.Cause(req.Context()); cause != nil {
			return nil, fmt.Errorf("%s: %w", bare(req.URL), cause)
		}
		return nil, sendError(req.URL, err)
	}
	switch {
	case resp.StatusCode == http.StatusForbidden && req.Method == http.MethodHead: // see probe
	case resp.StatusCode == http.StatusNotImplemented:
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden,
		resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusGone,
		resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= 500:
		resp.Body.Close()
		return nil, statusError(req.URL, resp)
	}
	return resp, nil
}

// statusError says what a status other than the wanted one means.
func statusError(u *url.URL, resp *http.Response) error {
	status := statusText(resp)
	e := &model.Error{Text: fmt.Sprintf("%s: %s", bare(u), status)}
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound, code == http.StatusGone:
		e.Reason, e.Final = "NotFound", true
		e.Text += ": no such file: correct the source"
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		e.Reason, e.Final = "Forbidden", true
		e.Text += ": give this host a token file in the config, or the token more rights, or renew the signed address"
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		e.Reason, e.RetryAfter = "Throttled", retryAfter(resp.Header)
	case code == http.StatusPreconditionFailed:
		return changed(u, status)
	case code == http.StatusRequestedRangeNotSatisfiable:
		return changed(u, status+": it is shorter than it was")
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooEarly:
		e.Reason = "Unavailable"
	case code >= 400:
		e.Reason, e.Final = "Refused", true
	default:
		e.Reason = "WrongAnswer"
	}
	return e
}

// statusText is in our words: the server's reason phrase may be anything.
func statusText(resp *http.Response) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
}

func changed(u *url.URL, how string) error {
	return &model.Error{Reason: "Changed", Text: fmt.Sprintf("%s: changed since it was resolved (%s)", bare(u), how)}
}

func encodingError(u *url.URL, resp *http.Response) error {
	enc := resp.Header.Get("Content-Encoding")
	if enc == "" || strings.EqualFold(enc, "identity") {
		return nil
	}
	return &model.Error{Reason: "Encoded", Final: true,
		Text: fmt.Sprintf("%s: the server sends Content-Encoding %q unasked: turn compression off there", bare(u), enc)}
}

// version is the strong ETag, which If-Match can use (RFC 9110, 13.1.1), or Last-Modified, or "".
func version(h http.Header) string {
	if etag := h.Get("ETag"); strings.HasPrefix(etag, `"`) {
		return etag
	}
	return h.Get("Last-Modified")
}

func orNone(version string) string {
	if version == "" {
		return "none"
	}
	return version
}

// contentRange parses "bytes first-last/total" (RFC 9110, 14.4). An unknown total, "*", is not ok: it pins nothing.
func contentRange(h http.Header) (first, last, total int64, ok bool) {
	text, found := strings.CutPrefix(h.Get("Content-Range"), "bytes ")
	span, size, found2 := strings.Cut(text, "/")
	a, b, found3 := strings.Cut(span, "-")
	if !found || !found2 || !found3 {
		return 0, 0, 0, false
	}
	var err [3]error
	first, err[0] = strconv.ParseInt(a, 10, 64)
	last, err[1] = strconv.ParseInt(b, 10, 64)
	total, err[2] = strconv.ParseInt(size, 10, 64)
	return first, last, total, err == [3]error{} && 0 <= first && first <= last && last < total
}

// retryAfter is seconds or a date (RFC 9110, 10.2.3); 0 where neither.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if s, err := strconv.ParseInt(text, 10, 32); err == nil && s > 0 {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at).Round(time.Second))
	}
	return 0
}
