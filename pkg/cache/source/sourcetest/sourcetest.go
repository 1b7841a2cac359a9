// Package sourcetest is the contract of a cache.Source as a test, the same for every source.
package sourcetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Source is cache.Source, said again: a source does not import its user.
type Source interface {
	Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error)
	Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error)
}

// Origin is a real server with the source that reads it.
type Origin struct {
	Source Source
	// Put stores the files of one model, each with its digest where Digests is set, and names it.
	Put func(t *testing.T, name string, files map[string][]byte) model.Ref
	// Change gives one file of a model other content, later than Put did.
	Change func(t *testing.T, name, path string, content []byte)
	// File names one file of a model that was put; nil where only all of it can be named.
	File    func(t *testing.T, name, path string) model.Ref
	Missing model.Ref // nothing is there
	Digests bool
	// Kept says that what was resolved can still be read after a Change, as with commits.
	Kept bool
}

// content is n bytes that differ from place to place.
func content(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7+i>>8) ^ seed
	}
	return b
}

// Contract runs every promise of a Source against the origin.
func Contract(t *testing.T, o Origin) {
	files := map[string][]byte{
		"config.json":                    []byte(`{"model_type":"llama"}`),
		"model-1-of-2.safetensors":       content(300_000, 0),
		"tokenizer/sp ace+%41&é=?#x.txt": content(1000, 9),
		"empty":                          {},
	}
	ref := o.Put(t, "contract", files)
	m, err := o.Source.Resolve(t.Context(), ref)
	require.NoError(t, err)
	big := m.Files[slices.IndexFunc(m.Files, func(f model.File) bool { return f.Path == "model-1-of-2.safetensors" })]

	t.Run("a manifest names every file with its size and digest", func(t *testing.T) {
		var paths []string
		for _, f := range m.Files {
			paths = append(paths, f.Path)
			require.NoError(t, model.CheckPath(f.Path))
			require.EqualValues(t, len(files[f.Path]), f.Size, f.Path)
			if o.Digests {
				require.Equal(t, digest(files[f.Path]), f.Digest, f.Path)
			}
		}
		require.Equal(t, slices.Sorted(maps.Keys(files)), paths, "sorted, complete, no more")
	})
	t.Run("the revision is stable", func(t *testing.T) {
		again, err := o.Source.Resolve(t.Context(), ref)
		require.NoError(t, err)
		require.NotEmpty(t, m.Revision)
		require.Equal(t, m, again)
	})
	t.Run("whole files come back", func(t *testing.T) {
		for _, f := range m.Files {
			require.Equal(t, files[f.Path], read(t, o.Source, ref, f, 0, f.Size), f.Path)
		}
	})
	t.Run("a file that is named alone is a model, an empty one too", func(t *testing.T) {
		if o.File == nil {
			t.Skip("it cannot be")
		}
		for _, path := range []string{"config.json", "empty"} {
			ref := o.File(t, "contract", path)
			one, err := o.Source.Resolve(t.Context(), ref)
			require.NoError(t, err, path)
			require.Len(t, one.Files, 1)
			require.Equal(t, path, one.Files[0].Path)
			require.Equal(t, files[path], read(t, o.Source, ref, one.Files[0], 0, one.Files[0].Size), path)
		}
	})
	t.Run("ranges come back, side by side", func(t *testing.T) { ranges(t, o.Source, ref, big, files[big.Path]) })
	t.Run("a range beyond the file is refused", func(t *testing.T) {
		for _, r := range [][2]int64{{-1, 2}, {0, -1}, {big.Size, 1}, {1, big.Size}, {0, 1<<63 - 1}} {
			_, err := o.Source.Open(t.Context(), ref, big, r[0], r[1])
			require.ErrorContains(t, err, "not within", "%v", r)
		}
	})
	t.Run("what is not there is NotFound and final", func(t *testing.T) {
		_, err := o.Source.Resolve(t.Context(), o.Missing)
		require.Equal(t, "NotFound", model.ReasonOf(err), "%v", err)
		require.True(t, model.IsFinal(err))
		require.ErrorContains(t, err, o.Missing.String())
	})
	t.Run("a cancelled context ends it", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := o.Source.Resolve(ctx, ref)
		require.ErrorIs(t, err, context.Canceled)
		_, err = o.Source.Open(ctx, ref, big, 0, 10)
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("changed content is Changed or kept, and another revision", func(t *testing.T) {
		for name, now := range map[string][]byte{"same size": content(1000, 5), "shorter": content(500, 6), "longer": content(1500, 7)} {
			ref := o.Put(t, "changes", map[string][]byte{"a": content(1000, 1), "b": content(10, 2)})
			before, err := o.Source.Resolve(t.Context(), ref)
			require.NoError(t, err)
			o.Change(t, "changes", "a", now)
			for _, r := range [][2]int64{{0, 1000}, {0, 10}, {900, 100}} {
				if o.Kept {
					require.Equal(t, content(1000, 1)[r[0]:r[0]+r[1]], read(t, o.Source, ref, before.Files[0], r[0], r[1]), name)
					continue
				}
				_, err = o.Source.Open(t.Context(), ref, before.Files[0], r[0], r[1])
				require.Equal(t, "Changed", model.ReasonOf(err), "%s %v: %v", name, r, err)
				require.False(t, model.IsFinal(err), "resolving again helps")
			}
			after, err := o.Source.Resolve(t.Context(), ref)
			require.NoError(t, err)
			require.NotEqual(t, before.Revision, after.Revision, name)
			require.Equal(t, now, read(t, o.Source, ref, after.Files[0], 0, after.Files[0].Size), name)
		}
	})
}

func ranges(t *testing.T, s Source, ref model.Ref, f model.File, want []byte) {
	var g sync.WaitGroup
	for _, r := range [][2]int64{{0, 1}, {0, 4096}, {f.Size - 1, 1}, {1, f.Size - 1}, {0, f.Size - 1}, {4096, 100_000}, {65_535, 2}, {7, 0}} {
		g.Go(func() {
			got, err := readAll(t.Context(), s, ref, f, r[0], r[1])
			if err != nil || !bytes.Equal(want[r[0]:r[0]+r[1]], got) {
				t.Errorf("%d bytes at %d: error %v, got %d bytes", r[1], r[0], err, len(got))
			}
		})
	}
	g.Wait()
}

func readAll(ctx context.Context, s Source, ref model.Ref, f model.File, offset, length int64) ([]byte, error) {
	body, err := s.Open(ctx, ref, f, offset, length)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	defer body.Close()
	return io.ReadAll(body)
}

func read(t *testing.T, s Source, ref model.Ref, f model.File, offset, length int64) []byte {
	b, err := readAll(t.Context(), s, ref, f, offset, length)
	require.NoError(t, err)
	return b
}

func digest(b []byte) model.Digest {
	sum := sha256.Sum256(b)
	return model.Digest(hex.EncodeToString(sum[:]))
}

// Sums is the SHA256SUMS of files.
func Sums(files map[string][]byte) []byte {
	var b bytes.Buffer
	for _, p := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&b, "%s  %s\n", digest(files[p]), p)
	}
	return b.Bytes()
}
