package oci

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"oras.land/oras-go/v2/registry"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Open reads length bytes of f from offset. Each range is asked of the registry, also where that only
// redirects to a storage: an address signed for one range may be too old for the next.
func (s *Source) Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || length < 0 || offset > f.Size-length {
		return nil, fmt.Errorf("open %s: %d bytes at %d are not within its %d", f.Path, length, offset, f.Size)
	}
	at, err := parse(ref)
	if err != nil {
		return nil, err
	}
	if length == 0 { // no Range header can ask for nothing, and not every registry serves an empty blob
		return http.NoBody, context.Cause(ctx)
	}
	moves := at.ValidateReferenceAsDigest() != nil // a layer may have gone with what the tag stood for
	part := web.Part{Offset: offset, Length: length, Size: f.Size}
	if body := s.mirrors.Open(ctx, ref.Host, f.Key, part, func(u *url.URL) (io.ReadCloser, error) {
		there := registry.Reference{Registry: u.Host, Repository: strings.TrimPrefix(u.Path+"/"+at.Repository, "/")}
		req, err := s.requestAt(ctx, *u, there, "blobs", f.Key)
		if err != nil {
			return nil, err
		}
		return s.blob(req, f, offset, length, moves)
	}); body != nil {
		return body, nil
	}
	req, err := s.request(ctx, at, "blobs", f.Key)
	if err != nil {
		return nil, err
	}
	return s.blob(req, f, offset, length, moves)
}

// blob sends a request for length bytes of a layer from offset, of a manifest that moves or not.
func (s *Source) blob(req *http.Request, f model.File, offset, length int64, moves bool) (io.ReadCloser, error) {
	whole := offset == 0 && length == f.Size
	if !whole {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	}
	resp, err := s.do(req, moves)
	if err != nil {
		return nil, err
	}
	if err := checkAnswer(req.URL, resp, f, offset, length, whole); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil // net/http holds the server to its Content-Length
}

// checkAnswer lets only an answer pass that is the very range.
func checkAnswer(u *url.URL, resp *http.Response, f model.File, offset, length int64, whole bool) error {
	switch {
	case resp.StatusCode == http.StatusOK && !whole:
		return &model.Error{Reason: "RangeIgnored",
			Text: fmt.Sprintf("%s: the registry sends the whole layer where a range is asked: check what stands between", web.Bare(u))}
	case resp.StatusCode == http.StatusPartialContent && whole:
		return &model.Error{Reason: "WrongRange", Text: fmt.Sprintf("%s: asked for the whole layer, the registry sends a range", web.Bare(u))}
	}
	got := resp.Header.Get("Content-Range")
	if want := fmt.Sprintf("bytes %d-%d/%d", offset, offset+length-1, f.Size); !whole && !strings.EqualFold(got, want) {
		return &model.Error{Reason: "WrongRange", Text: fmt.Sprintf("%s: want %q, the registry answers with %q", web.Bare(u), want, got)}
	}
	if resp.ContentLength != length {
		return &model.Error{Reason: "WrongLength",
			Text: fmt.Sprintf("%s: want %d bytes, the registry announces %d", web.Bare(u), length, resp.ContentLength)}
	}
	return nil
}
