package az

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Open reads length bytes of f from offset, pinned to the ETag in f.Version.
func (s *Source) Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error) {
	part := web.Part{Offset: offset, Length: length, Size: f.Size}
	if err := part.Check(f.Path); err != nil {
		return nil, err
	}
	at, err := parse(ref)
	if err != nil {
		return nil, err
	}
	if !part.Whole() && length == 0 {
		return http.NoBody, nil // no Range header can ask for nothing
	}
	if body := s.mirrors.Open(ctx, at.account+"/"+at.container, f.Key, f, part); body != nil {
		return body, nil
	}
	header := http.Header{"If-Match": {f.Version}}
	part.Ask(header)
	u := s.address(at, f.Key)
	resp, err := s.send(ctx, at, "read "+quoted(f.Key), u, header)
	if err != nil {
		return nil, err
	}
	if err := checkAnswer(u, resp, f, part); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return part.Body(u, resp), nil
}

// checkAnswer lets only an answer pass that is the very range of the very version.
func checkAnswer(u *url.URL, resp *http.Response, f model.File, part web.Part) error {
	if err := part.CheckStatus(u, resp); err != nil {
		return err
	}
	if !part.Is(resp) {
		return &model.Error{Reason: "WrongRange", Text: web.Bare(u) + ": asked for the whole blob, the store sends a range"}
	}
	if err := web.EncodingError(u, resp); err != nil {
		return err
	}
	if got := resp.Header.Get("ETag"); got != f.Version {
		return web.Changed(u, fmt.Sprintf("version %s, was %s", quoted(got), quoted(f.Version)))
	}
	return part.CheckRange(u, resp)
}
