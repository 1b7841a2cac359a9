package s3

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	heads      = 16   // objects asked for their checksum at once
	headsLimit = 1000 // beyond so many objects digests are not asked for: they are recorded on download
)

// Resolve lists the objects under ref's prefix, or takes the one object that ref names. Digests come
// from a SHA256SUMS object under the prefix, else from a sha256 checksum of the whole object, else from
// its metadata key sha256; another checksum of the whole is checked too. The digest in a ref is that of the one object, or of the SHA256SUMS.
func (s *Source) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	key, err := keyOf(ref)
	if err != nil {
		return model.Manifest{}, err
	}
	if key != "" && !strings.HasSuffix(key, "/") {
		f, err := s.head(ctx, ref, model.File{Path: path.Base(key), Key: key, Digest: ref.Digest}, false)
		// 403 is S3's answer for a missing key to who may not list, and 400 for many things, of which an answer to HEAD
		// does not say which: then the listing says more.
		reason := model.ReasonOf(err)
		switch {
		case err == nil && f.Size > 0:
			return web.One(ref, f)
		case err == nil:
			return s.resolvePrefix(ctx, ref, key+"/", &f)
		case reason != "NotFound" && reason != "Forbidden" && reason != "Refused":
			return model.Manifest{}, err
		}
		m, listErr := s.resolvePrefix(ctx, ref, key+"/", nil)
		if reason == "Refused" && model.ReasonOf(listErr) == "NotFound" {
			return m, err
		}
		return m, listErr
	}
	return s.resolvePrefix(ctx, ref, key, nil)
}

// Check says why ref can never be read, whatever the bucket has.
func Check(ref model.Ref) error {
	_, err := keyOf(ref)
	return err
}

// keyOf is the object that ref names, or a prefix.
func keyOf(ref model.Ref) (string, error) {
	key, err := url.PathUnescape(strings.TrimPrefix(ref.Path, "/"))
	if err != nil {
		return "", &model.Error{Reason: "BadSource", Final: true, Text: ref.String(), Err: err}
	}
	if ref.Query != "" {
		return "", &model.Error{Reason: "BadSource", Final: true,
			Text: fmt.Sprintf("%s: an s3 source has no query: remove what follows the ?", ref)}
	}
	return key, nil
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
	if len(files) <= headsLimit {
		if err := s.digests(ctx, ref, files); err != nil {
			return model.Manifest{}, err
		}
	}
	return model.NewManifest(files)
}

func (s *Source) list(ctx context.Context, l *web.Listing) error {
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{
		Bucket: aws.String(l.Ref.Host), Prefix: aws.String(l.Prefix),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return s.explain(ctx, l.Ref, "list "+l.Prefix, err, false)
		}
		for _, o := range page.Contents {
			key, size := aws.ToString(o.Key), aws.ToInt64(o.Size)
			name, err := l.Path(key, size)
			if err != nil {
				return err
			}
			if name != "" {
				l.Add(model.File{Path: name, Key: key, Size: size, Version: bareTag(o.ETag)})
			}
		}
		if err := l.Page(len(page.Contents)); err != nil {
			return err
		}
	}
	return nil
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
			files[i], err = s.head(ctx, ref, files[i], true)
			return err
		})
	}
	return g.Wait()
}

// head fills in size, version and digest. A digest that f has already must not be contradicted. listed says that a
// listing named it.
func (s *Source) head(ctx context.Context, ref model.Ref, f model.File, listed bool) (model.File, error) {
	f.Key, _, _ = strings.Cut(f.Key, versioned)
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{
		Bucket: aws.String(ref.Host), Key: aws.String(f.Key), ChecksumMode: types.ChecksumModeEnabled,
	})
	if err != nil {
		return f, s.explain(ctx, ref, "ask for "+f.Key, err, listed)
	}
	if out.ContentLength == nil {
		return f, &model.Error{Reason: "NoSize", Final: true, Text: fmt.Sprintf("%s: object %s: the store does not tell the size", ref, f.Key)}
	}
	if err := encoded(ref, f.Key, out.ContentEncoding); err != nil {
		return f, err
	}
	if kind := web.Page(aws.ToString(out.ContentType), f.Key); kind != "" && !listed && f.Digest == "" {
		return f, &model.Error{Reason: "WrongAnswer",
			Text: fmt.Sprintf("%s: object %s: a web page (%s) and not a file: check the endpoint and what stands between; "+
				"a page that is wanted is named with its #sha256", ref, f.Key, kind)}
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
