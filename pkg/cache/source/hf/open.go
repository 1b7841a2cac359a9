package hf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	signedFor = 30 * time.Minute // how long a signed address is used; the hub signs for an hour
	maxPlaces = 4096             // files whose places are remembered
	mirrorOut = time.Minute      // how long a mirror that failed is passed over
	wrongOut  = time.Hour        // how long one whose file was not taken is passed over for it
)

// place is where one base has one file.
type place struct {
	// asking is held while the base is asked for the file: what it answers serves all ranges.
	asking chan struct{}

	// Guarded by Source.mu.
	signed *url.URL  // an address elsewhere that needs no token; nil where none is known
	until  time.Time // when signed is given up
	direct bool      // the base sends the file itself: no need to ask one after another
	lacks  time.Time // a mirror does not have it, until then
	served bool      // a mirror has sent its start
}

// Open reads length bytes of f from offset, at the commit that f was listed in: from the first mirror that
// has them, else from the endpoint.
func (s *Source) Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error) {
	part := web.Part{Offset: offset, Length: length, Size: f.Size}
	if err := part.Check(f.Path); err != nil {
		return nil, err
	}
	if !part.Whole() && length == 0 {
		return http.NoBody, nil // no Range header can ask for nothing
	}
	for _, b := range s.mirrors {
		p := s.place(b, f)
		if s.passed(b, p, offset) {
			continue
		}
		body, err := s.openAt(ctx, b, p, f, part)
		if err == nil {
			return &watched{ReadCloser: body, ctx: ctx, source: s, base: b, place: p, first: offset == 0, left: length}, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		s.blame(b, p, err)
	}
	return s.openAt(ctx, s.endpoint, s.place(s.endpoint, f), f, part)
}

// blame has a mirror passed over: for one file that it lacks, else as a whole.
func (s *Source) blame(b *base, p *place, err error) {
	switch model.ReasonOf(err) {
	case "NotFound", "Forbidden", "Gated", "Changed":
		s.mu.Lock()
		defer s.mu.Unlock()
		p.lacks = time.Now().Add(mirrorOut)
	default:
		b.passOver(max(mirrorOut, model.RetryAfter(err)))
	}
}

// passed reports whether a mirror is not asked for a range that begins at offset. Who asks for the start of
// a file again had no use for what came: it was not of the digest that the endpoint names.
func (s *Source) passed(b *base, p *place, offset int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if offset == 0 && p.served {
		p.served, p.lacks = false, now.Add(wrongOut)
	}
	return now.Before(p.lacks) || now.Before(time.Unix(0, b.away.Load()))
}

// watched is the body of a mirror, which is passed over when it breaks off or stalls.
type watched struct {
	io.ReadCloser
	ctx    context.Context
	source *Source
	base   *base
	place  *place
	first  bool // it begins with the file
	left   int64
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.left -= int64(n)
	switch {
	case w.left == 0 && n > 0 && w.first:
		w.source.mu.Lock()
		defer w.source.mu.Unlock()
		w.place.served = true
	case err != nil && w.left > 0 && (w.ctx.Err() == nil || model.ReasonOf(context.Cause(w.ctx)) == "Stalled"):
		w.base.passOver(mirrorOut)
	}
	return n, err
}

// place is the one of f at b, made where missing.
func (s *Source) place(b *base, f model.File) *place {
	key := b.url.String() + "\n" + f.Key + "\n" + f.Path
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.found[key]
	if p == nil {
		if len(s.found) >= maxPlaces {
			clear(s.found) // they are asked for again
		}
		p = &place{asking: make(chan struct{}, 1)}
		s.found[key] = p
	}
	return p
}

// openAt reads from b, or from where b sends us. An address that was signed earlier and is refused now
// has expired: then b is asked once more.
func (s *Source) openAt(ctx context.Context, b *base, p *place, f model.File, part web.Part) (io.ReadCloser, error) {
	if u := s.signed(p); u != nil {
		body, err := s.elsewhere(ctx, u, f, part)
		if !errors.Is(err, errExpired) {
			return body, err
		}
		s.forget(p, u)
	}
	resp, at, next, err := s.askBase(ctx, b, p, f, part)
	switch {
	case err != nil:
		return nil, err
	case next == nil:
		return s.take(at, resp, part)
	}
	body, err := s.elsewhere(ctx, next, f, part)
	if errors.Is(err, errExpired) {
		s.forget(p, next)
	}
	return body, err
}

// signed is the address to use for p without asking, or nil.
func (s *Source) signed(p *place) *url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.signed == nil || !time.Now().Before(p.until) {
		return nil
	}
	return p.signed
}

func (s *Source) forget(p *place, u *url.URL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.signed == u {
		p.signed = nil
	}
}

// askBase asks b for the part. It returns the answer with its address, or the address elsewhere that b
// sends us to. Until b is known to send the file itself, one at a time asks, for all.
func (s *Source) askBase(ctx context.Context, b *base, p *place, f model.File, part web.Part) (*http.Response, *url.URL, *url.URL, error) {
	s.mu.Lock()
	direct := p.direct
	s.mu.Unlock()
	if !direct {
		select {
		case p.asking <- struct{}{}:
			defer func() { <-p.asking }()
		case <-ctx.Done():
			return nil, nil, nil, fmt.Errorf("%s: %w", f.Path, context.Cause(ctx))
		}
		if u := s.signed(p); u != nil {
			return nil, nil, u, nil // another was told meanwhile
		}
	}
	name, commit, _ := strings.Cut(f.Key, "@")
	u, err := b.at("/"+name+"/resolve/"+commit+(&url.URL{Path: "/" + f.Path}).EscapedPath(), "")
	if err != nil {
		return nil, nil, nil, err
	}
	for range maxRedirects + 1 {
		resp, err := s.send(ctx, b, files, u, &part)
		if err != nil {
			return nil, nil, nil, err
		}
		next, err := redirected(u, resp)
		if err == nil {
			err = s.checkBase(u, resp, next != nil, commit, f, part)
		}
		if err != nil {
			resp.Body.Close()
			return nil, nil, nil, err
		}
		if next == nil {
			s.mu.Lock()
			p.direct = true
			s.mu.Unlock()
			return resp, u, nil, nil
		}
		resp.Body.Close()
		if !b.owns(next) {
			s.mu.Lock()
			p.signed, p.until = next, time.Now().Add(signedFor)
			s.mu.Unlock()
			return nil, nil, next, nil
		}
		u = next // a repository that was renamed
	}
	return nil, nil, nil, tooManyRedirects(u)
}

var objectForm = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// checkBase lets only an answer of b pass, a redirect or not, that speaks of the very file.
func (s *Source) checkBase(u *url.URL, resp *http.Response, sent bool, commit string, f model.File, part web.Part) error {
	if err := part.CheckStatus(u, resp); err != nil {
		return err
	}
	if !sent && !part.Is(resp) {
		err := s.refusal(web.Bare(u), resp)
		switch code := resp.Header.Get("X-Error-Code"); {
		case code == "RevisionNotFound", code == "EntryNotFound": // history was rewritten
			return web.Changed(u, "the commit is gone")
		case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
			return web.Changed(u, web.StatusText(resp)+": it is shorter than it was")
		}
		return err
	}
	h := resp.Header
	if got := h.Get("X-Repo-Commit"); got != "" && got != commit {
		return web.Changed(u, fmt.Sprintf("commit %.40q, was %s", got, commit))
	}
	if got := h.Get("X-Linked-Size"); got != "" && got != fmt.Sprint(f.Size) {
		return web.Changed(u, fmt.Sprintf("size %.20q, was %d", got, f.Size))
	}
	tag := h.Get("X-Linked-Etag")
	if tag == "" && !sent && h.Get("X-Repo-Commit") != "" { // others make up ETags of their own
		tag = h.Get("ETag")
	}
	tag = strings.Trim(strings.TrimPrefix(tag, "W/"), `"`)
	if objectForm.MatchString(tag) && tag != f.Version {
		return web.Changed(u, fmt.Sprintf("object %s, was %s", tag, f.Version))
	}
	return nil
}

// errExpired is the answer to an address whose signature does not hold, or not any more.
var errExpired = errors.New("it has expired, or this node's clock is off")

// elsewhere reads from an address that b sent us to, which carries its own rights.
func (s *Source) elsewhere(ctx context.Context, u *url.URL, f model.File, part web.Part) (io.ReadCloser, error) {
	for range maxRedirects + 1 {
		resp, err := s.send(ctx, nil, files, u, &part)
		if err != nil {
			return nil, err
		}
		next, err := redirected(u, resp)
		if next == nil && err == nil {
			if err = s.checkElsewhere(u, resp, part); err == nil {
				return s.take(u, resp, part)
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

func (s *Source) checkElsewhere(u *url.URL, resp *http.Response, part web.Part) error {
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
	case code == http.StatusRequestedRangeNotSatisfiable:
		return web.Changed(u, web.StatusText(resp)+": it is shorter than it was")
	case throttled(resp):
		return &model.Error{Reason: "Throttled", RetryAfter: asks(resp), Text: text}
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooEarly:
		return &model.Error{Reason: "Unavailable", Text: text}
	}
	return &model.Error{Reason: "WrongAnswer", Text: text}
}

// take is the body of an answer that is held to the part.
func (s *Source) take(u *url.URL, resp *http.Response, part web.Part) (io.ReadCloser, error) {
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
