package web

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Page is the media type of a web page that comes where the file of that name was asked for; "" where none does. Whoever
// wants a page names it .html.
func Page(contentType, name string) string {
	kind, _, _ := strings.Cut(contentType, ";") // what comes behind it is wrong on many servers, and says nothing here
	if kind = strings.ToLower(strings.TrimSpace(kind)); kind != "text/html" && kind != "application/xhtml+xml" {
		return ""
	}
	switch strings.ToLower(path.Ext(name)) {
	case ".html", ".htm", ".xhtml":
		return ""
	}
	return kind
}

// Part is what a request asks for: Length bytes from Offset of a file of Size.
type Part struct{ Offset, Length, Size int64 }

// Whole says that the part is all of the file, which is asked for without a Range.
func (p Part) Whole() bool { return p.Offset == 0 && p.Length == p.Size }

// Check reports a part that is not within the file at path.
func (p Part) Check(path string) error {
	if p.Offset < 0 || p.Length < 0 || p.Offset > p.Size-p.Length {
		return fmt.Errorf("open %s: %d bytes at %d are not within its %d", path, p.Length, p.Offset, p.Size)
	}
	return nil
}

// Ask puts the part into a request's headers.
func (p Part) Ask(h http.Header) {
	h.Set("Accept-Encoding", "identity")
	if !p.Whole() {
		h.Set("Range", fmt.Sprintf("bytes=%d-%d", p.Offset, p.Offset+p.Length-1))
	}
}

// Is reports whether the answer's status is that of the part. The caller explains other statuses.
func (p Part) Is(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK && p.Whole() || resp.StatusCode == http.StatusPartialContent && !p.Whole()
}

// CheckStatus refuses an answer that leaves the range out of account.
func (p Part) CheckStatus(u *url.URL, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK || p.Whole() {
		return nil
	}
	return &model.Error{Reason: "RangeIgnored",
		Text: fmt.Sprintf("%s: the server sends the whole file where a range is asked: turn on range requests there", Bare(u))}
}

// CheckRange lets only an answer pass that says it is the very range, and as long as that.
func (p Part) CheckRange(u *url.URL, resp *http.Response) error {
	if !p.Whole() {
		first, last, total, ok := ContentRange(resp.Header)
		if !ok || first != p.Offset || last != p.Offset+p.Length-1 {
			return &model.Error{Reason: "WrongRange", Text: fmt.Sprintf("%s: asked for bytes %d-%d, the server answers with %q",
				Bare(u), p.Offset, p.Offset+p.Length-1, resp.Header.Get("Content-Range"))}
		}
		if total != p.Size {
			return Changed(u, fmt.Sprintf("size %d, was %d", total, p.Size))
		}
	}
	if resp.ContentLength >= 0 && resp.ContentLength != p.Length {
		return &model.Error{Reason: "WrongLength",
			Text: fmt.Sprintf("%s: want %d bytes, the server announces %d", Bare(u), p.Length, resp.ContentLength)}
	}
	return nil
}

// Body is the body of a checked answer, which cannot be taken for more or less than the part.
func (p Part) Body(u *url.URL, resp *http.Response) io.ReadCloser {
	if resp.ContentLength >= 0 {
		return resp.Body // net/http holds the server to its Content-Length
	}
	return &exactly{ReadCloser: resp.Body, left: p.Length, url: u}
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
			return 0, &model.Error{Reason: "WrongLength", Text: Bare(e.url) + ": the server sends more than asked"}
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

// StatusText is in our words: the server's reason phrase may be anything.
func StatusText(resp *http.Response) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
}

// Changed is the error for content that is not what it was when it was resolved.
func Changed(u *url.URL, how string) error {
	return &model.Error{Reason: "Changed", Text: fmt.Sprintf("%s: changed since it was resolved (%s)", Bare(u), how)}
}

// Stale says what status means to a read of what was resolved: that it is gone or another now, which Resolve will say more
// of. It is nil where status does not say so. text is what was tried.
func Stale(text string, status int) error {
	how := ""
	switch status {
	case http.StatusNotFound, http.StatusGone:
		how = "it is gone"
	case http.StatusPreconditionFailed:
		how = "it is another version"
	case http.StatusRequestedRangeNotSatisfiable:
		how = "it is shorter than it was"
	default:
		return nil
	}
	return &model.Error{Reason: "Changed", Text: text + ": changed since it was resolved: " + how}
}

// Unexpected is the end of an error's text for a status that nothing explains: which address gave it, and what to do.
func Unexpected(resp *http.Response) string {
	return ": not an answer to expect of " + Bare(resp.Request.URL) + ": check the endpoint and what stands between"
}

// EncodingError refuses compression that was not asked for: its bytes are not those of the file.
func EncodingError(u *url.URL, resp *http.Response) error {
	enc := resp.Header.Get("Content-Encoding")
	if enc == "" || strings.EqualFold(enc, "identity") {
		return nil
	}
	return &model.Error{Reason: "Encoded", Final: true,
		Text: fmt.Sprintf("%s: the server sends Content-Encoding %q unasked: turn compression off there", Bare(u), enc)}
}

// ContentRange parses "bytes first-last/total" (RFC 9110, 14.4). An unknown total, "*", is not ok: it pins nothing.
func ContentRange(h http.Header) (first, last, total int64, ok bool) {
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

// maxWait bounds what a Retry-After may ask for. A date is only as good as both clocks, and what is meant is minutes.
const maxWait = time.Hour

// RetryAfter is seconds or a date (RFC 9110, 10.2.3), an hour at most; 0 where neither.
func RetryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if s, err := strconv.ParseInt(text, 10, 32); err == nil && s > 0 {
		return min(time.Duration(s)*time.Second, maxWait)
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(0, time.Until(at).Round(time.Second)), maxWait)
	}
	return 0
}

// skew is how far clocks may be apart: clouds refuse signatures that are older than five to fifteen minutes.
const skew = 4 * time.Minute

// ClockOff is the error for a refusal that the clocks explain: the answer's Date is far from this machine's. It
// is nil where they agree. What is tried again helps once the clock is right.
func ClockOff(at string, resp *http.Response) error {
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return nil
	}
	off := time.Since(theirs).Round(time.Second)
	if off.Abs() < skew {
		return nil
	}
	word := "ahead of"
	if off < 0 {
		word = "behind"
	}
	return &model.Error{Reason: "ClockSkew", Text: fmt.Sprintf("%s: %s: this node's clock is %s %s the server's: set it right (chrony, systemd-timesyncd)",
		at, StatusText(resp), off.Abs(), word)}
}
