package az

import (
	"context"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// maxPage bounds one page of a listing, in bytes: 1000 blobs of about 2 KiB each, and room.
const maxPage = 8 << 20

// blob is what is asked of one. The service sends more.
type blob struct {
	Name struct {
		Encoded bool   `xml:"Encoded,attr"` // holds what XML cannot, and is percent-encoded
		Text    string `xml:",chardata"`
	}
	Properties struct {
		Size         int64  `xml:"Content-Length"`
		ETag         string `xml:"Etag"`
		MD5          string `xml:"Content-MD5"`
		Encoding     string `xml:"Content-Encoding"`
		ResourceType string
		AccessTier   string
	}
	Metadata struct {
		SHA256 string `xml:"sha256"`
		Folder string `xml:"hdi_isfolder"`
	}
}

// folder reports a marker of a directory: of a hierarchical namespace, or of tools that pretend one.
func (b blob) folder(name string) bool {
	return b.Properties.ResourceType == "directory" || strings.EqualFold(b.Metadata.Folder, "true") ||
		strings.HasSuffix(name, "/") && b.Properties.Size == 0
}

// Resolve lists the blobs under ref's prefix, or takes the one blob that ref names. Digests come from a
// SHA256SUMS blob under the prefix, else from the metadata sha256; the MD5 of the whole that Azure keeps of a blob where
// the uploader set it is checked too. The digest in a ref is that of the one blob, or of the SHA256SUMS.
func (s *Source) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	at, err := parse(ref)
	if err != nil {
		return model.Manifest{}, err
	}
	itself, err := s.one(ctx, at)
	if err != nil {
		return model.Manifest{}, err
	}
	if itself != nil && itself.Size > 0 {
		return web.One(ref, *itself)
	}
	files, err := s.list(ctx, at, itself)
	if err != nil {
		return model.Manifest{}, err
	}
	return model.NewManifest(files)
}

// one is the blob that at names, nil where that is marked as a directory.
func (s *Source) one(ctx context.Context, at place) (*model.File, error) {
	if at.name == "" || strings.HasSuffix(at.name, "/") {
		return nil, nil
	}
	var itself *model.File
	err := s.pages(ctx, at, s.listing(at, at.name), 1, func(name string, b blob) (bool, error) { // names are sorted: it is the first, or is not there
		if name != at.name || b.folder(name) {
			return false, nil
		}
		f, err := file(at.ref, b, name, path.Base(name))
		itself = &f
		return false, err
	})
	return itself, err
}

// list returns the blobs under the name of at, directory markers left out, or itself, the empty blob of that name.
func (s *Source) list(ctx context.Context, at place, itself *model.File) ([]model.File, error) {
	prefix := at.name
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	l := s.listing(at, prefix)
	l.Itself = itself
	err := s.pages(ctx, at, l, 1000, func(name string, b blob) (bool, error) {
		below, err := l.Path(name, b.Properties.Size)
		if err != nil || below == "" || b.folder(name) {
			return true, err
		}
		f, err := file(at.ref, b, name, below)
		l.Add(f)
		return true, err
	})
	if err != nil {
		return nil, err
	}
	return l.Files(ctx, s.Open)
}

func (s *Source) listing(at place, prefix string) *web.Listing {
	return &web.Listing{Ref: at.ref, Prefix: prefix, Object: "blob", Where: s.where()}
}

// pages calls each with the blobs of l, size of them a page, until it wants no more.
func (s *Source) pages(ctx context.Context, at place, l *web.Listing, size int, each func(string, blob) (bool, error)) error {
	query := url.Values{"restype": {"container"}, "comp": {"list"}, "prefix": {l.Prefix}, "maxresults": {strconv.Itoa(size)}, "include": {"metadata"}}
	for {
		u := s.address(at, "")
		u.RawQuery = query.Encode()
		resp, err := s.send(ctx, at, "list "+quoted(l.Prefix), u, nil)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxPage+1))
		resp.Body.Close()
		if err != nil {
			return web.NoAnswer(ctx, at.ref.String()+s.where(), err)
		}
		var page struct {
			XMLName    xml.Name `xml:"EnumerationResults"`
			Blobs      []blob   `xml:"Blobs>Blob"`
			NextMarker string
		}
		if len(text) > maxPage || xml.Unmarshal(text, &page) != nil {
			return wrongAnswer(at.ref)
		}
		for _, b := range page.Blobs {
			name, err := b.Name.Text, error(nil)
			if b.Name.Encoded {
				name, err = url.PathUnescape(name)
			}
			if err != nil || !strings.HasPrefix(name, l.Prefix) {
				return wrongAnswer(at.ref)
			}
			if more, err := each(name, b); err != nil || !more {
				return err
			}
		}
		if err := l.Page(len(page.Blobs)); err != nil {
			return err
		}
		switch page.NextMarker {
		case "":
			return nil
		case query.Get("marker"): // it would go on for ever
			return wrongAnswer(at.ref)
		}
		query.Set("marker", page.NextMarker)
	}
}

func file(ref model.Ref, b blob, name, below string) (model.File, error) {
	p := b.Properties
	if p.Size < 0 || p.ETag == "" {
		return model.File{}, wrongAnswer(ref)
	}
	if p.Encoding != "" && p.Encoding != "identity" { // clients would unpack it, and its size is not the file's
		return model.File{}, &model.Error{Reason: "Encoded", Final: true,
			Text: fmt.Sprintf("%s: blob %s is stored with Content-Encoding %s: upload it without", ref, quoted(name), quoted(p.Encoding))}
	}
	if p.AccessTier == "Archive" {
		return model.File{}, &model.Error{Reason: "Archived", Final: true, Text: fmt.Sprintf("%s: blob %s", ref, quoted(name)) + archivedHint}
	}
	f := model.File{Path: below, Key: name, Size: p.Size, Version: `"` + strings.Trim(p.ETag, `"`) + `"`}
	if sum, err := base64.StdEncoding.DecodeString(p.MD5); err == nil && len(sum) == 16 {
		f.Check = model.MD5([16]byte(sum))
	}
	if d, err := model.ParseDigest(b.Metadata.SHA256); err == nil { // anything may be in metadata
		f.Digest = d
	}
	return f, nil
}
