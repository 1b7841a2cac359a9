package http

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// probes is how many files are asked for their size at once.
const probes = 16

// Resolve asks the server for the size and version of ref's file. A ref that ends in "/" or names a
// SHA256SUMS stands for the files listed there; its digest, if any, is then that of the SHA256SUMS.
func (s *Source) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	name, err := nameOf(ref)
	if err != nil {
		return model.Manifest{}, err
	}
	if name == "" {
		dir, _ := path.Split(ref.Path)
		return s.resolveDir(ctx, ref, "/"+strings.TrimPrefix(dir, "/"))
	}
	f, err := s.probe(ctx, ref, model.File{Path: name, Key: ref.Path, Digest: ref.Digest})
	if err != nil {
		return model.Manifest{}, err
	}
	return model.NewManifest([]model.File{f})
}

// nameOf is the file that ref names, "" where it stands for those of a SHA256SUMS.
func nameOf(ref model.Ref) (string, error) {
	name := path.Base(ref.Path)
	if ref.Path == "" || strings.HasSuffix(ref.Path, "/") || name == model.SumsName {
		return "", nil
	}
	plain, err := url.PathUnescape(name)
	if err == nil {
		err = model.CheckPath(plain)
	}
	if err != nil {
		return "", &model.Error{Reason: "BadPath", Final: true, Text: ref.String(), Err: err}
	}
	return plain, nil
}

func (s *Source) resolveDir(ctx context.Context, ref model.Ref, dir string) (model.Manifest, error) {
	files, err := s.sums(ctx, ref, dir+model.SumsName)
	if err != nil {
		return model.Manifest{}, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(probes)
	for i := range files {
		g.Go(func() error {
			f := files[i]
			f.Key = dir + (&url.URL{Path: f.Path}).EscapedPath()
			var err error
			files[i], err = s.probe(ctx, ref, f)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return model.Manifest{}, err
	}
	return model.NewManifest(files)
}

// sums reads the list of files at key.
func (s *Source) sums(ctx context.Context, ref model.Ref, key string) ([]model.File, error) {
	req, err := s.request(ctx, http.MethodGet, ref, key)
	if err != nil {
		return nil, err
	}
	resp, err := s.do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusGone:
		return nil, &model.Error{Reason: "NotFound", Final: true,
			Text: fmt.Sprintf("%s: not there: a directory needs one, made with sha256sum; or name one file", web.Bare(req.URL))}
	default:
		return nil, statusError(req.URL, resp)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, model.MaxSums+1))
	if err != nil {
		return nil, web.SendError(req.URL, err)
	}
	if len(text) > model.MaxSums {
		return nil, &model.Error{Reason: "BadSums", Final: true, Text: fmt.Sprintf("%s: larger than 16 MiB", web.Bare(req.URL))}
	}
	if sum := sha256.Sum256(text); ref.Digest != "" && hex.EncodeToString(sum[:]) != string(ref.Digest) {
		return nil, &model.Error{Reason: "WrongDigest", Final: true,
			Text: fmt.Sprintf("%s: its sha256 is %x, the source says %s", web.Bare(req.URL), sum, ref.Digest)}
	}
	files, err := model.ParseSums(bytes.NewReader(text))
	if err != nil {
		if page := pageError(req.URL, resp, model.File{Path: model.SumsName}); page != nil {
			return nil, page
		}
		return nil, &model.Error{Reason: "BadSums", Final: true, Text: web.Bare(req.URL), Err: err}
	}
	return files, nil
}

// probe fills in size and version of f: by HEAD, or where a server refuses HEAD, as one does for an
// address signed for GET, or does not know the size then, by asking for the first byte.
func (s *Source) probe(ctx context.Context, ref model.Ref, f model.File) (model.File, error) {
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		req, err := s.request(ctx, method, ref, f.Key)
		if err != nil {
			return f, err
		}
		if method == http.MethodGet {
			req.Header.Set("Range", "bytes=0-0")
		}
		resp, err := s.do(req)
		if err != nil {
			return f, err
		}
		size, err := s.size(req, resp)
		resp.Body.Close()
		if err == nil {
			err = pageError(req.URL, resp, f)
		}
		// A HEAD that says 0 is more often a careless server than an empty file.
		if method == http.MethodHead && (size <= 0 || err != nil) && headMayLie(resp.StatusCode) {
			continue
		}
		if err != nil {
			return f, err
		}
		if size < 0 {
			return f, &model.Error{Reason: "NoSize", Final: true,
				Text: fmt.Sprintf("%s: the server does not tell the size: serve it with Content-Length", web.Bare(req.URL))}
		}
		f.Size, f.Version = size, version(resp.Header)
		return f, nil
	}
	return f, nil // not reached: the second method always answers
}

func headMayLie(status int) bool {
	switch status {
	case http.StatusOK, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusBadRequest:
		return true
	}
	return false
}

// size is the whole file's, -1 where the answer does not tell.
func (s *Source) size(req *http.Request, resp *http.Response) (int64, error) {
	switch resp.StatusCode {
	case http.StatusOK:
		return resp.ContentLength, web.EncodingError(req.URL, resp)
	case http.StatusPartialContent:
		_, _, total, ok := web.ContentRange(resp.Header)
		if !ok {
			return -1, nil
		}
		return total, web.EncodingError(req.URL, resp)
	case http.StatusRequestedRangeNotSatisfiable:
		if resp.Header.Get("Content-Range") == "bytes */0" {
			return 0, nil
		}
	}
	return -1, statusError(req.URL, resp)
}
