package gs_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/gs"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSource(t *testing.T, c gs.Config) *gs.Source {
	s, err := gs.New(c)
	require.NoError(t, err)
	t.Cleanup(s.CloseIdle)
	return s
}

type stored struct {
	content    []byte
	generation int
	fields     map[string]any // beyond those that every object has
}

// store is Cloud Storage's JSON API over one bucket, models, in memory; two objects a page.
type store struct {
	mu      sync.Mutex
	objects map[string]stored
	last    int
	before  http.HandlerFunc // answers in its place, where set
	seen    []*http.Request
}

func newStore(t *testing.T) (*store, string) {
	st := &store{objects: map[string]stored{}, last: 1700000000000000}
	srv := httptest.NewServer(st)
	t.Cleanup(srv.Close)
	return st, srv.URL
}

func (st *store) put(key string, content []byte, fields map[string]any) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.last++
	st.objects[key] = stored{content, st.last, fields}
}

func (st *store) describe(key string) map[string]any {
	o := st.objects[key]
	sum := binary.BigEndian.AppendUint32(nil, crc32.Checksum(o.content, crc32.MakeTable(crc32.Castagnoli)))
	d := map[string]any{"name": key, "size": strconv.Itoa(len(o.content)), "generation": strconv.Itoa(o.generation),
		"crc32c": base64.StdEncoding.EncodeToString(sum)}
	maps.Copy(d, o.fields)
	return d
}

func (st *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.seen = append(st.seen, r.Clone(r.Context()))
	if st.before != nil {
		st.before(w, r)
		return
	}
	rest, ok := strings.CutPrefix(r.URL.EscapedPath(), "/storage/v1/b/models/o")
	switch key, err := url.PathUnescape(strings.TrimPrefix(rest, "/")); {
	case !ok || err != nil:
		http.Error(w, `{"error":{"message":"\u001b[31m"}}`, http.StatusNotFound)
	case rest == "":
		st.list(w, r.URL.Query())
	case st.objects[key].generation == 0:
		http.Error(w, "No such object", http.StatusNotFound)
	case r.URL.Query().Get("alt") != "media":
		_ = json.NewEncoder(w).Encode(st.describe(key))
	case r.URL.Query().Get("ifGenerationMatch") != strconv.Itoa(st.objects[key].generation):
		http.Error(w, "conditionNotMet", http.StatusPreconditionFailed)
	default:
		w.Header().Set("X-Goog-Generation", strconv.Itoa(st.objects[key].generation))
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(st.objects[key].content))
	}
}

func (st *store) list(w http.ResponseWriter, query url.Values) {
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(st.objects)) {
		if strings.HasPrefix(key, query.Get("prefix")) && key > query.Get("pageToken") {
			keys = append(keys, key)
		}
	}
	page := map[string]any{}
	if len(keys) > 2 {
		keys = keys[:2]
		page["nextPageToken"] = keys[1]
	}
	var items []any
	for _, key := range keys {
		items = append(items, st.describe(key))
	}
	page["items"] = items
	_ = json.NewEncoder(w).Encode(page)
}

func (st *store) of(s *gs.Source) sourcetest.Store {
	return sourcetest.Store{Source: s, Root: "gs://models/",
		Put: func(_ *testing.T, key string, b []byte) { st.put(key, b, nil) },
		Dir: func(_ *testing.T, key string) { st.put(key+"/", nil, nil) },
	}
}

func TestContract(t *testing.T) {
	st, endpoint := newStore(t)
	s := newSource(t, gs.Config{Endpoint: endpoint, Anonymous: true})
	sourcetest.Contract(t, st.of(s).Origin(t, "gs://models/missing/llama", false))
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "gs://models/contract/"))
	require.NoError(t, err)
	for _, f := range m.Files {
		h, err := f.Check.Hash(f.Size)
		require.NoError(t, err)
		_, _ = h.Write(st.objects[f.Key].content)
		require.True(t, f.Check.Matches(h), f.Path)
	}
}

func TestContractWithSums(t *testing.T) {
	st, endpoint := newStore(t)
	s := newSource(t, gs.Config{Endpoint: endpoint, Anonymous: true})
	sourcetest.Contract(t, st.of(s).Origin(t, "gs://nowhere/llama/", true))
}

func TestOneObject(t *testing.T) {
	t.Parallel()
	st, endpoint := newStore(t)
	s := newSource(t, gs.Config{Endpoint: endpoint, Anonymous: true})
	x, y := strings.Repeat("a", 64), strings.Repeat("b", 64)
	st.put("dir/m.gguf", []byte("weights"), map[string]any{"metadata": map[string]string{"sha256": x}})
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "gs://models/dir/m.gguf#sha256="+x))
	require.NoError(t, err)
	require.Len(t, m.Files, 1)
	require.Equal(t, "m.gguf", m.Files[0].Path)
	require.Equal(t, model.Digest(x), m.Files[0].Digest)
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "gs://models/dir/m.gguf#sha256="+y))
	require.Equal(t, "WrongDigest", model.ReasonOf(err), "%v", err)
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "gs://models/dir#sha256="+y))
	require.ErrorContains(t, err, "there is neither")

	for name, c := range map[string]struct {
		key    string
		fields map[string]any
		reason string
	}{
		"packed":      {"p1/a", map[string]any{"contentEncoding": "gzip\x1b"}, "Encoded"},
		"climbs":      {"p2/../../a", nil, "BadPath"},
		"not asked":   {"p3/a", map[string]any{"name": "elsewhere/a"}, "BadPath"},
		"a size of -": {"p4/a", map[string]any{"size": "-1"}, "WrongAnswer"},
		"nonsense":    {"p5/a", map[string]any{"size": "x"}, "WrongAnswer"},
	} {
		st.put(c.key, []byte("x"), c.fields)
		_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "gs://models/"+c.key[:2]))
		require.Equal(t, c.reason, model.ReasonOf(err), "%s: %v", name, err)
		require.NotContains(t, err.Error(), "\x1b")
	}
	st.put("p6/SHA256SUMS", fmt.Appendf(nil, "%s  gone\n", x), nil)
	st.put("p6/a", []byte("x"), nil)
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "gs://models/p6"))
	require.ErrorContains(t, err, `it names "gone", which is not there`)
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "gs://models/p6?x=1"))
	require.Equal(t, "BadSource", model.ReasonOf(err))
}

func TestAPageOfAListingIsBounded(t *testing.T) {
	t.Parallel()
	st, endpoint := newStore(t)
	st.before = func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"items":[],"x":"` + strings.Repeat(" ", 10<<20) + `"}`))
	}
	_, err := newSource(t, gs.Config{Endpoint: endpoint, Anonymous: true}).Resolve(t.Context(), sourcetest.Ref(t, "gs://models/p/"))
	require.Equal(t, "WrongAnswer", model.ReasonOf(err), "%v", err)
}

func TestAListingWithoutEndIsNotFollowed(t *testing.T) {
	t.Parallel()
	st, endpoint := newStore(t)
	s := newSource(t, gs.Config{Endpoint: endpoint, Anonymous: true})
	sourcetest.Endless(t, s, "gs://models/m/", func(page func(n int) bool) {
		st.before = func(w http.ResponseWriter, _ *http.Request) {
			n, items := len(st.seen), ""
			if page(n) {
				items = fmt.Sprintf(`{"name":"m/%d/","size":"0","generation":"1"}`, n)
			}
			fmt.Fprintf(w, `{"items":[%s],"nextPageToken":"%d"}`, items, n)
		}
	})
}

func TestMirrors(t *testing.T) {
	st, endpoint := newStore(t)
	c := gs.Config{Endpoint: endpoint, Anonymous: true}
	sourcetest.Mirrors(t, st.of(newSource(t, c)).Origin(t, "gs://nowhere/llama/", true), "/models", func(mirror string) sourcetest.Source {
		c.Mirrors = []string{mirror}
		return newSource(t, c)
	})
}
