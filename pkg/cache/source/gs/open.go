package gs

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Open reads length bytes of f from offset, pinned to the generation in f.Version.
func (s *Source) Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || length < 0 || offset > f.Size-length {
		return nil, fmt.Errorf("open %s: %d bytes at %d are not within its %d", f.Path, length, offset, f.Size)
	}
	whole := offset == 0 && length == f.Size
	if !whole && length == 0 {
		return http.NoBody, nil // no Range header can ask for nothing
	}
	if body := s.mirrors.Open(ctx, ref.Host, f.Key, f, web.Part{Offset: offset, Length: length, Size: f.Size}); body != nil {
		return body, nil
	}
	ranged := ""
	if !whole {
		ranged = fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
	}
	query := url.Values{"alt": {"media"}, "ifGenerationMatch": {f.Version}}
	resp, err := s.get(ctx, ref, "read "+quoted(f.Key), "/"+url.PathEscape(f.Key), query, ranged)
	if err != nil {
		return nil, err
	}
	if err := checkAnswer(ref, resp, f, offset, length, whole); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil // net/http holds the server to its Content-Length
}

// checkAnswer lets only an answer pass that is the very range of the very generation.
func checkAnswer(ref model.Ref, resp *http.Response, f model.File, offset, length int64, whole bool) error {
	at := fmt.Sprintf("%s: object %s", ref, quoted(f.Key))
	if got := resp.Header.Get("X-Goog-Generation"); got != "" && got != f.Version {
		return &model.Error{Reason: "Changed", Text: fmt.Sprintf("%s: changed since it was resolved (generation %q, was %q)", at, got, f.Version)}
	}
	got := resp.Header.Get("Content-Range")
	switch want := fmt.Sprintf("bytes %d-%d/%d", offset, offset+length-1, f.Size); {
	case !whole && resp.StatusCode == http.StatusOK:
		return &model.Error{Reason: "RangeIgnored",
			Text: at + ": the store sends the whole object where a range is asked: check what stands between"}
	case !whole && got != want, whole && resp.StatusCode != http.StatusOK:
		return &model.Error{Reason: "WrongRange", Text: fmt.Sprintf("%s: want %q, the store answers with %q", at, want, got)}
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return &model.Error{Reason: "Encoded", Final: true,
			Text: fmt.Sprintf("%s: the store sends Content-Encoding %q unasked: upload it without", at, enc)}
	}
	if resp.ContentLength != length {
		return &model.Error{Reason: "WrongLength",
			Text: fmt.Sprintf("%s: want %d bytes, the store announces %d", at, length, resp.ContentLength)}
	}
	return nil
}

// quoted is a key for people.
func quoted(s string) string { return fmt.Sprintf("%q", model.Printable(s)) }
