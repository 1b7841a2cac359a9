package ms_test

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/ms"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func contract(t *testing.T, h *hub, c ms.Config) {
	all := map[string]map[string][]byte{}
	sourcetest.Contract(t, sourcetest.Origin{
		Source: newSource(t, c),
		Put: func(t *testing.T, name string, files map[string][]byte) model.Ref {
			all[name] = maps.Clone(files)
			h.put("org/"+name, "master", files)
			return sourcetest.Ref(t, "ms://org/"+name)
		},
		Change: func(t *testing.T, name, path string, content []byte) {
			all[name][path] = content
			h.put("org/"+name, "master", all[name])
		},
		Missing: sourcetest.Ref(t, "ms://org/missing@v1"),
		Digests: true,
		Kept:    true,
	})
}

func TestContract(t *testing.T) {
	h := newHub(t)
	contract(t, h, ms.Config{Endpoint: h.URL + "/"})
}

func TestContractThroughAMirror(t *testing.T) {
	h, m := newHub(t), newHub(t)
	m.repos = h.repos
	contract(t, h, ms.Config{Endpoint: h.URL, Mirrors: []string{m.URL}})
	require.Positive(t, m.reads())
	require.Less(t, h.reads(), m.reads(), "the endpoint is for what is read again")
	require.Zero(t, m.Count(m.Server, "/repo/files"), "what there is, the endpoint says")
}

func TestFilesAreReadAtTheCommitThatChangedThemLast(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	big, small := bytes.Repeat([]byte("weights "), 200), []byte(`{"a":1}`)
	old := h.put("Org/m_1.5", "master", map[string][]byte{"config.json": small, "x/a.json": []byte("[]")})
	commit := h.put("Org/m_1.5", "master", map[string][]byte{"config.json": small, "model.safetensors": big, "pytorch_model.bin": big, "x/a.json": small})
	h.put("Org/m_1.5", "v1", map[string][]byte{"config.json": []byte("{}")})
	s := newSource(t, ms.Config{Endpoint: h.URL})

	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "ms://Org/m_1.5"))
	require.NoError(t, err)
	require.Len(t, m.Files, 3, "the pickle is left out, directories are none")
	require.Len(t, m.Revision, 64, "a hash: the hub names no commit for a branch")
	require.Equal(t, "config.json", m.Files[0].Path)
	require.Equal(t, "Org/m_1.5@"+old, m.Files[0].Key)
	require.Equal(t, "Org/m_1.5@"+commit, m.Files[1].Key)
	require.Equal(t, "x/a.json", m.Files[2].Path)
	require.EqualValues(t, len(small), m.Files[2].Size)
	require.Zero(t, m.Hub)

	same, err := s.Resolve(t.Context(), sourcetest.Ref(t, "ms://Org/m_1.5@master"))
	require.NoError(t, err)
	require.Equal(t, m, same)
	pinned, err := s.Resolve(t.Context(), sourcetest.Ref(t, "ms://Org/m_1.5@"+old))
	require.NoError(t, err)
	require.Equal(t, old, pinned.Revision)
	require.Len(t, pinned.Files, 2)
	require.Equal(t, "Org/m_1.5@"+old, pinned.Files[1].Key)
	require.True(t, sourcetest.Ref(t, "ms://Org/m_1.5@"+old).Fixed())
	tag, err := s.Resolve(t.Context(), sourcetest.Ref(t, "ms://Org/m_1.5@v1?include=*.json"))
	require.NoError(t, err)
	require.EqualValues(t, 2, tag.Size())
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "ms://Org/m_1.5?include=*.gguf"))
	require.ErrorContains(t, err, "ms://Org/m_1.5: none of 4 files")
}

func TestAListThatTheHubCutsIsAskedForByDirectory(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	files := map[string][]byte{"config.json": []byte("{}"), "a b/deep/er/x": []byte("x")}
	for i := range 2999 {
		files[fmt.Sprintf("a b/%04d", i)] = nil
		files[fmt.Sprintf("c/%d/%04d", i%3, i)] = nil
	}
	h.put("org/m", "master", files)
	s := newSource(t, ms.Config{Endpoint: h.URL})
	_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "ms://org/m"))
	require.Equal(t, "TooManyFiles", model.ReasonOf(err), "a b has 3000 entries")
	require.True(t, model.IsFinal(err))
	require.ErrorContains(t, err, `directory "/a b" has 3000 entries or more`)

	delete(files, "a b/0000")
	h.put("org/m", "master", files)
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "ms://org/m"))
	require.NoError(t, err)
	var paths []string
	for _, f := range m.Files {
		paths = append(paths, f.Path)
	}
	require.Equal(t, slices.Sorted(maps.Keys(files)), paths)

	h.Lie = func(w http.ResponseWriter, r *http.Request) bool {
		n := 3000
		if r.URL.Query().Get("Recursive") == "False" {
			n = 100 // and in each of them 100 more
		}
		return sourcetest.Lie("", 200, `{"Code":200,"Data":{"Files":[{"Type":"tree"}`+strings.Repeat(`,{"Type":"tree"}`, n-1)+`]}}`)(w, r)
	}
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "ms://org/m"))
	require.Equal(t, "TooManyFiles", model.ReasonOf(err), "directories for ever")
	require.ErrorContains(t, err, "500 directories")
}

func TestAFileWithoutADigestIsReadFromTheEndpoint(t *testing.T) {
	t.Parallel()
	h, mirror := newHub(t), newHub(t)
	commit := h.put("org/m", "master", map[string][]byte{"a": []byte("abc")})
	mirror.repos = h.repos
	h.Lie = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/files") {
			return false
		}
		respond(w, 200, 200, map[string]any{"Files": []map[string]any{{"Type": "blob", "Path": "a", "Size": 3, "Revision": commit}}})
		return true
	}
	s, r := newSource(t, ms.Config{Endpoint: h.URL, Mirrors: []string{mirror.URL}}), sourcetest.Ref(t, "ms://org/m")
	m, err := s.Resolve(t.Context(), r)
	require.NoError(t, err)
	require.Empty(t, m.Files[0].Digest)
	got, err := sourcetest.Read(t, s, r, m.Files[0], 0, 3)
	require.NoError(t, err)
	require.Equal(t, "abc", string(got))
	require.Empty(t, mirror.Asked(), "nothing would tell its bytes from others")
}
