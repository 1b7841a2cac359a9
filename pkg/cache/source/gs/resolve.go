package gs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// maxPage bounds one page of a listing, in bytes: 1000 objects of about 1 KiB each, and room.
const maxPage = 8 << 20

// object is what is asked of one.
type object struct {
	Name            string            `json:"name"`
	Size            int64             `json:"size,string"`
	Generation      string            `json:"generation"`
	CRC32C          string            `json:"crc32c"`
	ContentEncoding string            `json:"contentEncoding"`
	Metadata        map[string]string `json:"metadata"`
}

const objectFields = "name,size,generation,crc32c,contentEncoding,metadata/sha256"

// Resolve lists the objects under ref's prefix, or takes the one object that ref names. Digests come
// from a SHA256SUMS object under the prefix, else from the metadata key sha256; the crc32c that the store
// keeps of each object is checked too. The digest in a ref is that of the one object, or of the SHA256SUMS.
func (s *Source) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	key, err := keyOf(ref)
	if err != nil {
		return model.Manifest{}, err
	}
	if key == "" || strings.HasSuffix(key, "/") {
		return s.resolvePrefix(ctx, ref, key, nil)
	}
	f, err := s.one(ctx, ref, key)
	switch {
	case model.ReasonOf(err) == "NotFound":
		return s.resolvePrefix(ctx, ref, key+"/", nil)
	case err != nil:
		return model.Manifest{}, err
	case f.Size == 0:
		return s.resolvePrefix(ctx, ref, key+"/", &f)
	}
	return web.One(ref, f)
}

// Check says why ref can never be read, whatever the bucket has.
func Check(ref model.Ref) error {
	_, err := keyOf(ref)
	return err
}

// keyOf is the object that ref names, or a prefix.
func keyOf(ref model.Ref) (string, error) {
	key, err := url.PathUnescape(strings.TrimPrefix(ref.Path, "/"))
	if err != nil || ref.Query != "" {
		return "", &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("%s: want gs://bucket/prefix, and no ?", ref)}
	}
	return key, nil
}

// one asks for the object at key.
func (s *Source) one(ctx context.Context, ref model.Ref, key string) (model.File, error) {
	resp, err := s.get(ctx, ref, "ask for "+quoted(key), "/"+url.PathEscape(key), url.Values{"fields": {objectFields}}, nil)
	if err != nil {
		return model.File{}, err
	}
	var o object
	if err := s.decode(ctx, ref, resp, &o); err != nil {
		return model.File{}, err
	}
	if o.Name != key {
		return model.File{}, wrongAnswer(ref)
	}
	return file(ref, o, path.Base(key))
}

func (s *Source) resolvePrefix(ctx context.Context, ref model.Ref, prefix string, itself *model.File) (model.Manifest, error) {
	l := &web.Listing{Ref: ref, Prefix: prefix, Object: "object", Where: s.where(), Itself: itself}
	if err := s.list(ctx, l); err != nil {
		return model.Manifest{}, err
	}
	files, err := l.Files(ctx, s.Open)
	if err != nil {
		return model.Manifest{}, err
	}
	return model.NewManifest(files)
}

func (s *Source) list(ctx context.Context, l *web.Listing) error {
	query := url.Values{"prefix": {l.Prefix}, "maxResults": {"1000"}, "fields": {"nextPageToken,items(" + objectFields + ")"}}
	for {
		resp, err := s.get(ctx, l.Ref, "list "+quoted(l.Prefix), "", query, nil)
		if err != nil {
			return err
		}
		var page struct {
			Items         []object `json:"items"`
			NextPageToken string   `json:"nextPageToken"`
		}
		if err := s.decode(ctx, l.Ref, resp, &page); err != nil {
			return err
		}
		for _, o := range page.Items {
			name, err := l.Path(o.Name, o.Size)
			if err != nil {
				return err
			}
			if name == "" {
				continue
			}
			f, err := file(l.Ref, o, name)
			if err != nil {
				return err
			}
			l.Add(f)
		}
		if err := l.Page(len(page.Items)); err != nil {
			return err
		}
		switch page.NextPageToken {
		case "":
			return nil
		case query.Get("pageToken"): // it would go on for ever
			return wrongAnswer(l.Ref)
		}
		query.Set("pageToken", page.NextPageToken)
	}
}

func file(ref model.Ref, o object, name string) (model.File, error) {
	if o.Size < 0 || o.Generation == "" {
		return model.File{}, wrongAnswer(ref)
	}
	if o.ContentEncoding != "" && o.ContentEncoding != "identity" { // the store would unpack it, and its size is not the file's
		return model.File{}, encoded(fmt.Sprintf("%s: object %s", ref, quoted(o.Name)), o.ContentEncoding)
	}
	f := model.File{Path: name, Key: o.Name, Size: o.Size, Version: o.Generation}
	if sum, err := base64.StdEncoding.DecodeString(o.CRC32C); err == nil && len(sum) == 4 {
		f.Check = model.CRC32C([4]byte(sum))
	}
	if d, err := model.ParseDigest(o.Metadata["sha256"]); err == nil { // anything may be in metadata
		f.Digest = d
	}
	return f, nil
}

// decode reads the JSON of an answer and closes it.
func (s *Source) decode(ctx context.Context, ref model.Ref, resp *http.Response, into any) error {
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxPage+1))
	if err != nil {
		return web.NoAnswer(ctx, ref.String()+s.where(), err)
	}
	if len(text) > maxPage || json.Unmarshal(text, into) != nil {
		return wrongAnswer(ref)
	}
	return nil
}

func wrongAnswer(ref model.Ref) error {
	return &model.Error{Reason: "WrongAnswer", Text: fmt.Sprintf("%s: the answer is not one of Cloud Storage: check the endpoint and what stands between", ref)}
}
