package cache

import (
	"archive/tar"
	jsonv1 "encoding/json"
	"encoding/json/jsontext"
	"encoding/json/v2"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	godigest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// A bundle is an OCI image layout in one tar, so that the field's tools can look at it, copy it and push it. Each model
// is a manifest: its config is a bundled, its layers are the model's files, named by the title annotation. The index, the
// manifests and the configs come before the files, and the files in the order of the records, each content once: a
// bundle in that order can be imported from a pipe. It says nothing of when it was made, so that equal models make equal
// bundles.

const (
	mediaRecord   = "application/vnd.gpu-agent.model.v1+json"
	mediaFile     = "application/octet-stream"
	maxBundleText = 32 << 20 // bytes of the index, a manifest or a record: room for 100,000 files
	maxBundled    = 1000     // models in a bundle
	blobPrefix    = ocispec.ImageBlobsDir + "/sha256/"
)

// bundled is what a bundle says of a model. Nothing in it is a secret.
type bundled struct {
	Name string `json:"name"`
	// Source is without its query where that may be a secret; Ref is the fingerprint of all of it.
	Source   string       `json:"source"`
	Ref      string       `json:"ref"`
	Revision string       `json:"revision"`
	Hub      model.Hub    `json:"hub,omitzero"`
	Files    []model.File `json:"files"`
	Origin   []model.File `json:"origin,omitempty"` // see record
}

// bundle says r, which came from ref as far as that is known.
func (r *record) bundle(ref model.Ref) bundled {
	source := r.Source
	if fingerprint(ref) == r.Ref {
		if _, err := model.ParseFilter(ref.Query); err != nil {
			ref.Query = "" // it may be a signature
		}
		source = ref.URL()
		if ref.Digest != "" {
			source += "#sha256=" + string(ref.Digest)
		}
	}
	return bundled{Name: r.Name, Source: source, Ref: r.Ref, Revision: r.Revision, Hub: r.Hub, Files: r.Files, Origin: r.Origin}
}

// bad is a bundle that is refused.
func bad(format string, args ...any) error {
	return &model.Error{Reason: "BadBundle", Final: true, Text: "the bundle is refused: " + fmt.Sprintf(format, args...)}
}

// check makes a record from outside safe to use.
func (b *bundled) check() error {
	if err := model.CheckName(b.Name); err != nil {
		return bad("%v", err)
	}
	ref, err := model.ParseRef(b.Source)
	if err != nil {
		return bad("model %s: %v", b.Name, err)
	}
	if strings.TrimSpace(b.Revision) == "" || len(b.Revision) > 256 || model.Printable(b.Revision) != b.Revision {
		return bad("model %s: revision %q", b.Name, b.Revision)
	}
	for _, files := range []*[]model.File{&b.Files, &b.Origin} {
		if len(*files) == 0 && files == &b.Origin {
			continue
		}
		m, err := checkManifest(model.Ref{Scheme: ref.Scheme, Host: ref.Host, Path: ref.Path},
			model.Manifest{Revision: b.Revision, Files: *files, Hub: b.Hub})
		if err != nil {
			return bad("model %s: %v", b.Name, err)
		}
		sizes := map[model.Digest]int64{}
		for _, f := range m.Files {
			size, seen := sizes[f.Digest]
			switch {
			case f.Digest == "":
				return bad("model %s: file %q has no digest", b.Name, f.Path)
			case f.Archive != "" && files == &b.Files:
				return bad("model %s: file %q is an archive: want what is in it", b.Name, f.Path)
			case seen && size != f.Size:
				return bad("model %s: sha256 %s has %d bytes and also %d", b.Name, f.Digest, size, f.Size)
			}
			sizes[f.Digest] = f.Size
		}
		*files = m.Files
	}
	return nil
}

// text is a JSON file of a bundle. It is encoded whenever it is read and never there as a whole: that of 100,000 files has
// 20 MB, and a manifest's layers have several times as much.
type text struct {
	name string // in the tar
	size int64  // bytes
	of   any
}

func (t text) write(w io.Writer) error { return json.MarshalWrite(w, t.of, jsonv1.DefaultOptionsV1()) }

// measured counts what is written to it.
type measured struct{ n int64 }

func (m *measured) Write(p []byte) (int, error) {
	m.n += int64(len(p))
	return len(p), nil
}

func describe(media string, of any) (text, ocispec.Descriptor, error) {
	t, digester, size := text{of: of}, godigest.SHA256.Digester(), measured{}
	err := t.write(io.MultiWriter(digester.Hash(), &size))
	d := ocispec.Descriptor{MediaType: media, Digest: digester.Digest(), Size: size.n}
	t.name, t.size = blobPrefix+d.Digest.Encoded(), d.Size
	return t, d, err
}

// layers are files as a manifest lists them.
type layers []model.File

// MarshalJSONTo encodes them one by one.
func (l layers) MarshalJSONTo(out *jsontext.Encoder) error {
	if err := out.WriteToken(jsontext.BeginArray); err != nil {
		return err
	}
	for _, f := range l {
		d := ocispec.Descriptor{MediaType: mediaFile, Digest: godigest.Digest("sha256:" + string(f.Digest)), Size: f.Size,
			Annotations: map[string]string{ocispec.AnnotationTitle: f.Path}}
		if err := json.MarshalEncode(out, d); err != nil {
			return err
		}
	}
	return out.WriteToken(jsontext.EndArray)
}

// layer is what is read of one.
type layer struct {
	Digest      godigest.Digest `json:"digest"`
	Size        int64           `json:"size"`
	Annotations struct {
		Title string `json:"org.opencontainers.image.title"`
	} `json:"annotations"`
}

// bundleText is the text of a bundle, in the order in which it is written.
func bundleText(models []bundled) ([]text, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var texts []text
	names := map[string]bool{}
	for _, b := range models {
		record, config, err := describe(mediaRecord, b)
		if err != nil {
			return nil, err
		}
		m := struct {
			ocispec.Manifest
			Layers layers `json:"layers"`
		}{ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			ArtifactType: mediaRecord, Config: config}, b.Files}
		manifest, d, err := describe(ocispec.MediaTypeImageManifest, m)
		if err != nil {
			return nil, err
		}
		d.ArtifactType = mediaRecord
		name := b.Name
		if names[name] {
			name += "-" + model.Revision12(b.Revision)
		}
		names[name] = true
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
		index.Manifests = append(index.Manifests, d)
		texts = append(texts, manifest, record)
	}
	layout, _, err := describe("", ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	list, _, err := describe("", index)
	if err != nil {
		return nil, err
	}
	layout.name, list.name = ocispec.ImageLayoutFile, ocispec.ImageIndexFile
	return append([]text{layout, list}, texts...), nil
}

// bundleReader reads a bundle from its start to its end, once.
type bundleReader struct {
	tar  *tar.Reader
	seen map[string]bool
	at   string // name of the entry that is open, "" once its content was handed out
	size int64
}

func newBundleReader(r io.Reader) *bundleReader {
	return &bundleReader{tar: tar.NewReader(r), seen: map[string]bool{}}
}

// next opens the next entry, or says io.EOF.
func (b *bundleReader) next() error {
	for {
		h, err := b.tar.Next()
		if errors.Is(err, io.EOF) {
			return io.EOF
		}
		if errors.Is(err, io.ErrUnexpectedEOF) && len(b.seen) > 0 {
			return bad("it was cut off: it ends amid its entries")
		}
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
			return bad("it is no tar archive, is compressed or was cut off: %v", err)
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(h.Name, "./")
		switch dir := strings.TrimSuffix(name, "/"); {
		case h.Typeflag == tar.TypeDir && slices.Contains([]string{"", ".", "blobs", "blobs/sha256"}, dir):
			continue
		case h.Typeflag != tar.TypeReg:
			return bad("entry %q is no plain file", h.Name)
		}
		if name != ocispec.ImageLayoutFile && name != ocispec.ImageIndexFile {
			d, err := model.ParseDigest(path.Base(name))
			if err != nil || name != blobPrefix+string(d) {
				return bad("entry %q: want %s, %s and %s<hexadecimal>", h.Name, ocispec.ImageLayoutFile, ocispec.ImageIndexFile, blobPrefix)
			}
		}
		if b.seen[name] {
			return bad("entry %q is there twice", h.Name)
		}
		b.seen[name] = true
		b.at, b.size = name, h.Size
		return nil
	}
}

// text is the next entry, which is to have that name.
func (b *bundleReader) text(name string) (io.Reader, error) {
	err := b.next()
	if errors.Is(err, io.EOF) {
		return nil, bad("it ends before %s", name)
	}
	if err != nil {
		return nil, err
	}
	if b.at != name {
		return nil, bad("%s comes before %s: what is in it must come before the content; a bundle that another tool "+
			"wrote can be imported as a file, and not through a pipe", b.at, name)
	}
	if b.size > maxBundleText {
		return nil, bad("%s has %s, the most is %s", name, model.FormatBytes(b.size), model.FormatBytes(maxBundleText))
	}
	return b.tar, nil
}

// blob is the content of f. What comes before it is passed over.
func (b *bundleReader) blob(f model.File) (io.Reader, error) {
	for b.at != blobPrefix+string(f.Digest) {
		if err := b.next(); errors.Is(err, io.EOF) {
			return nil, bad("the content of %q, sha256 %s, is not in it or comes before that of other files", f.Path, f.Digest)
		} else if err != nil {
			return nil, err
		}
	}
	if b.size != f.Size {
		return nil, bad("the content of %q has %d bytes instead of %d", f.Path, b.size, f.Size)
	}
	b.at = ""
	return b.tar, nil
}

// parseBundle reads what is in a bundle. text returns a file of the layout, each is asked for once, in the order in which
// they are written, and read to its end.
func parseBundle(text func(name string) (io.Reader, error)) ([]bundled, error) {
	var layout ocispec.ImageLayout
	var index ocispec.Index
	read := func(name string, v any) error {
		r, err := text(name)
		if err != nil {
			return err
		}
		digester := godigest.SHA256.Digester()
		r = io.TeeReader(r, digester.Hash())
		wrong := decode(r, v)
		if _, err := io.Copy(io.Discard, r); errors.Is(err, io.ErrUnexpectedEOF) {
			return bad("it was cut off within %s", name)
		} else if err != nil {
			return err
		}
		if hex, ok := strings.CutPrefix(name, blobPrefix); ok && digester.Digest().Encoded() != hex {
			return bad("the content of %s is not of that sha256", name)
		}
		if wrong != nil {
			return bad("%s: %v", name, wrong)
		}
		return nil
	}
	blob := func(d ocispec.Descriptor, v any) error {
		if _, err := model.ParseDigest(string(d.Digest)); err != nil || !strings.HasPrefix(string(d.Digest), "sha256:") {
			return bad("digest %q: want sha256:<64 hexadecimal digits>", d.Digest)
		}
		return read(blobPrefix+strings.ToLower(d.Digest.Encoded()), v)
	}
	if err := read(ocispec.ImageLayoutFile, &layout); err != nil {
		return nil, err
	}
	if err := read(ocispec.ImageIndexFile, &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) == 0 || len(index.Manifests) > maxBundled {
		return nil, bad("it holds %d models: want 1 to %d", len(index.Manifests), maxBundled)
	}
	var models []bundled
	for _, d := range index.Manifests {
		var m struct {
			Config ocispec.Descriptor `json:"config"`
			Layers []layer            `json:"layers"`
		}
		if err := blob(d, &m); err != nil {
			return nil, err
		}
		if m.Config.MediaType != mediaRecord {
			return nil, bad("manifest %s is of %q and no model of gpu-agent models export: pull other artifacts as oci://", d.Digest, m.Config.MediaType)
		}
		var b bundled
		if err := blob(m.Config, &b); err != nil {
			return nil, err
		}
		if err := b.check(); err != nil {
			return nil, err
		}
		if err := b.agrees(m.Layers); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(models, func(o bundled) bool { return o.Name == b.Name && o.Revision == b.Revision }) {
			return nil, bad("model %s at %s is in it twice", b.Name, b.Revision)
		}
		models = append(models, b)
	}
	return models, nil
}

// agrees reports a manifest that lists other files than the record.
func (b *bundled) agrees(layers []layer) error {
	listed := make(map[string]*layer, len(layers))
	for i, l := range layers {
		listed[l.Annotations.Title] = &layers[i]
	}
	for _, f := range b.Files {
		if l := listed[f.Path]; l == nil || string(l.Digest) != "sha256:"+string(f.Digest) || l.Size != f.Size {
			return bad("model %s: file %q is not the same in its manifest and in its record", b.Name, f.Path)
		}
	}
	if len(layers) != len(b.Files) {
		return bad("model %s: its manifest lists %d files and its record %d", b.Name, len(layers), len(b.Files))
	}
	return nil
}

// bundleWriter writes a bundle.
type bundleWriter struct{ tar *tar.Writer }

func (w bundleWriter) head(name string, size int64) error {
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o444})
}

func (w bundleWriter) put(name string, size int64, content io.Reader) error {
	if err := w.head(name, size); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{w.tar}, content, make([]byte, min(bufferSize, max(size, 1))))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// write writes models, and their files as open gives them.
func (w bundleWriter) write(models []bundled, open func(model.File) (io.ReadCloser, error)) error {
	texts, err := bundleText(models)
	if err != nil {
		return err
	}
	for _, t := range texts {
		if err := w.head(t.name, t.size); err != nil {
			return err
		}
		if err := t.write(w.tar); err != nil {
			return err
		}
	}
	written := map[model.Digest]bool{}
	for _, b := range models {
		for _, f := range b.Files {
			if written[f.Digest] {
				continue
			}
			written[f.Digest] = true
			content, err := open(f)
			if err != nil {
				return err
			}
			if err := errors.Join(w.put(blobPrefix+string(f.Digest), f.Size, content), content.Close()); err != nil {
				return fmt.Errorf("file %s of model %s: %w", f.Path, b.Name, err)
			}
		}
	}
	return w.tar.Close()
}

// Reorder writes the bundle in, whose tar may be in any order, as one that Import takes. The order within is what other
// tools change.
func Reorder(in io.ReadSeeker, out io.Writer) error {
	b := newBundleReader(in)
	type place struct{ off, size int64 }
	places := map[string]place{}
	for {
		err := b.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		off, err := in.Seek(0, io.SeekCurrent) // archive/tar reads headers alone, and seeks over content
		if err != nil {
			return err
		}
		places[b.at] = place{off, b.size}
	}
	section := func(name string) (io.Reader, int64, error) {
		p, ok := places[name]
		if !ok {
			return nil, 0, bad("%s is not in it", name)
		}
		_, err := in.Seek(p.off, io.SeekStart)
		return io.LimitReader(in, p.size), p.size, err
	}
	w := bundleWriter{tar.NewWriter(out)}
	models, err := parseBundle(func(name string) (io.Reader, error) {
		r, size, err := section(name)
		if err != nil {
			return nil, err
		}
		if size > maxBundleText {
			return nil, bad("%s has %s, the most is %s", name, model.FormatBytes(size), model.FormatBytes(maxBundleText))
		}
		if err := w.put(name, size, r); err != nil {
			return nil, err
		}
		r, _, err = section(name)
		return r, err
	})
	if err != nil {
		return err
	}
	written := map[model.Digest]bool{}
	for _, m := range models {
		for _, f := range m.Files {
			if written[f.Digest] {
				continue
			}
			written[f.Digest] = true
			r, size, err := section(blobPrefix + string(f.Digest))
			if err == nil {
				err = w.put(blobPrefix+string(f.Digest), size, r)
			}
			if err != nil {
				return err
			}
		}
	}
	return w.tar.Close()
}
