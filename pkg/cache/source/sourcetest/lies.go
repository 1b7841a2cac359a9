package sourcetest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Answer is one with the given headers, each "Name: value".
func Answer(status int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for _, h := range headers {
			k, v, _ := strings.Cut(h, ": ")
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// Fails holds err to what a person is to see of a lie, and of a secret in an address or of a terminal's language to
// nothing. What is throttled asks for seven seconds.
func Fails(t *testing.T, err error, reason string, final bool, text string) {
	t.Helper()
	require.Equal(t, reason, model.ReasonOf(err), "%v", err)
	require.Equal(t, final, model.IsFinal(err), "%v", err)
	require.ErrorContains(t, err, text)
	require.NotContains(t, strings.ToUpper(err.Error()), "SECRET")
	require.NotContains(t, err.Error(), "\x1b")
	if reason == "Throttled" {
		require.Equal(t, 7*time.Second, model.RetryAfter(err))
	}
}

// Gone holds a source to what it says of an origin that answers each read of what was resolved from it by a status that
// means that it is not there any more: to resolve it again helps, and that alone says for good that nothing is there.
// answer sets what the origin answers from then on.
func Gone(t *testing.T, s Source, ref model.Ref, answer func(http.HandlerFunc)) {
	m, err := s.Resolve(t.Context(), ref)
	require.NoError(t, err)
	f := m.Files[0]
	for _, status := range []int{http.StatusNotFound, http.StatusGone} {
		answer(Answer(status, ""))
		for _, r := range [][2]int64{{0, f.Size}, {1, 2}} {
			_, err := s.Open(t.Context(), ref, f, r[0], r[1])
			Fails(t, err, "Changed", false, fmt.Sprintf("%d %s", status, http.StatusText(status)))
			require.ErrorContains(t, err, "changed since it was resolved: it is gone")
		}
	}
	answer(Answer(http.StatusNotFound, ""))
	_, err = s.Resolve(t.Context(), ref)
	Fails(t, err, "NotFound", true, "")
}

// Unexpected holds a source to what it says of a status that is no answer to the question what a model's files are: which,
// from where, and what to do. It is none of a file that has changed. at is the origin's host and port.
func Unexpected(t *testing.T, s Source, ref model.Ref, at string, answer func(http.HandlerFunc)) {
	for _, status := range []int{http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusConflict,
		http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable, http.StatusTeapot} {
		answer(Answer(status, ""))
		_, err := s.Resolve(t.Context(), ref)
		Fails(t, err, "Refused", true, fmt.Sprintf("%d %s", status, http.StatusText(status)))
		require.ErrorContains(t, err, "http://"+at+"/")
		require.ErrorContains(t, err, "check the ")
		require.NotContains(t, err.Error(), "changed")
	}
}

// Secret is a file with content.
func Secret(t *testing.T, content string) string {
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	return name
}

// Read is all of a range, or why not.
func Read(t *testing.T, s Source, ref model.Ref, f model.File, offset, length int64) ([]byte, error) {
	return readAll(t.Context(), s, ref, f, offset, length)
}

// Endless holds a store's listings without end to one: of pages with nothing, and of marks of directories, each page with
// another marker. serve has the store answer so; page counts the requests and says whether to put a mark of a
// directory into the page.
func Endless(t *testing.T, s Source, ref string, serve func(page func(n int) bool)) {
	for name, marks := range map[string]bool{"nothing": false, "marks": true} {
		var asked atomic.Int32
		serve(func(int) bool {
			asked.Add(1)
			return marks
		})
		_, err := s.Resolve(t.Context(), Ref(t, ref))
		require.Equal(t, "TooManyFiles", model.ReasonOf(err), "%s: %v", name, err)
		require.True(t, model.IsFinal(err), name)
		require.Less(t, asked.Load(), int32(1100), name)
	}
}

// Standin is a server, or several, that stand in for an origin. They note what they are asked.
type Standin struct {
	// Lie answers a request in their place where it returns true. It is set while nobody asks.
	Lie func(w http.ResponseWriter, r *http.Request) bool

	mu    sync.Mutex
	asked []Asked
}

// Asked is a request.
type Asked struct {
	Host, Path string
	Header     http.Header
}

// Serve starts one of them. It is closed with the test.
func (s *Standin) Serve(t *testing.T, serve http.HandlerFunc) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, Asked{r.Host, r.URL.Path, r.Header.Clone()})
		lie := s.Lie
		s.mu.Unlock()
		if lie == nil || !lie(w, r) {
			serve(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

// Answer has serve answer all requests in their place.
func (s *Standin) Answer(serve http.HandlerFunc) {
	s.Lie = func(w http.ResponseWriter, r *http.Request) bool {
		serve(w, r)
		return true
	}
}

// Asked is what they were asked.
func (s *Standin) Asked() []Asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Asked(nil), s.asked...)
}

// Count is how many requests went to a server's paths that contain part.
func (s *Standin) Count(server *httptest.Server, part string) (n int) {
	for _, a := range s.Asked() {
		if a.Host == server.Listener.Addr().String() && strings.Contains(a.Path, part) {
			n++
		}
	}
	return n
}

// Lie is an Answer to paths that contain part.
func Lie(part string, status int, body string, headers ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		Answer(status, body, headers...)(w, r)
		return true
	}
}
