// Package archive reads the tar archives that registries keep models in, and says which files they make.
// It touches no disk: whoever reads an archive stores the contents.
package archive

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	maxMembers = 1 << 18
	maxWindow  = 32 << 20 // bytes of memory that a zstd stream may ask for: what zstd does up to level 20
	root       = "models" // KServe's modelcar: the directory of an image that holds the model
)

// Kind is what a Member does.
type Kind string

// The kinds. Only a File has content.
const (
	File     Kind = ""
	Dir      Kind = "dir"      // there is a directory, in the place of a file of an archive below
	Link     Kind = "link"     // another name of the file at To, as it is when the archive is read
	Symlink  Kind = "symlink"  // what is at To once all archives are read
	Whiteout Kind = "whiteout" // nothing is left at Path of the archives below
	Opaque   Kind = "opaque"   // nothing is left in the directory Path of the archives below
)

// Member is what one entry of an archive does to the model's directory. Paths are relative to that; "" is
// the directory itself.
type Member struct {
	Path   string       `json:"path"`
	Kind   Kind         `json:"kind,omitempty"`
	Size   int64        `json:"size,omitempty"`
	Digest model.Digest `json:"digest,omitempty"`
	To     string       `json:"to,omitempty"`
}

// Read lists what the archive in r does, in its order. take is called for each File and stores its size
// bytes of content; its error ends the reading, as one of r does. No more than limit bytes are unpacked. What is wrong
// with the archive is a final *model.Error.
func Read(r io.Reader, kind model.Archive, limit int64, take func(size int64, content io.Reader) (model.Digest, error)) ([]Member, error) {
	in := &source{r: r}
	plain, done, err := decompress(in)
	if err != nil {
		return nil, in.or(bad("%v", err))
	}
	defer done()
	var members []Member
	seen := map[string]Kind{}
	for tr := tar.NewReader(&bounded{r: plain, left: limit}); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return members, nil
		}
		if err != nil {
			return nil, in.or(damaged(err))
		}
		m, ok, err := member(kind, h)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if m.Kind != Whiteout && m.Kind != Opaque {
			if before, twice := seen[m.Path]; twice && (m.Kind != Dir || before != Dir) {
				return nil, bad("%q is in it twice", m.Path)
			}
			seen[m.Path] = m.Kind
		}
		if len(members) == maxMembers {
			return nil, bad("more than %d files", maxMembers)
		}
		if m.Kind == File {
			content := &reader{r: tr}
			m.Digest, err = take(m.Size, content)
			if err != nil && content.err != nil {
				err = in.or(damaged(content.err))
			}
			if err != nil {
				return nil, err
			}
		}
		members = append(members, m)
	}
}

// member is what the entry of h does; not ok where that is nothing to the model.
func member(kind model.Archive, h *tar.Header) (Member, bool, error) {
	name, err := clean(h.Name)
	if err != nil {
		return Member{}, false, err
	}
	if kind == model.Image {
		if dir, base := path.Split(name); strings.HasPrefix(base, ".wh.") {
			return whiteout(path.Clean(dir), strings.TrimPrefix(base, ".wh."))
		}
	}
	at, ok := inside(kind, name)
	if !ok || h.Typeflag == tar.TypeXGlobalHeader {
		return Member{}, false, nil
	}
	m := Member{Path: at}
	switch h.Typeflag {
	case tar.TypeDir:
		m.Kind = Dir
		return m, at != "", nil
	case tar.TypeReg, tar.TypeGNUSparse:
		m.Size = h.Size
	case tar.TypeLink:
		to, err := clean(h.Linkname)
		if err != nil {
			return m, false, err
		}
		m.Kind = Link
		if m.To, ok = inside(kind, to); !ok {
			return m, false, bad("%q is a link to %q, outside of the model's directory", name, model.Printable(h.Linkname))
		}
	case tar.TypeSymlink:
		m.Kind = Symlink
		if m.To, ok = follow(kind, name, h.Linkname); !ok {
			return m, false, bad("%q is a link to %q, outside of the model's directory", name, model.Printable(h.Linkname))
		}
	default:
		return m, false, bad("%q is neither a file, a directory nor a link", name)
	}
	if at == "" {
		return m, false, bad("%q is not a directory", name)
	}
	if err := model.CheckPath(at); err != nil {
		return m, false, bad("%v", err)
	}
	if m.Size < 0 || m.Size > 1<<50 {
		return m, false, bad("%q has a size of %d bytes", name, m.Size)
	}
	return m, true, nil
}

// whiteout is what ".wh."+name in dir does to the archives below. Names that begin with ".wh." again are of aufs,
// all but one without meaning here (OCI image specification, layer.md).
func whiteout(dir, name string) (Member, bool, error) {
	m := Member{Kind: Whiteout}
	gone := path.Join(dir, name)
	if name == ".wh..opq" {
		m.Kind, gone = Opaque, dir
	} else if strings.HasPrefix(name, ".wh.") || name == "" {
		return m, false, nil
	}
	at, ok := inside(model.Image, gone)
	if gone == "." {
		at, ok = "", true // the root, and so all below it
	}
	m.Path = at
	return m, ok, nil
}

// clean is an entry's name without "./" first and "/" last; "." for the archive's own directory.
func clean(name string) (string, error) {
	shown := model.Printable(name)
	name = strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	switch {
	case name == "", name == ".":
		return ".", nil
	case strings.HasPrefix(name, "/"):
		return "", bad("the name %q is absolute", shown)
	case path.Clean(name) != name, name == "..", strings.HasPrefix(name, "../"):
		return "", bad("the name %q leaves the archive or is not clean", shown)
	}
	return name, nil
}

// inside is a clean name relative to the model's directory, if it is in that.
func inside(kind model.Archive, name string) (string, bool) {
	switch {
	case kind != model.Image && name == ".", kind == model.Image && name == root:
		return "", true
	case kind != model.Image:
		return name, true
	}
	return strings.CutPrefix(name, root+"/")
}

// follow is where a symbolic link of that name leads, relative to the model's directory, if it stays in it.
func follow(kind model.Archive, name, target string) (string, bool) {
	if kind == model.Image { // "/" is the image's, and nothing is above it
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		return inside(kind, strings.TrimPrefix(path.Clean("/"+target), "/"))
	}
	to := path.Join(path.Dir(name), target)
	return to, !path.IsAbs(target) && to != ".." && !strings.HasPrefix(to, "../")
}

// decompress is the tar in r. The media type does not matter: the first bytes say what it is, as container
// runtimes have it.
func decompress(r io.Reader) (io.Reader, func(), error) {
	in := bufio.NewReaderSize(r, 256<<10)
	first, err := in.Peek(4)
	switch {
	case len(first) < 4 && err != nil:
		return nil, nil, errors.New("it is empty or cut short")
	case first[0] == 0x1f && first[1] == 0x8b:
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, nil, errors.New("its gzip header is damaged")
		}
		return z, func() {}, nil
	case string(first) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return in, func() {}, nil
}

// damaged says why an archive cannot be read on.
func damaged(err error) error {
	if _, ok := errors.AsType[*model.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return bad("it is cut short")
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return bad("it needs a window of more than %d MiB to unpack: compress it at zstd level 19 or lower", maxWindow>>20)
	case errors.Is(err, tar.ErrHeader):
		return bad("it is not a tar archive, plain or with gzip or zstd, or damaged")
	}
	return bad("it cannot be unpacked: %s", model.Printable(err.Error()))
}

func bad(format string, args ...any) error {
	return &model.Error{Reason: "BadArchive", Final: true, Text: "the archive cannot be used: " + fmt.Sprintf(format, args...)}
}

// source remembers a failure of what the archive is read from, which is none of the archive's.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *source) or(err error) error {
	if s.err != nil {
		return s.err
	}
	return err
}

// reader remembers a failure of the archive, for its user may have others.
type reader struct {
	r   io.Reader
	err error
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// bounded refuses what goes on for ever: a kilobyte of gzip may hold a megabyte of zeros.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, bad("it unpacks to more than the whole cache may hold")
	}
	return n, err
}
