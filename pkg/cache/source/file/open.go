package file

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Open reads length bytes of f from offset. A file that changes while it is read is found out before its
// last byte is handed out.
func (s *Source) Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || length < 0 || offset > f.Size-length {
		return nil, fmt.Errorf("open %s: %d bytes at %d are not within its %d", f.Path, length, offset, f.Size)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", ref, context.Cause(ctx))
	}
	data, err := s.data(f.Key)
	if model.ReasonOf(err) == "NotFound" {
		return nil, &model.Error{Reason: "Changed", Text: fmt.Sprintf("file://%s: changed since it was resolved: it is gone", f.Key)}
	}
	if err != nil {
		return nil, err
	}
	b := &body{data: data, at: offset, left: length, file: f}
	if err := b.same(); err != nil {
		data.Close()
		return nil, err
	}
	return b, nil
}

// data opens the file at the absolute path key.
func (s *Source) data(key string) (*os.File, error) {
	root, rel, err := s.open(key)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	data, err := openFile(root, rel)
	return data, explain(key, err)
}

// body is a range of a file.
type body struct {
	data     *os.File
	at, left int64
	file     model.File
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.data.ReadAt(p[:min(int64(len(p)), b.left)], b.at)
	if int64(n) == b.left || err != nil {
		if changed := b.same(); changed != nil {
			return 0, changed
		}
	}
	b.at, b.left = b.at+int64(n), b.left-int64(n)
	if n > 0 || err == io.EOF { // the end of a file that did not change is that of the range
		return n, nil
	}
	return n, explain(b.file.Key, err)
}

func (b *body) Close() error { return b.data.Close() }

// same reports that the file is not the one that was resolved.
func (b *body) same() error {
	info, err := b.data.Stat()
	if err != nil {
		return explain(b.file.Key, err)
	}
	if now := version(info); now != b.file.Version || info.Size() != b.file.Size || !info.Mode().IsRegular() {
		return &model.Error{Reason: "Changed", Text: fmt.Sprintf("file://%s: changed since it was resolved", b.file.Key)}
	}
	return nil
}
