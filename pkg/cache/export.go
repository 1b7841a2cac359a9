package cache

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Export writes models, each as name or name@revision, as a bundle for Import. Each byte is compared with its sha256 on
// its way, and what is exported is not evicted meanwhile. An error before the first byte was written is about the names.
// What was written up to an error is no bundle.
func (c *Cache) Export(ctx context.Context, names []string, w io.Writer) error {
	return export(ctx, []*Cache{c}, map[*Cache][]string{c: names}, w)
}

// export is Export, of the models that each of the caches has.
func export(ctx context.Context, caches []*Cache, names map[*Cache][]string, w io.Writer) error {
	var models []bundled
	for _, c := range caches {
		part, release, err := c.hand(names[c])
		if err != nil {
			return err
		}
		defer release()
		models = append(models, part...)
	}
	out := bundleWriter{tar.NewWriter(w)}
	return out.write(models, func(f model.File) (io.ReadCloser, error) {
		var file *os.File
		err := os.ErrNotExist
		for i := 0; i < len(caches) && errors.Is(err, os.ErrNotExist); i++ {
			file, err = os.Open(caches[i].at.blob(f.Digest))
		}
		if err != nil {
			return nil, err
		}
		return &checked{ctx: ctx, file: file, want: f, hash: sha256.New()}, nil
	})
}

// hand finds what is to be exported and holds it until release is called.
func (c *Cache) hand(names []string) (models []bundled, release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var held []*entry
	var records []*record
	for _, given := range names {
		name, revision, one := strings.Cut(given, "@")
		e := c.models[name]
		if e == nil || len(e.records()) == 0 {
			return nil, nil, notFound(name)
		}
		r := e.visible
		if one {
			r = nil
			for _, o := range e.records() {
				if o.short() == model.Revision12(revision) {
					r = o
				}
			}
			if r == nil {
				return nil, nil, noRevision(e, revision)
			}
		}
		if r == nil || e.removing {
			return nil, nil, &model.Error{Reason: "NotReady", Text: fmt.Sprintf("model %s is not ready: gpu-agent models explain %[1]s", name)}
		}
		if slices.Contains(records, r) {
			continue
		}
		held, records = append(held, e), append(records, r)
	}
	// Of a model's revisions the current one last: that is the one that an import leaves current.
	order := make([]int, len(records))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		if held[a] != held[b] || records[a].Retired.IsZero() == records[b].Retired.IsZero() {
			return 0
		}
		if records[a].Retired.IsZero() {
			return 1
		}
		return -1
	})
	for _, i := range order {
		held[i].kept++
		models = append(models, records[i].bundle(held[i].ref()))
	}
	return models, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, e := range held {
			e.kept--
		}
		c.roomChanged()
		c.changed()
	}, nil
}

// checked is a file that ends with an error where it is not what it is said to be.
type checked struct {
	ctx  context.Context
	file *os.File
	want model.File
	hash hash.Hash
}

func (f *checked) Read(p []byte) (int, error) {
	if err := f.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := f.file.Read(p)
	f.hash.Write(p[:n])
	if err == io.EOF {
		if sum := hex.EncodeToString(f.hash.Sum(nil)); sum != string(f.want.Digest) {
			return n, &model.Error{Reason: "Damaged", Text: fmt.Sprintf("sha256 %s instead of %s: gpu-agent models verify withdraws it", sum, f.want.Digest)}
		}
	}
	return n, err
}

func (f *checked) Close() error { return f.file.Close() }
