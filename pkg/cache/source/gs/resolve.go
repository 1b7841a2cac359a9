package gs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	keysLimit = 100_000 // objects in one model; more is a prefix that was named too short
	maxPage   = 8 << 20 // bytes of one page of a listing: 1000 objects of about 1 KiB each, and room
)

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
	key, err := url.PathUnescape(strings.TrimPrefix(ref.Path, "/"))
	if err != nil || ref.Query != "" {
		return model.Manifest{}, &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("%s: want gs://bucket/prefix, and no ?", ref)}
	}
	if key == "" || strings.HasSuffix(key, "/") {
		return s.resolvePrefix(ctx, ref, key)
	}
	f, err := s.one(ctx, ref, key)
	if model.ReasonOf(err) == "NotFound" || err == nil && f.Size == 0 { // some tools leave an empty object for a directory
		m, listErr := s.resolvePrefix(ctx, ref, key+"/")
		if listErr == nil || err != nil || model.ReasonOf(listErr) != "NotFound" {
			return m, listErr
		}
	}
	if err != nil {
		return model.Manifest{}, err
	}
	if ref.Digest != "" && f.Digest != "" && f.Digest != ref.Digest {
		return model.Manifest{}, &model.Error{Reason: "WrongDigest", Final: true,
			Text: fmt.Sprintf("%s: its sha256 is %s, the source says %s", ref, f.Digest, ref.Digest)}
	}
	if ref.Digest != "" {
		f.Digest = ref.Digest
	}
	return model.NewManifest([]model.File{f})
}

// one asks for the object at key.
func (s *Source) one(ctx context.Context, ref model.Ref, key string) (model.File, error) {
	resp, err := s.get(ctx, ref, "ask for "+quoted(key), "/"+url.PathEscape(key), url.Values{"fields": {objectFields}}, "")
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

func (s *Source) resolvePrefix(ctx context.Context, ref model.Ref, prefix string) (model.Manifest, error) {
	files, err := s.list(ctx, ref, prefix)
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
		return model.Manifest{}, s.nothing(ref)
	case sums != nil:
		if err := s.readSums(ctx, ref, *sums, kept); err != nil {
			return model.Manifest{}, err
		}
	case ref.Digest != "":
		return model.Manifest{}, &model.Error{Reason: "WrongDigest", Final: true,
			Text: fmt.Sprintf("%s: its #sha256 is for one object, or for a SHA256SUMS under the prefix: there is neither", ref)}
	}
	return model.NewManifest(kept)
}

// list returns the objects under prefix, directory markers left out.
func (s *Source) list(ctx context.Context, ref model.Ref, prefix string) ([]model.File, error) {
	var files []model.File
	query := url.Values{"prefix": {prefix}, "maxResults": {"1000"}, "fields": {"nextPageToken,items(" + objectFields + ")"}}
	for {
		resp, err := s.get(ctx, ref, "list "+quoted(prefix), "", query, "")
		if err != nil {
			return nil, err
		}
		var page struct {
			Items         []object `json:"items"`
			NextPageToken string   `json:"nextPageToken"`
		}
		if err := s.decode(ctx, ref, resp, &page); err != nil {
			return nil, err
		}
		for _, o := range page.Items {
			name, under := strings.CutPrefix(o.Name, prefix)
			if under && name == "" || strings.HasSuffix(o.Name, "/") && o.Size == 0 {
				continue
			}
			err := model.CheckPath(name)
			if err == nil && !under {
				err = fmt.Errorf("it is not under %q", prefix)
			}
			if err != nil {
				return nil, &model.Error{Reason: "BadPath", Final: true, Err: err,
					Text: fmt.Sprintf("%s: object %s cannot be a file of the model: rename or remove it", ref, quoted(o.Name))}
			}
			f, err := file(ref, o, name)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
		switch {
		case len(files) > keysLimit:
			return nil, &model.Error{Reason: "TooManyFiles", Final: true,
				Text: fmt.Sprintf("%s: more than %d objects: name a longer prefix", ref, keysLimit)}
		case page.NextPageToken == "" && len(files) == 0:
			return nil, s.nothing(ref)
		case page.NextPageToken == "":
			return files, nil
		case page.NextPageToken == query.Get("pageToken"): // it would go on for ever
			return nil, wrongAnswer(ref)
		}
		query.Set("pageToken", page.NextPageToken)
	}
}

func file(ref model.Ref, o object, name string) (model.File, error) {
	if o.Size < 0 || o.Generation == "" {
		return model.File{}, wrongAnswer(ref)
	}
	if o.ContentEncoding != "" && o.ContentEncoding != "identity" { // the store would unpack it, and its size is not the file's
		return model.File{}, &model.Error{Reason: "Encoded", Final: true,
			Text: fmt.Sprintf("%s: object %s is stored with Content-Encoding %s: upload it without", ref, quoted(o.Name), quoted(o.ContentEncoding))}
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
		return wrap(ctx, ref.String()+s.where(), err)
	}
	if len(text) > maxPage || json.Unmarshal(text, into) != nil {
		return wrongAnswer(ref)
	}
	return nil
}

func wrongAnswer(ref model.Ref) error {
	return &model.Error{Reason: "WrongAnswer", Text: fmt.Sprintf("%s: the answer is not one of Cloud Storage: check the endpoint and what stands between", ref)}
}

func (s *Source) nothing(ref model.Ref) error {
	return &model.Error{Reason: "NotFound", Final: true,
		Text: fmt.Sprintf("%s: no object there and none under it%s: correct the source", ref, s.where())}
}

// readSums sets the digests that the SHA256SUMS object gives; a file that it names and the store lacks is an error.
func (s *Source) readSums(ctx context.Context, ref model.Ref, sums model.File, files []model.File) error {
	at := fmt.Sprintf("%s: object %s", ref, quoted(sums.Key))
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
