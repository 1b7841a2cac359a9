package file_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/file"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func write(t *testing.T, name, content string) {
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, []byte(content), 0o644))
}

func newSource(t *testing.T, roots ...string) *file.Source {
	s, err := file.New(file.Config{Roots: roots})
	require.NoError(t, err)
	return s
}

func TestContract(t *testing.T) {
	for name, sums := range map[string]bool{"with SHA256SUMS": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			sourcetest.Contract(t, sourcetest.Store{Source: newSource(t, dir), Root: "file://" + dir + "/",
				Put: func(t *testing.T, key string, b []byte) { write(t, filepath.Join(dir, key), string(b)) },
			}.Origin(t, "file://"+dir+"/missing", sums))
		})
	}
}

func TestOnlyTheConfiguredDirectoriesAreRead(t *testing.T) {
	outer := t.TempDir()
	in, out := filepath.Join(outer, "in"), filepath.Join(outer, "out")
	write(t, filepath.Join(in, "m", "a"), "a")
	write(t, filepath.Join(out, "secret"), "s")
	write(t, filepath.Join(outer, "in-too", "a"), "a")
	link := func(name, target string) {
		require.NoError(t, os.MkdirAll(filepath.Join(in, name), 0o755))
		require.NoError(t, os.Symlink(target, filepath.Join(in, name, "x")))
	}
	link("relative", "../../out/secret")
	link("absolute", filepath.Join(out, "secret"))
	link("directory", "../m")
	link("away", "../../out")
	link("dangling", "nowhere")
	link("inside", "../m/a")
	require.NoError(t, os.MkdirAll(filepath.Join(in, "pipe"), 0o755))
	require.NoError(t, syscall.Mkfifo(filepath.Join(in, "pipe", "p"), 0o644))
	require.NoError(t, os.MkdirAll(filepath.Join(in, "empty"), 0o755))
	write(t, filepath.Join(in, "back", `a\b`), "a")

	s := newSource(t, in)
	for source, want := range map[string]struct{ reason, text string }{
		out + "/secret":           {"Forbidden", "cache.sources.file.roots names the directories"},
		outer + "/in-too":         {"Forbidden", "not under " + in},
		in + "/../out/secret":     {"BadSource", "want file:///absolute/path"},
		in + "/%2e%2e/out":        {"BadSource", "want file:///absolute/path"},
		in + "/m?x=1":             {"BadSource", "want file:///absolute/path"},
		in + "/relative":          {"BadPath", in + "/relative/x: a symlink leaves the directories"},
		in + "/relative/x":        {"BadPath", "a symlink leaves"},
		in + "/absolute":          {"BadPath", "a symlink leaves"},
		in + "/away":              {"BadPath", "a symlink leaves"},
		in + "/away/x/secret":     {"BadPath", "a symlink leaves"},
		in + "/directory":         {"BadPath", "a symlink to a directory"},
		in + "/pipe":              {"BadPath", "a device, a pipe or a socket"},
		in + "/pipe/p":            {"BadPath", "a device, a pipe or a socket"},
		in + "/back":              {"BadPath", "backslash"},
		in + "/dangling":          {"NotFound", "not there"},
		in + "/m/a/b":             {"NotFound", "not there"},
		in + "/empty":             {"Empty", "no files there"},
		in + "/m#sha256=" + zeros: {"WrongDigest", "there is none"},
	} {
		_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "file://"+source))
		require.Equal(t, want.reason, model.ReasonOf(err), "%s: %v", source, err)
		require.ErrorContains(t, err, want.text, source)
		require.True(t, model.IsFinal(err), source)
	}
	for _, source := range []string{in + "/inside", in + "/inside/x", in + "/m/a", in + "/m/"} {
		m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "file://"+source))
		require.NoError(t, err, source)
		require.Len(t, m.Files, 1)
		body, err := s.Open(t.Context(), sourcetest.Ref(t, "file://"+source), m.Files[0], 0, 1)
		require.NoError(t, err)
		got, err := io.ReadAll(body)
		require.NoError(t, err)
		require.NoError(t, body.Close())
		require.Equal(t, "a", string(got))
	}

	_, err := newSource(t).Resolve(t.Context(), sourcetest.Ref(t, "file://"+in+"/m"))
	require.Equal(t, "Forbidden", model.ReasonOf(err))
	require.ErrorContains(t, err, "no directory may be read: name those that may in cache.sources.file.roots")
	_, err = s.Open(t.Context(), sourcetest.Ref(t, "file://"+in), model.File{Path: "x", Key: out + "/secret", Size: 1}, 0, 1)
	require.Equal(t, "Forbidden", model.ReasonOf(err), "a key from outside")
}

func TestSettingsAndReferencesThatCanNeverBeRead(t *testing.T) {
	t.Parallel()
	_, err := file.New(file.Config{Roots: []string{"/", "/a", "models", "//"}})
	const want = "want an absolute directory other than /, such as /mnt/models, got "
	require.Equal(t, []string{"setting roots[0]: " + want + `"/"`, "setting roots[2]: " + want + `"models"`, "setting roots[3]: " + want + `"//"`}, sourcetest.Faults(t, err))
	sourcetest.Refused(t, func(ref model.Ref) error { return file.Check(file.Config{Roots: []string{"/mnt/a/", "/mnt/b"}}, ref) }, map[string]string{
		"file:///mnt/a": "", "file:///mnt/a/m/": "", "file:///mnt/b/m": "",
		"file:///mnt/bc/m":   "Forbidden file:///mnt/bc/m: not under /mnt/a, /mnt/b: cache.sources.file.roots names the directories that may be read",
		"file:///mnt/a/../b": "BadSource file:///mnt/a/../b: want file:///absolute/path", "file:///mnt/a?x": "BadSource",
	})
	sourcetest.Refused(t, func(ref model.Ref) error { return file.Check(file.Config{}, ref) }, map[string]string{"file:///m": "Forbidden file:///m: no directory may be read"})
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

func TestASumsFileIsHeldToItsWord(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]struct{ sums, reason, text string }{
		"missing": {zeros + "  b\n", "NotFound", `it names "b", which is not there`},
		"garbage": {"<html>", "BadSums", "line 1"},
		"climbs":  {zeros + "  ../a\n", "BadSums", "line 1"},
		"large":   {strings.Repeat(" \n", 9_000_000), "BadSums", "larger than 16 MiB"},
	} {
		write(t, filepath.Join(dir, name, "a"), "a")
		write(t, filepath.Join(dir, name, model.SumsName), want.sums)
		_, err := newSource(t, dir).Resolve(t.Context(), sourcetest.Ref(t, "file://"+dir+"/"+name))
		require.Equal(t, want.reason, model.ReasonOf(err), name)
		require.ErrorContains(t, err, want.text, name)
	}
}

func TestAFileThatChangesWhileItIsReadIsFoundOut(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "m", "a")
	write(t, name, strings.Repeat("x", 100_000))
	s, r := newSource(t, dir), sourcetest.Ref(t, "file://"+dir+"/m")
	m, err := s.Resolve(t.Context(), r)
	require.NoError(t, err)
	for how, change := range map[string]func(){
		"rewritten": func() { write(t, name, strings.Repeat("y", 100_000)) },
		"cut":       func() { require.NoError(t, os.Truncate(name, 10)) },
		"same old time": func() {
			write(t, name, strings.Repeat("y", 100_000))
			require.NoError(t, os.Chtimes(name, time.Now(), time.Unix(1, 0)))
		},
	} {
		write(t, name, strings.Repeat("x", 100_000))
		require.NoError(t, os.Chtimes(name, time.Now(), time.Unix(1, 0)))
		m, err = s.Resolve(t.Context(), r)
		require.NoError(t, err)
		body, err := s.Open(t.Context(), r, m.Files[0], 0, 100_000)
		require.NoError(t, err)
		_, err = io.ReadFull(body, make([]byte, 5))
		require.NoError(t, err)
		change()
		_, err = io.ReadAll(body)
		require.Equal(t, "Changed", model.ReasonOf(err), "%s: %v", how, err)
		require.NoError(t, body.Close())
	}
	require.NoError(t, os.RemoveAll(filepath.Dir(name)))
	_, err = s.Open(t.Context(), r, m.Files[0], 0, 100_000)
	require.Equal(t, "Changed", model.ReasonOf(err), "%v", err)
	require.ErrorContains(t, err, "it is gone")
	require.False(t, model.IsFinal(err))
	_, err = s.Resolve(t.Context(), r)
	require.Equal(t, "NotFound", model.ReasonOf(err), "%v", err)
}
