// Package file reads models from directories of the node, such as a network filesystem that is mounted
// there. Content is copied, never linked: what the cache shows must not change when its origin does.
//
// Only what is under the configured directories is read. Symlinks are followed as long as they stay there,
// so that a hub's cache with its links from snapshots to blobs can be a source.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// maxFiles is how many files one model may have; more is a directory that was named too short.
const maxFiles = 100_000

// Config is what may be read.
type Config struct {
	Roots []string // absolute directories; none: nothing may be read
}

// Source reads scheme file. Safe for concurrent use.
type Source struct{ roots []string }

// New checks the configuration. The directories may be mounted later.
func New(c Config) (*Source, error) {
	var faults web.Faults
	for i, r := range c.Roots {
		if !filepath.IsAbs(r) || filepath.Clean(r) == "/" {
			faults.Wrong(fmt.Sprintf("roots[%d]", i), "want an absolute directory other than /, such as /mnt/models, got %q", r)
		}
	}
	if err := faults.Of("file"); err != nil {
		return nil, err
	}
	return newSource(c), nil
}

func newSource(c Config) *Source {
	s := &Source{}
	for _, r := range c.Roots {
		s.roots = append(s.roots, filepath.Clean(r))
	}
	return s
}

// Check says why ref can never be read with this configuration, whatever is there.
func Check(c Config, ref model.Ref) error {
	p, err := pathOf(ref)
	if err == nil {
		_, _, err = newSource(c).under(p)
	}
	return err
}

// pathOf is the absolute path that ref names.
func pathOf(ref model.Ref) (string, error) {
	p, err := url.PathUnescape(ref.Path)
	p = strings.TrimRight(p, "/")
	if err != nil || ref.Query != "" || ref.Host != "" || path.Clean(p) != p || !path.IsAbs(p) {
		return "", &model.Error{Reason: "BadSource", Final: true,
			Text: fmt.Sprintf("%s: want file:///absolute/path, without .. and without a query", ref)}
	}
	return p, nil
}

// open is the configured directory that holds the absolute path p, and p's name within it. The caller
// closes it. Nothing that is opened through it can be outside of it.
func (s *Source) open(p string) (*os.Root, string, error) {
	dir, rel, err := s.under(p)
	if err != nil {
		return nil, "", err
	}
	root, err := os.OpenRoot(dir)
	return root, rel, explain(p, err)
}

// under is the configured directory that holds the absolute path p, and p's name within it.
func (s *Source) under(p string) (dir, rel string, err error) {
	for _, dir := range s.roots {
		if p == dir {
			return dir, ".", nil
		}
		if rel, under := strings.CutPrefix(p, dir+"/"); under {
			return dir, rel, nil
		}
	}
	e := &model.Error{Reason: "Forbidden", Final: true}
	if len(s.roots) == 0 {
		e.Text = fmt.Sprintf("file://%s: no directory may be read: name those that may in cache.sources.file.roots", p)
	} else {
		e.Text = fmt.Sprintf("file://%s: not under %s: cache.sources.file.roots names the directories that may be read", p, strings.Join(s.roots, ", "))
	}
	return "", "", e
}

// explain says what a failure at p means.
func explain(p string, err error) error {
	e := &model.Error{Text: "file://" + p, Err: err, Final: true}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		e.Reason, e.Err = "NotFound", nil
		e.Text += ": not there: correct the source, or mount it where the agent sees it"
	case errors.Is(err, fs.ErrPermission):
		e.Reason, e.Err = "Forbidden", nil
		e.Text += ": the agent may not read it: change its mode or owner"
	case escapes(err):
		e.Reason, e.Err = "BadPath", nil
		e.Text += ": a symlink leaves the directories that may be read: copy what it points to"
	default:
		e.Reason, e.Final = "Unreadable", false
	}
	return e
}

// escapes recognises os.Root's refusal, which has no name.
func escapes(err error) bool {
	e, ok := errors.AsType[*fs.PathError](err)
	return ok && strings.Contains(e.Err.Error(), "escapes")
}

// Resolve lists the files under ref's directory, or takes the one file that ref names. Digests come from a
// SHA256SUMS in the directory; the digest in a ref is that of the one file, or of the SHA256SUMS.
func (s *Source) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	if ctx.Err() != nil {
		return model.Manifest{}, fmt.Errorf("%s: %w", ref, context.Cause(ctx))
	}
	p, err := pathOf(ref)
	if err != nil {
		return model.Manifest{}, err
	}
	root, rel, err := s.open(p)
	if err != nil {
		return model.Manifest{}, err
	}
	defer root.Close()
	info, err := root.Stat(rel)
	if err != nil {
		return model.Manifest{}, explain(p, err)
	}
	if info.IsDir() {
		return list(ctx, root, rel, p, ref)
	}
	f, err := describe(info, path.Base(p), p)
	if err != nil {
		return model.Manifest{}, err
	}
	f.Digest = ref.Digest
	return model.NewManifest([]model.File{f})
}

// describe is the file at the absolute path key, named name in its model.
func describe(info fs.FileInfo, name, key string) (model.File, error) {
	if err := model.CheckPath(name); err != nil {
		return model.File{}, &model.Error{Reason: "BadPath", Final: true, Text: "file://" + key, Err: err}
	}
	if !info.Mode().IsRegular() {
		return model.File{}, &model.Error{Reason: "BadPath", Final: true,
			Text: fmt.Sprintf("file://%s: not a file but %s: remove it there", key, kind(info.Mode()))}
	}
	return model.File{Path: name, Key: key, Size: info.Size(), Version: version(info)}, nil
}

func kind(m fs.FileMode) string {
	if m.IsDir() {
		return "a symlink to a directory"
	}
	return "a device, a pipe or a socket"
}

// version changes whenever the content does, a replaced file and a modification time that was set included.
func version(info fs.FileInfo) string {
	v := fmt.Sprintf("%d", info.ModTime().UnixNano())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		v += fmt.Sprintf(".%d.%d", st.Ino, st.Ctim.Nano())
	}
	return v
}

func list(ctx context.Context, root *os.Root, rel, dir string, ref model.Ref) (model.Manifest, error) {
	var files []model.File
	most := maxFiles
	err := fs.WalkDir(root.FS(), rel, func(at string, e fs.DirEntry, err error) error {
		name := strings.TrimPrefix(strings.TrimPrefix(at, rel), "/")
		if rel == "." {
			name = at
		}
		key := dir + "/" + name
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", ref, context.Cause(ctx))
		case err != nil:
			return explain(key, err)
		case e.IsDir():
			return nil
		case name == model.SumsName:
			most++ // it is none of them
		case len(files) == most:
			return &model.Error{Reason: "TooManyFiles", Final: true,
				Text: fmt.Sprintf("%s: more than %d files: name a directory further down", ref, maxFiles)}
		}
		info, err := root.Stat(at) // of what a symlink points to
		if err != nil {
			return explain(key, err)
		}
		f, err := describe(info, key[len(dir)+1:], key) // one text for both
		files = append(files, f)
		return err
	})
	if err == nil {
		files, err = sums(root, rel, dir, ref, files)
	}
	if err != nil {
		return model.Manifest{}, err
	}
	if len(files) == 0 {
		return model.Manifest{}, &model.Error{Reason: "Empty", Final: true, Text: fmt.Sprintf("%s: no files there", ref)}
	}
	return model.NewManifest(files)
}

// sums gives the files the digests of a SHA256SUMS among them, which is a list of the model and no part of it.
func sums(root *os.Root, rel, dir string, ref model.Ref, files []model.File) ([]model.File, error) {
	key := dir + "/" + model.SumsName
	n := len(files)
	kept := slices.DeleteFunc(files, func(f model.File) bool { return f.Path == model.SumsName })
	if len(kept) == n {
		if ref.Digest != "" {
			return nil, &model.Error{Reason: "WrongDigest", Final: true, Text: "file://" + key, Err: errors.New("the source's #sha256 is for one file, or for a SHA256SUMS in the directory: there is none")}
		}
		return files, nil
	}
	text, err := readAll(root, path.Join(rel, model.SumsName))
	if err != nil {
		return nil, explain(key, err)
	}
	if err := model.SetDigests(kept, text, ref.Digest, "file://"+key); err != nil {
		return nil, err
	}
	return kept, nil
}

func readAll(root *os.Root, name string) ([]byte, error) {
	f, err := openFile(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, model.MaxSums+1))
}

// openFile opens for reading, and does not wait for who writes into a pipe.
func openFile(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}
