package gs

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Open reads length bytes of f from offset, pinned to the generation in f.Version.
func (s *Source) Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error) {
	part := web.Part{Offset: offset, Length: length, Size: f.Size}
	if err := part.Check(f.Path); err != nil {
		return nil, err
	}
	if !part.Whole() && length == 0 {
		return http.NoBody, nil // no Range header can ask for nothing
	}
	if body := s.mirrors.Open(ctx, ref.Host, f.Key, f, part); body != nil {
		return body, nil
	}
	header := http.Header{}
	part.Ask(header)
	query := url.Values{"alt": {"media"}, "ifGenerationMatch": {f.Version}}
	resp, err := s.get(ctx, ref, "read "+quoted(f.Key), "/"+url.PathEscape(f.Key), query, header)
	if err != nil {
		return nil, err
	}
	at := &url.URL{Scheme: "gs", Host: ref.Host, Path: "/" + f.Key} // for people, as they wrote it
	if err := checkAnswer(at, resp, f, part); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return part.Body(at, resp), nil
}

// checkAnswer lets only an answer pass that is the very range of the very generation.
func checkAnswer(at *url.URL, resp *http.Response, f model.File, part web.Part) error {
	if got := resp.Header.Get("X-Goog-Generation"); got != "" && got != f.Version {
		return web.Changed(at, fmt.Sprintf("generation %s, was %s", quoted(got), quoted(f.Version)))
	}
	// What is stored as gzip comes unpacked, whole and without its length. An edit of the metadata leaves the generation as it was.
	if enc := resp.Header.Get("X-Goog-Stored-Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return encoded(web.Bare(at), enc)
	}
	if err := part.CheckStatus(at, resp); err != nil {
		return err
	}
	if !part.Is(resp) {
		return &model.Error{Reason: "WrongRange", Text: web.Bare(at) + ": asked for the whole object, the store sends a range"}
	}
	if err := web.EncodingError(at, resp); err != nil {
		return err
	}
	return part.CheckRange(at, resp)
}

func encoded(object, encoding string) error {
	return &model.Error{Reason: "Encoded", Final: true,
		Text: fmt.Sprintf("%s: it is stored with Content-Encoding %s: upload it without", object, quoted(encoding))}
}

// quoted is a key for people.
func quoted(s string) string { return fmt.Sprintf("%q", model.Printable(s)) }
