package model

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRevisionFollowsContent(t *testing.T) {
	t.Parallel()
	d := Digest(strings.Repeat("a", 64))
	rev := func(files ...File) string {
		m, err := NewManifest(files)
		require.NoError(t, err)
		return m.Revision
	}
	a, b := File{Path: "a", Size: 1, Digest: d, Version: "1"}, File{Path: "b/c", Size: 2, Version: "x"}
	first := rev(a, b)
	require.Len(t, first, 64)
	require.Equal(t, first, rev(b, a), "the order of a listing is not content")

	touched := a
	touched.Version = "2"
	require.Equal(t, first, rev(touched, b), "a known digest outweighs the origin's version")
	changed := b
	changed.Version = "y"
	require.NotEqual(t, first, rev(a, changed))
	longer := a
	longer.Size++
	require.NotEqual(t, first, rev(longer, b))
}

func TestManifestRefusesWhatADiskCannotHold(t *testing.T) {
	t.Parallel()
	for name, paths := range map[string][]string{
		"climbs":                  {"../x"},
		"is there twice":          {"a", "a"},
		"also the directory of":   {"a/b", "a-c", "a"},
		`the directory of "x/y/z`: {"x/y/z", "x"},
	} {
		var files []File
		for _, p := range paths {
			files = append(files, File{Path: p})
		}
		_, err := NewManifest(files)
		require.Error(t, err, name)
		require.Equal(t, "BadPath", ReasonOf(err), name)
		require.True(t, IsFinal(err), name)
		if name != "climbs" {
			require.ErrorContains(t, err, name)
		}
	}
}

func TestParseSums(t *testing.T) {
	t.Parallel()
	x, y := strings.Repeat("ab", 32), strings.Repeat("CD", 32)
	files, err := ParseSums(strings.NewReader(x + "  ./a b\r\n\n" + y + " *dir/c\n" + x + "  SHA256SUMS\n"))
	require.NoError(t, err)
	require.Equal(t, []File{{Path: "a b", Digest: Digest(x)}, {Path: "dir/c", Digest: Digest(strings.ToLower(y))}}, files)

	for text, want := range map[string]string{
		"":                           "lists no file",
		"<html>":                     "line 1: want <sha256>",
		x + " a":                     "line 1: want <sha256>",
		"abc  a":                     "line 1: digest",
		"\n" + x + "  ../../etc/x":   "line 2: file path",
		x + "  /etc/x":               "absolute",
		x + "  a\n" + x + "  ./a\n":  "line 2: file path \"a\" is there twice",
		`\` + x + `  a\nb`:           "line 1: digest",
		strings.Repeat("x", 1<<16+1): "too long",
	} {
		_, err := ParseSums(strings.NewReader(text))
		require.ErrorContains(t, err, want, text)
	}
}
