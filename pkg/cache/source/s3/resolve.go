package s3

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	heads      = 16      // objects asked for their checksum at once
	headsLimit = 1000    // beyond so many objects digests are not asked for: they are recorded on download
	keysLimit  = 100_000 // objects in one model; more is a prefix that was named too short
)

// Resolve lists the objects under ref's prefix, or takes the one object that ref names. Digests come
// from a SHA256SUMS object under the prefix, else from a sha256 checksum of the whole object, else from
// its metadata key sha256; another checksum of the whole is checked too. The digest in a ref is that of the one object, or of the SHA256SUMS.
func (s *Source) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	key, err := url.PathUnescape(strings.TrimPrefix(ref.Path, "/"))
	if err != nil {
		return model.Manifest{}, &model.Error{Reason: "BadSource", Final: true, Text: ref.String(), Err: err}
	}
	if ref.Query != "" {
		return model.Manifest{}, &model.Error{Reason: "BadSource", Final: true,
			Text: fmt.Sprintf("%s: an s3 source has no query: remove what follows the ?", ref)}
	}
	if key != "" && !strings.HasSuffix(key, "/") {
		f, err := s.head(ctx, ref, model.File{Path: path.Base(key), Key: key, Digest: ref.Digest})
		// 403 is S3's answer for a missing key to who may not list, and 400 for many things, of which an answer to HEAD
		// does not say which: then the listing says more. An empty object is what some tools leave in place of a directory.
		reason := model.ReasonOf(err)
		switch {
		case err == nil && f.Size > 0:
			return model.NewManifest([]model.File{f})
		case err != nil && reason != "NotFound" && reason != "Forbidden" && reason != "Refused":
			return model.Manifest{}, err
		}
		m, listErr := s.resolvePrefix(ctx, ref, key+"/")
		if listErr != nil && err == nil && model.ReasonOf(listErr) == "NotFound" {
			return model.NewManifest([]model.File{f})
		}
		if reason == "Refused" && model.ReasonOf(listErr) == "NotFound" {
			return m, err
		}
		return m, listErr
	}
	return s.resolvePrefix(ctx, ref, key)
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
	case sums != nil:
		if err := s.readSums(ctx, ref, *sums, kept); err != nil {
			return model.Manifest{}, err
		}
	case ref.Digest != "":
		return model.Manifest{}, &model.Error{Reason: "WrongDigest", Final: true,
			Text: fmt.Sprintf("%s: its #sha256 is for one object, or for a SHA256SUMS under the prefix: there is neither", ref)}
	}
	if len(kept) == 0 {
		return model.Manifest{}, s.nothing(ref)
	}
	if len(kept) <= headsLimit {
		if err := s.digests(ctx, ref, kept); err != nil {
			return model.Manifest{}, err
		}
	}
	return model.NewManifest(kept)
}

// list returns the objects under prefix, directory markers left out.
func (s *Source) list(ctx context.Context, ref model.Ref, prefix string) ([]model.File, error) {
	var files []model.File
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{
		Bucket: aws.String(ref.Host), Prefix: aws.String(prefix),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, s.explain(ctx, ref, "list "+prefix, err)
		}
		for _, o := range page.Contents {
			key := aws.ToString(o.Key)
			name, under := strings.CutPrefix(key, prefix)
			if name == "" || strings.HasSuffix(key, "/") && aws.ToInt64(o.Size) == 0 {
				continue
			}
			err := model.CheckPath(name)
			if err == nil && !under {
				err = fmt.Errorf("it is not under %q", prefix)
			}
			if err != nil {
				return nil, &model.Error{Reason: "BadPath", Final: true, Err: err,
					Text: fmt.Sprintf("%s: object key %q cannot be a file of the model: rename or remove it", ref, key)}
			}
			files = append(files, model.File{Path: name, Key: key, Size: aws.ToInt64(o.Size), Version: bareTag(o.ETag)})
		}
		if len(files) > keysLimit {
			return nil, &model.Error{Reason: "TooManyFiles", Final: true,
				Text: fmt.Sprintf("%s: more than %d objects: name a longer prefix", ref, keysLimit)}
		}
	}
	if len(files) == 0 {
		return nil, s.nothing(ref)
	}
	return files, nil
}

func (s *Source) nothing(ref model.Ref) error {
	return &model.Error{Reason: "NotFound", Final: true,
		Text: fmt.Sprintf("%s: no object there and none under it%s: correct the source", ref, s.where())}
}

// readSums sets the digests that the SHA256SUMS object gives; a file that it names and the store lacks is an error.
func (s *Source) readSums(ctx context.Context, ref model.Ref, sums model.File, files []model.File) error {
	at := fmt.Sprintf("%s: object %s", ref, sums.Key)
	if sums.Size > model.MaxSums {
		return &model.Error{Reason: "BadSums", Final: true, Text: at, Err: errors.New("larger than 16 MiB")}
	}
	body, err := s.Open(ctx, ref, sums, 0, sums.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, model.MaxSums))
	if err != nil {
		return s.explain(ctx, ref, "read "+sums.Key, err)
	}
	return model.SetDigests(files, text, ref.Digest, at)
}

// digests asks for what the store knows of the files that have no digest yet.
func (s *Source) digests(ctx context.Context, ref model.Ref, files []model.File) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(heads)
	for i := range files {
		if files[i].Digest != "" {
			continue
		}
		g.Go(func() error {
			var err error
			files[i], err = s.head(ctx, ref, files[i])
			return err
		})
	}
	return g.Wait()
}

// head fills in size, version and digest. A digest that f has already must not be contradicted.
func (s *Source) head(ctx context.Context, ref model.Ref, f model.File) (model.File, error) {
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{
		Bucket: aws.String(ref.Host), Key: aws.String(f.Key), ChecksumMode: types.ChecksumModeEnabled,
	})
	if err != nil {
		return f, s.explain(ctx, ref, "ask for "+f.Key, err)
	}
	if out.ContentLength == nil {
		return f, &model.Error{Reason: "NoSize", Final: true, Text: fmt.Sprintf("%s: object %s: the store does not tell the size", ref, f.Key)}
	}
	f.Size, f.Version, f.Check = *out.ContentLength, bareTag(out.ETag), checkOf(out)
	if id := aws.ToString(out.VersionId); id != "" && id != "null" {
		f.Key += versioned + id
	}
	known := digestOf(out)
	if f.Digest != "" && known != "" && f.Digest != known {
		return f, &model.Error{Reason: "WrongDigest", Final: true,
			Text: fmt.Sprintf("%s: object %s: its sha256 is %s, the source says %s", ref, f.Key, known, f.Digest)}
	}
	if f.Digest == "" {
		f.Digest = known
	}
	return f, nil
}

// digestOf is the sha256 of the whole object. A COMPOSITE checksum is a hash of the parts' hashes. Stores
// that do not tell the type are believed only for objects that were not uploaded in parts (ETag without "-").
func digestOf(out *s3.HeadObjectOutput) model.Digest {
	whole := ofWhole(out)
	if sum, err := base64.StdEncoding.DecodeString(aws.ToString(out.ChecksumSHA256)); whole && err == nil && len(sum) == sha256.Size {
		return model.Digest(hex.EncodeToString(sum))
	}
	d, err := model.ParseDigest(out.Metadata["sha256"])
	if err != nil {
		return "" // anything may be in metadata
	}
	return d
}

func ofWhole(out *s3.HeadObjectOutput) bool {
	return out.ChecksumType == types.ChecksumTypeFullObject ||
		out.ChecksumType == "" && !strings.Contains(aws.ToString(out.ETag), "-")
}

// checkOf is the strongest checksum of the whole object that is not its digest. That of parts, which is no hash of
// anything that is here, is not taken.
func checkOf(out *s3.HeadObjectOutput) model.Checksum {
	if !ofWhole(out) {
		return ""
	}
	if sum, err := base64.StdEncoding.DecodeString(aws.ToString(out.ChecksumCRC64NVME)); err == nil && len(sum) == 8 {
		return model.CRC64NVME([8]byte(sum))
	}
	if sum, err := base64.StdEncoding.DecodeString(aws.ToString(out.ChecksumCRC32C)); err == nil && len(sum) == 4 {
		return model.CRC32C([4]byte(sum))
	}
	if sum, err := base64.StdEncoding.DecodeString(aws.ToString(out.ChecksumCRC32)); err == nil && len(sum) == 4 {
		return model.CRC32([4]byte(sum))
	}
	return ""
}

// bareTag is an ETag without quotes: listings and headers of one store may differ in them.
func bareTag(etag *string) string { return strings.Trim(aws.ToString(etag), `"`) }
