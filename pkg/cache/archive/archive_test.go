package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/archive"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// packed is a tar of entries such as "dir/", "file=content", "link->target", "hard=>target", "device!", "fifo|".
func packed(t *testing.T, entries ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h, content := &tar.Header{Name: e, Mode: 0o644, Typeflag: tar.TypeReg}, ""
		if name, to, ok := strings.Cut(e, "->"); ok {
			h.Name, h.Linkname, h.Typeflag = name, to, tar.TypeSymlink
		} else if name, to, ok := strings.Cut(e, "=>"); ok {
			h.Name, h.Linkname, h.Typeflag = name, to, tar.TypeLink
		} else if name, text, ok := strings.Cut(e, "="); ok {
			h.Name, content = name, text
		} else if name, ok := strings.CutSuffix(e, "!"); ok {
			h.Name, h.Typeflag = name, tar.TypeBlock
		} else if name, ok := strings.CutSuffix(e, "|"); ok {
			h.Name, h.Typeflag = name, tar.TypeFifo
		} else {
			h.Typeflag = tar.TypeDir
		}
		h.Size = int64(len(content))
		require.NoError(t, w.WriteHeader(h))
		_, err := io.WriteString(w, content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func zipped(t *testing.T, b []byte) []byte {
	var to bytes.Buffer
	w := gzip.NewWriter(&to)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return to.Bytes()
}

func zstandard(t *testing.T, b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// contents stores what it is given, by digest.
type contents map[model.Digest]string

func (c contents) take(size int64, r io.Reader) (model.Digest, error) {
	b, err := io.ReadAll(r)
	if err == nil && int64(len(b)) != size {
		err = fmt.Errorf("%d bytes of %d", len(b), size)
	}
	sum := sha256.Sum256(b)
	d := model.Digest(hex.EncodeToString(sum[:]))
	c[d] = string(b)
	return d, err
}

// model is the files that archives make, "path=content" a line.
func made(kind model.Archive, all ...[]byte) (string, error) {
	c := contents{}
	var unpacked []archive.Unpacked
	for _, b := range all {
		members, err := archive.Read(bytes.NewReader(b), kind, 1<<20, c.take)
		if err != nil {
			return "", err
		}
		unpacked = append(unpacked, archive.Unpacked{Kind: kind, Members: members})
	}
	files, err := archive.Merge(unpacked)
	var lines []string
	for _, f := range files {
		lines = append(lines, f.Path+"="+c[f.Digest])
		if int64(len(c[f.Digest])) != f.Size {
			return "", fmt.Errorf("%s is of %d bytes", f.Path, f.Size)
		}
	}
	return strings.Join(lines, " "), err
}

func TestWhatArchivesMake(t *testing.T) {
	t.Parallel()
	type layers [][]string
	for name, c := range map[string]struct {
		kind   model.Archive
		layers layers
		want   string
	}{
		"files":                           {model.Directory, layers{{"./", "./a=1", "./d/", "d/b=2"}}, "a=1 d/b=2"},
		"archives side by side":           {model.Directory, layers{{"d/", "d/a=1"}, {"d/", "d/b=2"}}, "d/a=1 d/b=2"},
		"links":                           {model.Directory, layers{{"d/a=1", "b->d/a", "d/c->../b", "e=>d/a", "f=>b"}}, "b=1 d/a=1 d/c=1 e=1 f=1"},
		"a link into another archive":     {model.Directory, layers{{"b->a"}, {"a=1"}}, "a=1 b=1"},
		"a name that looks like an erase": {model.Directory, layers{{".wh.a=1", "a=2"}}, ".wh.a=1 a=2"},
		"an empty file":                   {model.Directory, layers{{"a="}}, "a="},

		"a modelcar":                  {model.Image, layers{{"bin/", "bin/sh=x", "sh->bin/sh", "tty!"}, {"models/", "models/a=1", "models/d/b=2"}}, "a=1 d/b=2"},
		"a layer over another":        {model.Image, layers{{"models/a=1", "models/b=1"}, {"models/a=2"}}, "a=2 b=1"},
		"a file that is erased":       {model.Image, layers{{"models/a=1", "models/ab=1"}, {"models/.wh.a="}}, "ab=1"},
		"a directory that is erased":  {model.Image, layers{{"models/d/a=1", "models/d/e/b=1", "models/de=1"}, {"models/.wh.d="}}, "de=1"},
		"one that is made anew":       {model.Image, layers{{"models/d/a=1", "models/de=1"}, {"models/d/b=2", "models/d/.wh..wh..opq="}}, "d/b=2 de=1"},
		"all of it is made anew":      {model.Image, layers{{"models/a=1"}, {".wh..wh..opq=", "models/b=2"}}, "b=2"},
		"all of it is erased":         {model.Image, layers{{"models/a=1"}, {".wh.models="}, {"models/b=2"}}, "b=2"},
		"aufs's own":                  {model.Image, layers{{"models/.wh..wh.plnk=", "models/a=1", ".wh..wh.aufs="}}, "a=1"},
		"a directory for a file":      {model.Image, layers{{"models/a=1", "models/b=1"}, {"models/a/"}, {"models/a/c=2"}}, "a/c=2 b=1"},
		"the same without an entry":   {model.Image, layers{{"models/a=1"}, {"models/a/c=2"}}, "a/c=2"},
		"a file for a directory":      {model.Image, layers{{"models/a/b=1", "models/a/c=1"}, {"models/a=2"}}, "a=2"},
		"a link to a lower layer":     {model.Image, layers{{"models/a=1"}, {"models/b->a", "models/c->/models/a", "models/d->../../../models/a"}}, "a=1 b=1 c=1 d=1"},
		"a link follows what changes": {model.Image, layers{{"models/a=1", "models/b->a", "models/c=>models/a"}, {"models/a=2"}}, "a=2 b=2 c=1"},
		"a hub's cache":               {model.Image, layers{{"models/blobs/x=1", "models/snapshots/r/w->../../blobs/x"}}, "blobs/x=1 snapshots/r/w=1"},
	} {
		var plain, gz, zst [][]byte
		for _, entries := range c.layers {
			b := packed(t, entries...)
			plain, gz, zst = append(plain, b), append(gz, zipped(t, b)), append(zst, zstandard(t, b))
		}
		for form, all := range map[string][][]byte{"plain": plain, "gzip": gz, "zstd": zst} {
			got, err := made(c.kind, all...)
			require.NoError(t, err, "%s, %s", name, form)
			require.Equal(t, c.want, got, "%s, %s", name, form)
		}
	}
}

func TestWhatNoArchiveMayHold(t *testing.T) {
	t.Parallel()
	type layers [][]string
	for name, c := range map[string]struct {
		kind   model.Archive
		layers layers
		want   string
	}{
		"absolute":                        {model.Directory, layers{{"/etc/passwd=x"}}, `the name "/etc/passwd" is absolute`},
		"absolute in an image":            {model.Image, layers{{"/models/a=x"}}, "is absolute"},
		"climbs":                          {model.Directory, layers{{"a/../../x=x"}}, "leaves the archive"},
		"climbs outside of the model":     {model.Image, layers{{"../models/a=x"}}, "leaves the archive"},
		"climbs in a directory":           {model.Directory, layers{{"../"}}, "leaves the archive"},
		"not clean":                       {model.Directory, layers{{"a//b=x"}}, "is not clean"},
		"a control character":             {model.Directory, layers{{"a\x1b[31m=x"}}, "control character"},
		"twice":                           {model.Directory, layers{{"a=1", "a=2"}}, `"a" is in it twice`},
		"twice, in other words":           {model.Directory, layers{{"a=1", "./a=2"}}, `"a" is in it twice`},
		"twice in a layer":                {model.Image, layers{{"models/a=1", "models/a=2"}}, `"a" is in it twice`},
		"a file and a directory":          {model.Directory, layers{{"a/", "a=1"}}, `"a" is in it twice`},
		"a file and what is in it":        {model.Directory, layers{{"a=1", "a/b=1"}}, `"a" is a file and also the directory of "a/b"`},
		"what is in a file, and that":     {model.Image, layers{{"models/a/b=1", "models/a=1"}}, `"a" is a file and also the directory of "a/b"`},
		"twice, in two archives":          {model.Directory, layers{{"a=1"}, {"a=1"}}, `"a" is there twice`},
		"a device":                        {model.Directory, layers{{"sda!"}}, "neither a file"},
		"a device in a modelcar":          {model.Image, layers{{"models/sda!"}}, "neither a file"},
		"a pipe":                          {model.Directory, layers{{"p|"}}, "neither a file"},
		"a link out":                      {model.Directory, layers{{"a->../x"}}, `"a" is a link to "../x", outside of the model's directory`},
		"an absolute link":                {model.Directory, layers{{"a->/etc/passwd"}}, "outside of the model's directory"},
		"a link out of a modelcar":        {model.Image, layers{{"models/a->/etc/passwd"}}, "outside of the model's directory"},
		"a modelcar that is a link":       {model.Image, layers{{"models->/data"}}, "outside of the model's directory"},
		"a modelcar that is a file":       {model.Image, layers{{"models=x"}}, `"models" is not a directory`},
		"a hard link out":                 {model.Directory, layers{{"a=>../x"}}, "leaves the archive"},
		"a hard link out of a modelcar":   {model.Image, layers{{"etc/x=1", "models/a=>etc/x"}}, "outside of the model's directory"},
		"a hard link to what comes later": {model.Directory, layers{{"a=>b", "b=1"}}, `"a" is a link to "b", which is not there`},
		"a link to nowhere":               {model.Directory, layers{{"a->b", "b->c"}}, `"a" is a link to "c", which is not there`},
		"a link to a directory":           {model.Directory, layers{{"d/a=1", "x->d"}}, `"x" is a link to the directory "d"`},
		"a link to what was erased":       {model.Image, layers{{"models/a=1", "models/b->a"}, {"models/.wh.a="}}, `"b" is a link to "a", which is not there`},
		"a circle":                        {model.Directory, layers{{"a->b", "b->a"}}, "in a circle"},
		"an image without a model":        {model.Image, layers{{"bin/sh=x"}}, "the image has no file in /models"},
	} {
		var all [][]byte
		for _, entries := range c.layers {
			all = append(all, packed(t, entries...))
		}
		_, err := made(c.kind, all...)
		require.ErrorContains(t, err, c.want, name)
		require.True(t, model.IsFinal(err), name)
		require.Contains(t, []string{"BadArchive", "Empty"}, model.ReasonOf(err), name)
		require.NotContains(t, err.Error(), "\x1b", name)
	}
}

func TestArchivesThatAreDamagedOrTooMuch(t *testing.T) {
	t.Parallel()
	whole := packed(t, "a="+strings.Repeat("0123456789abcdef", 4000), "b=1")
	zeros := zipped(t, packed(t, "a="+strings.Repeat("\x00", 2<<20)))
	require.Less(t, len(zeros), 8<<10, "a bomb is small")
	// A frame of RFC 8878: no flags, a window of 64 MiB, one last block of one raw byte.
	wide := []byte("\x28\xb5\x2f\xfd\x00\x80\x09\x00\x00x")
	for name, c := range map[string]struct {
		archive []byte
		want    string
	}{
		"nothing":                 {nil, "empty or cut short"},
		"a page of HTML":          {[]byte(strings.Repeat("<html>", 200)), "is not a tar archive"},
		"a short tar":             {whole[:40_000], "cut short"},
		"a short gzip":            {zipped(t, whole)[:200], "cut short"},
		"a short zstd":            {zstandard(t, whole)[:50], "cut short"},
		"gzip in name alone":      {[]byte("\x1f\x8bxxxxxxxxxxxxxx"), "gzip header is damaged"},
		"zstd in name alone":      {[]byte("\x28\xb5\x2f\xfdxxxxxxxxx"), "cannot be used"},
		"more than the limit":     {zeros, "unpacks to more than the whole cache may hold"},
		"a window of much memory": {wide, "needs a window of more than 32 MiB to unpack"},
	} {
		_, err := made(model.Directory, c.archive)
		require.ErrorContains(t, err, c.want, name)
		require.Equal(t, "BadArchive", model.ReasonOf(err), name)
		require.True(t, model.IsFinal(err), name)
	}
}

func TestFailuresOfOthersAreTheirs(t *testing.T) {
	t.Parallel()
	b, broken := packed(t, "a="+strings.Repeat("x", 100_000)), errors.New("disk on fire")
	for _, b := range [][]byte{b, zipped(t, b), zstandard(t, b)} {
		in := io.MultiReader(bytes.NewReader(b[:len(b)/2]), failing{broken})
		_, err := archive.Read(in, model.Directory, 1<<20, contents{}.take)
		require.ErrorIs(t, err, broken, "of what it is read from")
		require.Equal(t, "Failed", model.ReasonOf(err))
	}
	_, err := archive.Read(bytes.NewReader(b), model.Directory, 1<<20, func(int64, io.Reader) (model.Digest, error) { return "", broken })
	require.Equal(t, broken, err, "of what it is written to")
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
