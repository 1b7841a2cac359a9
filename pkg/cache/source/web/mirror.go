package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Mirror is a server that has what another one has.
type Mirror struct {
	Of  string // host[:port] of the other one
	URL string // http(s)://host[:port], and a path before those of the other one, or nothing
}

const (
	mirrorOut = time.Minute // how long a mirror that failed, or lacks a file, is passed over
	wrongOut  = time.Hour   // how long one whose file was not taken is passed over for it
	maxFiles  = 4096        // files that are remembered
)

// Mirrors are asked for content that is known by its digest, before the server that named it. The digest is checked by
// whoever reads. Safe for concurrent use.
type Mirrors struct {
	of map[string][]*url.URL

	mu     sync.Mutex
	away   map[*url.URL]time.Time // passed over until then
	lacks  map[string]time.Time   // a mirror is passed over for a file until then
	served map[string]bool        // a mirror has sent a file's start
}

// NewMirrors checks the list, which is a setting called mirrors; the mirrors of one server are asked in its order.
// allowed, nil for all, says why one is never asked.
func NewMirrors(list []Mirror, allowed func(*url.URL) error) (*Mirrors, Faults) {
	var faults Faults
	m := &Mirrors{of: map[string][]*url.URL{}, away: map[*url.URL]time.Time{}, lacks: map[string]time.Time{}, served: map[string]bool{}}
	for i, l := range list {
		at := fmt.Sprintf("mirrors[%d]", i)
		if !isHost(l.Of) {
			faults.Wrong(at+".of", "want the host or host:port that it is a mirror of, such as registry.example, got %q", l.Of)
		}
		u, err := Address(l.URL, "https://mirror.example")
		if err == nil && allowed != nil {
			err = allowed(u)
		}
		faults.Add(at+".url", err)
		of := bareHost(l.Of)
		m.of[of] = append(m.of[of], u)
	}
	return m, faults
}

// Address is that of a server and perhaps a path on it, without a slash at its end; such is an example.
func Address(text, such string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimRight(text, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("want http(s)://host[:port] without credentials, such as " + such)
	}
	return u, nil
}

// Hosts are those of the setting at key, in lower case.
func (f *Faults) Hosts(key string, list []string) map[string]bool {
	hosts := map[string]bool{}
	for i, h := range list {
		if !isHost(h) {
			f.Wrong(fmt.Sprintf("%s[%d]", key, i), "want host or host:port, got %q", h)
		}
		hosts[strings.ToLower(h)] = true
	}
	return hosts
}

// bareHost is a host as it is compared: 443 is the port that is meant where none is named.
func bareHost(host string) string { return strings.TrimSuffix(strings.ToLower(host), ":443") }

func isHost(text string) bool {
	u, err := url.Parse("https://" + text)
	return err == nil && text != "" && u.Host == text
}

// Open is part of a file from the first mirror of host that has it, or nil where none has. open asks one mirror. Errors
// are the mirrors' alone and not told: the server itself is asked next.
func (m *Mirrors) Open(ctx context.Context, host, file string, part Part, open func(mirror *url.URL) (io.ReadCloser, error)) io.ReadCloser {
	for _, u := range m.of[bareHost(host)] {
		key := u.String() + "\n" + file
		if m.passed(u, key, part.Offset) {
			continue
		}
		body, err := open(u)
		if err == nil {
			return &watched{ReadCloser: body, ctx: ctx, of: m, mirror: u, key: key, first: part.Offset == 0, left: part.Length}
		}
		if ctx.Err() != nil {
			return nil
		}
		switch model.ReasonOf(err) {
		case "NotFound", "Forbidden", "Gated", "Changed":
			m.mu.Lock()
			m.lacks[key] = time.Now().Add(mirrorOut)
			m.mu.Unlock()
		default:
			m.passOver(u, max(mirrorOut, model.RetryAfter(err)))
		}
	}
	return nil
}

// passed reports whether a mirror is not asked for what begins at offset. Who asks for the start of a file
// again had no use for what came: it was not of the digest.
func (m *Mirrors) passed(u *url.URL, key string, offset int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.lacks)+len(m.served) > maxFiles {
		clear(m.lacks)
		clear(m.served)
	}
	now := time.Now()
	if offset == 0 && m.served[key] {
		delete(m.served, key)
		m.lacks[key] = now.Add(wrongOut)
	}
	return now.Before(m.lacks[key]) || now.Before(m.away[u])
}

func (m *Mirrors) passOver(u *url.URL, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away[u] = time.Now().Add(d)
}

// watched is the body of a mirror, which is passed over when it breaks off or stalls.
type watched struct {
	io.ReadCloser
	ctx    context.Context
	of     *Mirrors
	mirror *url.URL
	key    string
	first  bool // it begins with the file
	left   int64
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.left -= int64(n)
	switch {
	case w.left == 0 && n > 0 && w.first:
		w.of.mu.Lock()
		defer w.of.mu.Unlock()
		w.of.served[w.key] = true
	case err != nil && w.left > 0 && (w.ctx.Err() == nil || model.ReasonOf(context.Cause(w.ctx)) == "Stalled"):
		w.of.passOver(w.mirror, mirrorOut)
	}
	return n, err
}
