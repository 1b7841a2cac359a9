package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// ObjectMirrors are servers that have what an object store has, each object at <mirror>/<bucket>/<key>, and give it to
// whoever asks. They are asked for content whose sha256 is known, without login. Safe for concurrent use.
type ObjectMirrors struct {
	mirrors   *Mirrors
	client    *http.Client
	userAgent string
}

// all stands for the one store that the mirrors are of.
const all = "store"

// NewObjectMirrors checks the addresses; they are asked in their order, through transport.
func NewObjectMirrors(list []string, transport http.RoundTripper, userAgent string) (*ObjectMirrors, Faults) {
	of := make([]Mirror, len(list))
	for i, address := range list {
		of[i] = Mirror{Of: all, URL: address}
	}
	mirrors, faults := NewMirrors(of, nil)
	for i := range faults {
		faults[i].Key = strings.TrimSuffix(faults[i].Key, ".url")
	}
	return &ObjectMirrors{mirrors, &http.Client{Transport: transport, CheckRedirect: down}, userAgent}, faults
}

// down refuses to be led from https to http, and far.
func down(req *http.Request, via []*http.Request) error {
	if len(via) > 5 || via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("a redirect to plain http, or one of too many")
	}
	return nil
}

// Open is part of f, the object at key of bucket, from the first mirror that has it, or nil where none has or where no
// sha256 tells what it is.
func (m *ObjectMirrors) Open(ctx context.Context, bucket, key string, f model.File, part Part) io.ReadCloser {
	if f.Digest == "" || part.Length == 0 {
		return nil
	}
	return m.mirrors.Open(ctx, all, bucket+"\n"+key+"\n"+f.Version, part, func(mirror *url.URL) (io.ReadCloser, error) {
		return m.get(ctx, mirror, bucket, key, part)
	})
}

func (m *ObjectMirrors) get(ctx context.Context, mirror *url.URL, bucket, key string, part Part) (io.ReadCloser, error) {
	u := *mirror
	u.Path += "/" + bucket + "/" + key
	u.RawPath = strings.ReplaceAll(u.EscapedPath(), "+", "%2B") // which some stores take for a space
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", m.userAgent)
	part.Ask(req.Header)
	resp, err := m.client.Do(req)
	if err != nil {
		return nil, SendError(&u, err)
	}
	if err := checkObject(&u, resp, part); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return part.Body(&u, resp), nil
}

// checkObject tells an object that a mirror lacks from a mirror that is not well.
func checkObject(u *url.URL, resp *http.Response, part Part) error {
	if err := part.CheckStatus(u, resp); err != nil {
		return err
	}
	if !part.Is(resp) {
		e := &model.Error{Reason: "Unavailable", RetryAfter: RetryAfter(resp.Header), Text: fmt.Sprintf("%s: %s", Bare(u), StatusText(resp))}
		switch resp.StatusCode {
		case http.StatusNotFound, http.StatusGone, http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestedRangeNotSatisfiable:
			e.Reason = "NotFound"
		}
		return e
	}
	if err := EncodingError(u, resp); err != nil {
		return err
	}
	return part.CheckRange(u, resp)
}
