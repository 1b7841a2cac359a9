package az_test

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"html"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/az"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSource(t *testing.T, c az.Config) *az.Source {
	s, err := az.New(c)
	require.NoError(t, err)
	t.Cleanup(s.CloseIdle)
	return s
}

// stored is a blob; more is XML beside its properties.
type stored struct {
	content    []byte
	etag       string
	properties string
	metadata   string
}

// store is Blob Storage's REST API over one container, acct/models, in memory; two blobs a page.
type store struct {
	mu     sync.Mutex
	blobs  map[string]stored
	last   int
	before http.HandlerFunc // answers in its place, where set
	seen   []*http.Request
}

func newStore(t *testing.T) (*store, string) {
	st := &store{blobs: map[string]stored{}}
	srv := httptest.NewServer(st)
	t.Cleanup(srv.Close)
	return st, srv.URL
}

func (st *store) put(name string, content []byte, properties, metadata string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.last++
	sum := md5.Sum(content)
	st.blobs[name] = stored{content, fmt.Sprintf("0x8DC%d", st.last),
		"<Content-MD5>" + base64.StdEncoding.EncodeToString(sum[:]) + "</Content-MD5>" + properties, metadata}
}

func (st *store) requests() []*http.Request {
	st.mu.Lock()
	defer st.mu.Unlock()
	return slices.Clone(st.seen)
}

func (st *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.seen = append(st.seen, r.Clone(r.Context()))
	if st.before != nil {
		st.before(w, r)
		return
	}
	fail := func(status int, code string) {
		w.Header().Set("X-Ms-Error-Code", code)
		w.WriteHeader(status)
		_, _ = w.Write([]byte("<Error>\x1b[31m</Error>"))
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/acct/models")
	name = strings.TrimPrefix(name, "/")
	b, there := st.blobs[name]
	switch {
	case !ok:
		fail(http.StatusNotFound, "ContainerNotFound")
	case name == "" && r.URL.Query().Get("comp") == "list":
		st.list(w, r.URL.Query())
	case !there:
		fail(http.StatusNotFound, "BlobNotFound")
	case r.Header.Get("If-Match") != `"`+b.etag+`"`:
		fail(http.StatusPreconditionFailed, "ConditionNotMet")
	default:
		w.Header().Set("ETag", `"`+b.etag+`"`)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b.content))
	}
}

func (st *store) list(w http.ResponseWriter, query url.Values) {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(st.blobs)) {
		if strings.HasPrefix(name, query.Get("prefix")) && name > query.Get("marker") {
			names = append(names, name)
		}
	}
	next := ""
	if len(names) > 2 {
		names, next = names[:2], names[1]
	}
	fmt.Fprint(w, "\ufeff<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ContainerName=\"models\"><Blobs>") // as Azure, with a byte order mark
	for _, name := range names {
		b := st.blobs[name]
		fmt.Fprintf(w, "<Blob><Name>%s</Name><Properties><Etag>%s</Etag><Content-Length>%d</Content-Length>%s</Properties><Metadata>%s</Metadata></Blob>",
			html.EscapeString(name), b.etag, len(b.content), b.properties, b.metadata)
	}
	fmt.Fprintf(w, "</Blobs><NextMarker>%s</NextMarker></EnumerationResults>", html.EscapeString(next))
}

func (st *store) of(s *az.Source) sourcetest.Store {
	return sourcetest.Store{Source: s, Root: "az://acct/models/",
		Put: func(_ *testing.T, key string, b []byte) { st.put(key, b, "<ResourceType>file</ResourceType>", "") },
		Dir: func(_ *testing.T, key string) {
			if strings.Contains(key, "/") {
				st.put(key, nil, "", "<hdi_isfolder>true</hdi_isfolder>")
			} else {
				st.put(key, nil, "<ResourceType>directory</ResourceType>", "")
			}
		},
	}
}

func TestContract(t *testing.T) {
	st, endpoint := newStore(t)
	s := newSource(t, az.Config{Endpoint: endpoint, Anonymous: true})
	sourcetest.Contract(t, st.of(s).Origin(t, "az://acct/models/missing/llama", false))
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/contract/"))
	require.NoError(t, err)
	for _, f := range m.Files {
		h, err := f.Check.Hash(f.Size)
		require.NoError(t, err)
		_, _ = h.Write(st.blobs[f.Key].content)
		require.True(t, f.Check.Matches(h), f.Path)
	}
}

func TestContractWithSums(t *testing.T) {
	st, endpoint := newStore(t)
	s := newSource(t, az.Config{Endpoint: endpoint, Anonymous: true})
	sourcetest.Contract(t, st.of(s).Origin(t, "az://acct/nowhere/llama/", true))
}

func TestOneBlob(t *testing.T) {
	t.Parallel()
	st, endpoint := newStore(t)
	s := newSource(t, az.Config{Endpoint: endpoint, Anonymous: true})
	x, y := strings.Repeat("a", 64), strings.Repeat("b", 64)
	st.put("dir/m.gguf", []byte("weights"), "", "<sha256>"+x+"</sha256>")
	st.put("dir/m.gguf.txt", []byte("not it"), "", "")
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/dir/m.gguf#sha256="+x))
	require.NoError(t, err)
	require.Len(t, m.Files, 1)
	require.Equal(t, "m.gguf", m.Files[0].Path)
	require.Equal(t, model.Digest(x), m.Files[0].Digest)
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/dir/m.gguf#sha256="+y))
	require.Equal(t, "WrongDigest", model.ReasonOf(err), "%v", err)
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/dir#sha256="+y))
	require.ErrorContains(t, err, "there is neither")

	for name, c := range map[string]struct {
		path, properties string
		reason           string
	}{
		"packed":      {"p1/a", "<Content-Encoding>gzip&#9;</Content-Encoding>", "Encoded"},
		"climbs":      {"p2/../../a", "", "BadPath"},
		"a size of -": {"p4/a", "<Content-Length>-1</Content-Length>", "WrongAnswer"},
		"nonsense":    {"p5/a", "<Content-Length>x</Content-Length>", "WrongAnswer"},
		"archived":    {"p7/a", "<AccessTier>Archive</AccessTier>", "Archived"},
	} {
		st.put(c.path, []byte("x"), c.properties, "")
		_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/"+c.path[:2]))
		require.Equal(t, c.reason, model.ReasonOf(err), "%s: %v", name, err)
	}
	st.put("p6/SHA256SUMS", fmt.Appendf(nil, "%s  gone\n", x), "", "")
	st.put("p6/a", []byte("x"), "", "")
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/p6"))
	require.ErrorContains(t, err, `it names "gone", which is not there`)
	for _, bad := range []string{"az://acct/models/p6?x=1", "az://Acct/models", "az://a/models", "az://acct", "az://acct/", "az://acct/Models/x", "az://acct/m--s/x", "az://acct.evil.example/models"} {
		_, err = s.Resolve(t.Context(), sourcetest.Ref(t, bad))
		require.Equal(t, "BadSource", model.ReasonOf(err), bad)
		require.True(t, model.IsFinal(err))
	}
}

func TestAListingThatLies(t *testing.T) {
	t.Parallel()
	st, endpoint := newStore(t)
	s := newSource(t, az.Config{Endpoint: endpoint, Anonymous: true})
	page := func(blobs, marker string) string {
		return "<EnumerationResults><Blobs>" + blobs + "</Blobs><NextMarker>" + marker + "</NextMarker></EnumerationResults>"
	}
	blob := func(name string) string {
		return "<Blob><Name" + name + "</Name><Properties><Etag>e</Etag><Content-Length>1</Content-Length></Properties></Blob>"
	}
	for name, c := range map[string]struct{ body, reason string }{
		"HTML":                 {"<html></html>", "WrongAnswer"},
		"not asked for":        {page(blob(">elsewhere/a"), ""), "WrongAnswer"},
		"the same page again":  {page(blob(">m/a"), "x"), "WrongAnswer"},
		"the same blob twice":  {page(blob(">m/a")+blob(">m/a"), ""), "BadPath"},
		"climbs in code":       {page(blob(` Encoded="true">m/%2e%2e/a`), ""), "BadPath"},
		"a name that is none":  {page(blob(` Encoded="true">m/%zz`), ""), "WrongAnswer"},
		"a listing of nothing": {page("", ""), "NotFound"},
		"10 MB of XML":         {page(strings.Repeat(" ", 10<<20), ""), "WrongAnswer"},
	} {
		st.before = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(c.body)) }
		_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/m"))
		require.Equal(t, c.reason, model.ReasonOf(err), "%s: %v", name, err)
	}
	st.before = func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(page(blob(` Encoded="true">m/%EF%BF%BE`)+blob(">m/b"), "")))
	}
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "az://acct/models/m"))
	require.NoError(t, err)
	require.Equal(t, "m/\ufffe", m.Files[1].Key, "what XML cannot hold")
}

func TestAListingWithoutEndIsNotFollowed(t *testing.T) {
	t.Parallel()
	st, endpoint := newStore(t)
	s := newSource(t, az.Config{Endpoint: endpoint, Anonymous: true})
	sourcetest.Endless(t, s, "az://acct/models/m", func(page func(n int) bool) {
		st.before = func(w http.ResponseWriter, _ *http.Request) {
			n, blobs := len(st.seen), ""
			if page(n) {
				blobs = fmt.Sprintf("<Blob><Name>m/%d</Name><Properties><Etag>e</Etag><Content-Length>0</Content-Length></Properties><Metadata><hdi_isfolder>true</hdi_isfolder></Metadata></Blob>", n)
			}
			fmt.Fprintf(w, "<EnumerationResults><Blobs>%s</Blobs><NextMarker>%d</NextMarker></EnumerationResults>", blobs, n)
		}
	})
}

func TestMirrors(t *testing.T) {
	st, endpoint := newStore(t)
	c := az.Config{Endpoint: endpoint, Anonymous: true}
	sourcetest.Mirrors(t, st.of(newSource(t, c)).Origin(t, "az://acct/nowhere/llama/", true), "/acct/models", func(mirror string) sourcetest.Source {
		c.Mirrors = []string{mirror}
		return newSource(t, c)
	})
}
