package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// untar returns each entry's header and content, and the order of the names.
func untar(t *testing.T, r io.Reader) (names []string, headers map[string]*tar.Header, contents map[string][]byte) {
	t.Helper()
	headers, contents = map[string]*tar.Header{}, map[string][]byte{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names, headers, contents
		}
		require.NoError(t, err)
		content, err := io.ReadAll(tr)
		require.NoError(t, err)
		names, headers[h.Name], contents[h.Name] = append(names, h.Name), h, content
	}
}

func readJSON[T any](t *testing.T, content []byte) (v T) {
	t.Helper()
	require.NoError(t, json.Unmarshal(content, &v))
	return v
}

func TestEveryDigestNamesItsContent(t *testing.T) {
	dir := t.TempDir()
	tool, notes, out := filepath.Join(dir, "tool"), filepath.Join(dir, "notes"), filepath.Join(dir, "out.tar")
	require.NoError(t, os.WriteFile(tool, []byte("#!tool"), 0o700))
	require.NoError(t, os.WriteFile(notes, []byte("words"), 0o600))
	require.NoError(t, run([]string{
		"-o", out, "-name", "docker.io/library/x:dev", "-entrypoint", "/usr/bin/tool run", "-user", "65532",
		tool + "=/usr/bin/tool", notes + "=/etc/notes",
	}))
	archive, err := os.ReadFile(out)
	require.NoError(t, err)
	_, _, blobs := untar(t, bytes.NewReader(archive))

	blob := func(d descriptor) []byte {
		content, ok := blobs[blobPath(d.Digest)]
		require.True(t, ok, "no blob %s", d.Digest)
		sum := sha256.Sum256(content)
		require.Equal(t, d.Digest, digest(sum[:]))
		require.Len(t, content, int(d.Size))
		return content
	}
	require.JSONEq(t, `{"imageLayoutVersion":"1.0.0"}`, string(blobs["oci-layout"]))
	idx := readJSON[index](t, blobs["index.json"])
	require.Len(t, idx.Manifests, 1)
	require.Equal(t, "docker.io/library/x:dev", idx.Manifests[0].Annotations["io.containerd.image.name"])
	man := readJSON[manifest](t, blob(idx.Manifests[0]))
	require.Len(t, man.Layers, 1)
	layer := blob(man.Layers[0])
	config := readJSON[imageConfig](t, blob(man.Config))
	require.Equal(t, []string{man.Layers[0].Digest}, config.RootFS.DiffIDs)
	require.Equal(t, []string{"/usr/bin/tool", "run"}, config.Config.Entrypoint)
	require.Equal(t, "65532", config.Config.User)

	names, headers, contents := untar(t, bytes.NewReader(layer))
	require.Equal(t, []string{"etc/", "tmp/", "usr/", "usr/bin/", "etc/notes", "usr/bin/tool"}, names)
	require.Equal(t, "#!tool", string(contents["usr/bin/tool"]))
	require.Equal(t, int64(0o755), headers["usr/bin/tool"].Mode)
	require.Equal(t, int64(0o644), headers["etc/notes"].Mode)
	require.Equal(t, int64(0o1777), headers["tmp/"].Mode)
}

func TestTheSameFilesGiveTheSameBytes(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "tool")
	var archives [][]byte
	for _, age := range []time.Duration{0, 48 * time.Hour} {
		require.NoError(t, os.WriteFile(from, []byte("#!tool"), 0o700))
		require.NoError(t, os.Chtimes(from, time.Time{}, time.Now().Add(-age)))
		out := filepath.Join(dir, "out.tar")
		require.NoError(t, run([]string{"-o", out, "-name", "docker.io/library/x:dev", from + "=/a", from + "=/b/c"}))
		archive, err := os.ReadFile(out)
		require.NoError(t, err)
		archives = append(archives, archive)
	}
	require.True(t, bytes.Equal(archives[0], archives[1]))
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	require.NoError(t, err)
	require.Empty(t, left, "temporary files stay behind")
}

func TestLddListing(t *testing.T) {
	got, err := libraries("\tlinux-vdso.so.1 (0x00007ffd)\n" +
		"\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f9)\n" +
		"\t/lib64/ld-linux-x86-64.so.2 (0x00007fa)\n")
	require.NoError(t, err)
	require.Equal(t, []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}, got)

	_, err = libraries("\tlibgone.so.1 => not found\n")
	require.ErrorContains(t, err, "libgone.so.1 => not found: install it first")
}

func TestLibcComesWithTheLoader(t *testing.T) {
	const dynamic = "/bin/ls"
	if ok, err := isDynamic(dynamic); err != nil || !ok {
		t.Skipf("%s is not a dynamic binary here", dynamic)
	}
	files := map[string]string{"/ls": dynamic}
	require.NoError(t, addLibc(files))
	has := func(base string) bool {
		return slices.ContainsFunc(slices.Collect(maps.Values(files)), func(f string) bool { return filepath.Base(f) == base })
	}
	if !has("libc.so.6") {
		t.Skip("not glibc here")
	}
	require.True(t, has("libm.so.6"))
	require.GreaterOrEqual(t, len(files), 5)
}

func TestBadArgumentsAreNamed(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	require.NoError(t, os.WriteFile(text, []byte("words"), 0o600))
	out := filepath.Join(dir, "out.tar")
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"no file", []string{"-o", out, "-name", "a/b:c"}, "at least one FILE"},
		{"short name", []string{"-o", out, "-name", "b", text + "=/a"}, "-name b"},
		{"relative path", []string{"-o", out, "-name", "a/b:c", text + "=a"}, text + "=a"},
		{"unclean path", []string{"-o", out, "-name", "a/b:c", text + "=/a/../b"}, "clean absolute"},
		{"twice", []string{"-o", out, "-name", "a/b:c", text + "=/a", text + "=/a"}, "given twice"},
		{"missing file", []string{"-o", out, "-name", "a/b:c", dir + "/no=/a"}, dir + "/no"},
		{"directory", []string{"-o", out, "-name", "a/b:c", dir + "=/a"}, "not a regular file"},
		{"nothing dynamic", []string{"-o", out, "-name", "a/b:c", "-libc", text + "=/a"}, "statically linked"},
	} {
		t.Run(test.name, func(t *testing.T) {
			require.ErrorContains(t, run(test.args), test.want)
			require.NoFileExists(t, out)
		})
	}
}
