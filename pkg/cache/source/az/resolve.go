package az

import (
	"context"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	blobsLimit = 100_000 // blobs in one model; more is a prefix that was named too short
	maxPage    = 8 << 20 // bytes of one page of a listing: 1000 blobs of about 2 KiB each, and room
)

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
	if itself != nil {
		f := *itself
		if ref.Digest != "" && f.Digest != "" && f.Digest != ref.Digest {
			return model.Manifest{}, &model.Error{Reason: "WrongDigest", Final: true,
				Text: fmt.Sprintf("%s: its sha256 is %s, the source says %s", ref, f.Digest, ref.Digest)}
		}
		if ref.Digest != "" {
			f.Digest = ref.Digest
		}
		return model.NewManifest([]model.File{f})
	}
	files, err := s.list(ctx, at)
	if err != nil {
		return model.Manifest{}, err
	}
	kept := make([]model.File, 0, len(files))
	var sums *model.File
	for i, f := range files {
		if f.Path == model.SumsName { // a list of the model, not part of it
			sums = &files[i]
			continue
		}
		kept = append(kept, f)
	}
	switch {
	case len(kept) == 0:
		return model.Manifest{}, &model.Error{Reason: "NotFound", Final: true,
			Text: fmt.Sprintf("%s: no blob there and none under it%s: correct the source", ref, s.where())}
	case sums != nil:
		if err := s.readSums(ctx, ref, *sums, kept); err != nil {
			return model.Manifest{}, err
		}
	case ref.Digest != "":
		return model.Manifest{}, &model.Error{Reason: "WrongDigest", Final: true,
			Text: fmt.Sprintf("%s: its #sha256 is for one blob, or for a SHA256SUMS under the prefix: there is neither", ref)}
	}
	return model.NewManifest(kept)
}

// one is the blob that at names, nil where that is a directory: some tools leave an empty blob for one.
func (s *Source) one(ctx context.Context, at place) (*model.File, error) {
	if at.name == "" || strings.HasSuffix(at.name, "/") {
		return nil, nil
	}
	var itself *model.File
	err := s.pages(ctx, at, at.name, 1, func(name string, b blob) (bool, error) { // names are sorted: it is the first, or is not there
		if name != at.name || b.folder(name) || b.Properties.Size == 0 {
			return false, nil
		}
		f, err := file(at.ref, b, name, path.Base(name))
		itself = &f
		return false, err
	})
	return itself, err
}

// list returns the blobs under the name of at, directory markers left out.
func (s *Source) list(ctx context.Context, at place) ([]model.File, error) {
	prefix := at.name
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	var files []model.File
	err := s.pages(ctx, at, prefix, 1000, func(name string, b blob) (bool, error) {
		below := strings.TrimPrefix(name, prefix)
		if below == "" || b.folder(name) {
			return true, nil
		}
		if err := model.CheckPath(below); err != nil {
			return false, &model.Error{Reason: "BadPath", Final: true, Err: err,
				Text: fmt.Sprintf("%s: blob %s cannot be a file of the model: rename or remove it", at.ref, quoted(name))}
		}
		f, err := file(at.ref, b, name, below)
		if files = append(files, f); len(files) > blobsLimit {
			return false, &model.Error{Reason: "TooManyFiles", Final: true,
				Text: fmt.Sprintf("%s: more than %d blobs: name a longer prefix", at.ref, blobsLimit)}
		}
		return true, err
	})
	return files, err
}

// pages calls each with the blobs whose names begin with prefix, size of them a page, until it wants no more.
func (s *Source) pages(ctx context.Context, at place, prefix string, size int, each func(string, blob) (bool, error)) error {
	query := url.Values{"restype": {"container"}, "comp": {"list"}, "prefix": {prefix}, "maxresults": {strconv.Itoa(size)}, "include": {"metadata"}}
	for {
		u := s.address(at, "")
		u.RawQuery = query.Encode()
		resp, err := s.send(ctx, at, "list "+quoted(prefix), u, nil)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxPage+1))
		resp.Body.Close()
		if err != nil {
			return wrap(ctx, at.ref.String()+s.where(), err)
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
			if err != nil || !strings.HasPrefix(name, prefix) {
				return wrongAnswer(at.ref)
			}
			if more, err := each(name, b); err != nil || !more {
				return err
			}
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

// readSums sets the digests that the SHA256SUMS blob gives; a file that it names and the store lacks is an error.
func (s *Source) readSums(ctx context.Context, ref model.Ref, sums model.File, files []model.File) error {
	at := fmt.Sprintf("%s: blob %s", ref, quoted(sums.Key))
	if sums.Size > model.MaxSums {
		return &model.Error{Reason: "BadSums", Final: true, Text: at, Err: errors.New("larger than 16 MiB")}
	}
	body, err := s.Open(ctx, ref, sums, 0, sums.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	text, err := io.ReadAll(body)
	if err != nil {
		return wrap(ctx, ref.String()+s.where(), err)
	}
	return model.SetDigests(files, text, ref.Digest, at)
}
