package hf_test

import (
	"bytes"
	"io"
	"maps"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hf"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func contract(t *testing.T, h *hub, c hf.Config) {
	all := map[string]map[string][]byte{}
	sourcetest.Contract(t, sourcetest.Origin{
		Source: newSource(t, c),
		Put: func(t *testing.T, name string, files map[string][]byte) model.Ref {
			all[name] = maps.Clone(files)
			h.put("org/"+name, "main", files)
			return sourcetest.Ref(t, "hf://org/"+name)
		},
		Change: func(t *testing.T, name, path string, content []byte) {
			all[name][path] = content
			h.put("org/"+name, "main", all[name])
		},
		Missing: sourcetest.Ref(t, "hf://org/missing@v1"),
		Kept:    true,
	})
}

func TestContract(t *testing.T) {
	h := newHub(t)
	contract(t, h, hf.Config{Endpoint: h.URL + "/"})
}

func TestContractThroughAMirror(t *testing.T) {
	h, m := newHub(t), newHub(t)
	m.repos = h.repos
	contract(t, h, hf.Config{Endpoint: h.URL, Mirrors: []string{m.URL}})
	require.Positive(t, m.Count(m.Server, "/resolve/"))
	require.Less(t, h.Count(h.Server, "/resolve/"), m.Count(m.Server, "/resolve/"), "the endpoint is for what is read again")
	require.Zero(t, m.Count(m.Server, "/api/"), "what there is, the endpoint says")
}

func TestAManifestIsACommitWithItsDigests(t *testing.T) {
	h := newHub(t)
	big, small := bytes.Repeat([]byte("weights "), 200), []byte(`{"a":1}`)
	files := map[string][]byte{"model.safetensors": big, "config.json": small, "x/a.json": small, "x/b.json": small, "pytorch_model.bin": big}
	old := h.put("org/m", "main", map[string][]byte{"config.json": small})
	h.put("org/m", "refs/pr/1", map[string][]byte{"config.json": []byte("{}")})
	commit := h.put("org/m", "main", files)
	h.put("gpt2", "main", files)
	s := newSource(t, hf.Config{Endpoint: h.URL})

	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "hf://org/m"))
	require.NoError(t, err)
	require.Equal(t, commit, m.Revision)
	require.Len(t, m.Files, 4, "the pickle is left out, all pages are read")
	require.Equal(t, model.File{Path: "config.json", Size: 7, Check: model.Checksum("git-sha1:" + gitSHA1(small)),
		Version: gitSHA1(small), Key: "org/m@" + commit}, m.Files[0])
	require.Equal(t, "model.safetensors", m.Files[1].Path)
	require.Len(t, m.Files[1].Digest, 64)
	require.Empty(t, m.Files[1].Check)
	require.EqualValues(t, len(big), m.Files[1].Size)

	for source, want := range map[string]string{"hf://org/m@" + old: old, "hf://org/m@main": commit, "hf://gpt2": commit} {
		m, err := s.Resolve(t.Context(), sourcetest.Ref(t, source))
		require.NoError(t, err, source)
		require.Equal(t, want, m.Revision, source)
	}
	m, err = s.Resolve(t.Context(), sourcetest.Ref(t, "hf://org/m@refs/pr/1"))
	require.NoError(t, err, "a revision may hold slashes")
	require.EqualValues(t, 2, m.Size())
	m, err = s.Resolve(t.Context(), sourcetest.Ref(t, "hf://org/m?include=*.bin&allowPickle=true"))
	require.NoError(t, err)
	require.Len(t, m.Files, 1)
	m, err = newSource(t, hf.Config{Endpoint: h.URL, AllowPickle: true}).Resolve(t.Context(), sourcetest.Ref(t, "hf://org/m"))
	require.NoError(t, err)
	require.Len(t, m.Files, 5)
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "hf://org/m?include=*.gguf"))
	require.Equal(t, "Empty", model.ReasonOf(err))
	require.ErrorContains(t, err, "hf://org/m: none of 5 files")
}

func TestARenamedRepositoryIsFollowed(t *testing.T) {
	h := newHub(t)
	h.token = "t0ken"
	commit := h.put("new-org/m.v2", "main", map[string][]byte{"config.json": []byte("{}"), "m.gguf": make([]byte, 2000)})
	h.renamed["org/m"] = "new-org/m.v2"
	s := newSource(t, hf.Config{Endpoint: h.URL, TokenFile: sourcetest.Secret(t, "t0ken")})
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "hf://org/m"))
	require.NoError(t, err)
	require.Equal(t, "new-org/m.v2@"+commit, m.Files[0].Key)
	m.Files[0].Key = "org/m@" + commit // as another version may have stored it
	body, err := s.Open(t.Context(), sourcetest.Ref(t, "hf://org/m"), m.Files[0], 0, 2)
	require.NoError(t, err)
	got, err := io.ReadAll(body)
	require.NoError(t, err)
	require.NoError(t, body.Close())
	require.Equal(t, "{}", string(got))
}
