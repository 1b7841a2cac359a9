package sourcetest

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Mirrors has the objects of o's store, which has digests, read through a mirror: open makes a source with that mirror. The
// bucket's objects are at path of it, such as /bucket. The source keeps its login to itself.
func Mirrors(t *testing.T, o Origin, path string, open func(mirror string) Source) {
	files := map[string][]byte{"model.safetensors": content(3000, 1), "sp ace+%41&é=?#x": content(100, 2)}
	ref := o.Put(t, "mirrored", files)
	var served, lacks, lies atomic.Int32
	var mode atomic.Value // what the mirror does
	mode.Store("")
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, under := strings.CutPrefix(r.URL.Path, "/cache"+path+"/mirrored/")
		body, here := files[key]
		if !under || !here || r.URL.RawQuery != "" || strings.Contains(r.RequestURI, "+") || r.Header.Get("Authorization") != "" {
			t.Errorf("the mirror is asked for %s with %v", r.RequestURI, r.Header)
		}
		switch mode.Load() {
		case "lacks it":
			lacks.Add(1)
			http.NotFound(w, r)
			return
		case "lies":
			lies.Add(1)
			body = bytes.Repeat([]byte("x"), len(body))
		}
		served.Add(1)
		w.Header().Set("ETag", `"of the mirror"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}))
	defer mirror.Close()
	s := open(mirror.URL + "/cache/")
	m, err := s.Resolve(t.Context(), ref)
	require.NoError(t, err)
	for _, f := range m.Files {
		require.Equal(t, digest(files[f.Path]), f.Digest)
		require.Equal(t, files[f.Path][10:60], read(t, s, ref, f, 10, 50), f.Path)
		require.Equal(t, files[f.Path], read(t, s, ref, f, 0, f.Size), f.Path)
	}
	require.EqualValues(t, 2*len(files), served.Load(), "the store is not asked for what a mirror has")

	big := m.Files[slices.IndexFunc(m.Files, func(f model.File) bool { return f.Size == 3000 })]
	unknown := big
	unknown.Digest = ""
	require.Equal(t, files[big.Path][:50], read(t, s, ref, unknown, 0, 50))
	require.EqualValues(t, 2*len(files), served.Load(), "nothing would tell its content from another")

	s = open(mirror.URL + "/cache")
	mode.Store("lacks it")
	for range 3 {
		require.Equal(t, files[big.Path][10:60], read(t, s, ref, big, 10, 50))
	}
	require.EqualValues(t, 1, lacks.Load(), "it is passed over for a while")

	s = open(mirror.URL + "/cache")
	mode.Store("lies")
	require.NotEqual(t, files[big.Path], read(t, s, ref, big, 0, big.Size))
	require.Equal(t, files[big.Path], read(t, s, ref, big, 0, big.Size), "who asks again had no use for what came")
	require.EqualValues(t, 1, lies.Load())
}
