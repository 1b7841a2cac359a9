package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	// objectsLimit is for one model, of 100,000 files as from other sources, a SHA256SUMS and marks of directories; more is a
	// prefix that was named too short.
	objectsLimit = 101_000
	leastPage    = 100 // objects that a page counts for at least: pages without any could go on for ever
)

// Listing is what an object store lists under a prefix, on its way to the files of a model.
type Listing struct {
	Ref    model.Ref
	Prefix string // that the keys begin with; "" for all of a bucket
	Object string // what the store calls one: object, blob
	Where  string // " at " and the endpoint, or nothing: for error texts
	// Itself is the empty object that Ref names, nil where there is none: some tools leave one for a directory. It is the
	// model where none is under it.
	Itself *model.File

	files []model.File
	seen  int
}

// Page notes a page of n objects, and ends a listing that has more than a model may, or no end.
func (l *Listing) Page(n int) error {
	if l.seen += max(n, leastPage); l.seen > objectsLimit {
		return &model.Error{Reason: "TooManyFiles", Final: true,
			Text: fmt.Sprintf("%s%s: more than %d %ss, or a list of them without end: name a longer prefix", l.Ref, l.Where, objectsLimit, l.Object)}
	}
	return nil
}

// Path is the path in the model of the object at key, "" for the mark of a directory, which is no file.
func (l *Listing) Path(key string, size int64) (string, error) {
	name, under := strings.CutPrefix(key, l.Prefix)
	if under && name == "" || strings.HasSuffix(key, "/") && size == 0 {
		return "", nil
	}
	err := model.CheckPath(name)
	if err == nil && !under {
		err = fmt.Errorf("it is not under %q", l.Prefix)
	}
	if err != nil {
		return "", &model.Error{Reason: "BadPath", Final: true, Err: err,
			Text: fmt.Sprintf("%s: %s %q cannot be a file of the model: rename or remove it", l.Ref, l.Object, model.Printable(key))}
	}
	return name, nil
}

// Add takes a file of the model.
func (l *Listing) Add(f model.File) { l.files = append(l.files, f) }

// Files are those of the model. A SHA256SUMS among them, which is a list of the model and no part of it, is read by open
// and gives the others their digests; what it names and the store lacks is an error.
func (l *Listing) Files(ctx context.Context, open func(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error)) ([]model.File, error) {
	kept := make([]model.File, 0, len(l.files))
	var sums *model.File
	for i, f := range l.files {
		if f.Path == model.SumsName {
			sums = &l.files[i]
			continue
		}
		kept = append(kept, f)
	}
	switch {
	case len(kept) == 0 && l.Itself != nil:
		f, err := named(l.Ref, *l.Itself)
		return []model.File{f}, err
	case len(kept) == 0:
		return nil, &model.Error{Reason: "NotFound", Final: true,
			Text: fmt.Sprintf("%s: no %s there and none under it%s: correct the source", l.Ref, l.Object, l.Where)}
	case sums == nil && l.Ref.Digest != "":
		return nil, &model.Error{Reason: "WrongDigest", Final: true,
			Text: fmt.Sprintf("%s: its #sha256 is for one %s, or for a SHA256SUMS under the prefix: there is neither", l.Ref, l.Object)}
	case sums == nil:
		return kept, nil
	}
	at := fmt.Sprintf("%s: %s %q", l.Ref, l.Object, model.Printable(sums.Key))
	if sums.Size > model.MaxSums {
		return nil, &model.Error{Reason: "BadSums", Final: true, Text: at, Err: errors.New("larger than 16 MiB")}
	}
	body, err := open(ctx, l.Ref, *sums, 0, sums.Size)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	text, err := io.ReadAll(body)
	if err != nil {
		return nil, NoAnswer(ctx, at+l.Where, err)
	}
	return kept, model.SetDigests(kept, text, l.Ref.Digest, at)
}

// One is the model of f alone, which ref names.
func One(ref model.Ref, f model.File) (model.Manifest, error) {
	f, err := named(ref, f)
	if err != nil {
		return model.Manifest{}, err
	}
	return model.NewManifest([]model.File{f})
}

// named is f, which ref names: the digest in ref is its.
func named(ref model.Ref, f model.File) (model.File, error) {
	switch {
	case ref.Digest == "":
	case f.Digest == "":
		f.Digest = ref.Digest
	case f.Digest != ref.Digest:
		return f, &model.Error{Reason: "WrongDigest", Final: true,
			Text: fmt.Sprintf("%s: its sha256 is %s, the source says %s", ref, f.Digest, ref.Digest)}
	}
	return f, nil
}
