package hf

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	maxAnswer = 8 << 20 // bytes of JSON in one answer; a page of 1000 files takes about 400 KB
	maxFiles  = 100_000
	maxPages  = 4000 // a hub may make them as short as 50 files
)

// repo is what a reference asks for.
type repo struct {
	name     string // org/name, or a name alone
	revision string // branch, tag or commit
	filter   model.Filter
}

var (
	nameForm   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?$`)
	commitForm = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

func parse(ref model.Ref) (repo, error) {
	bad := func(format string, args ...any) (repo, error) {
		return repo{}, &model.Error{Reason: "BadSource", Final: true,
			Text: fmt.Sprintf("%s: %s", ref, fmt.Sprintf(format, args...))}
	}
	rest, revision, pinned := strings.Cut(ref.Host+strings.TrimSuffix(ref.Path, "/"), "@")
	r := repo{name: rest, revision: "main"}
	if !nameForm.MatchString(r.name) || strings.Contains(r.name, "..") {
		return bad("want hf://organization/name or hf://organization/name@revision, of a model")
	}
	if pinned {
		plain, err := url.PathUnescape(revision)
		if err != nil || plain == "" || len(plain) > 255 || strings.ContainsFunc(plain, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			return bad("want a branch, a tag or a commit after the @")
		}
		r.revision = plain
	}
	var err error
	if r.filter, err = model.ParseFilter(ref.Query); err != nil {
		return bad("%v", err)
	}
	return r, nil
}

// Resolve asks the endpoint which commit ref's revision is now and which files that has. The manifest's
// revision is the commit. The query of ref chooses among the files: see model.Filter.
func (s *Source) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	r, err := parse(ref)
	if err != nil {
		return model.Manifest{}, err
	}
	r.filter.AllowPickle = r.filter.AllowPickle || s.config.AllowPickle
	hub := model.Hub{Repo: r.name, Revision: r.revision} // before a new name of the repository
	commit, err := s.commit(ctx, ref, &r)
	if err != nil {
		return model.Manifest{}, err
	}
	list, err := s.tree(ctx, ref, r.name, commit)
	if err != nil {
		return model.Manifest{}, err
	}
	if list, err = r.filter.Files(list); err != nil {
		return model.Manifest{}, fmt.Errorf("%s: %w", ref, err)
	}
	m, err := model.NewManifest(list)
	m.Revision, m.Hub = commit, hub
	return m, err
}

// commit is what r's revision stands for. It follows a repository that was renamed.
func (s *Source) commit(ctx context.Context, ref model.Ref, r *repo) (string, error) {
	u, err := s.endpoint.at("/api/models/"+r.name+"/revision/"+url.PathEscape(r.revision), "")
	if err != nil {
		return "", err
	}
	var info struct {
		ID       string `json:"id"`
		SHA      string `json:"sha"`
		Disabled bool   `json:"disabled"`
	}
	at, _, err := s.json(ctx, ref, u, &info)
	if err != nil {
		return "", err
	}
	switch {
	case info.Disabled:
		return "", &model.Error{Reason: "Disabled", Final: true,
			Text: fmt.Sprintf("%s: the hub has disabled this repository: take another", ref)}
	case !commitForm.MatchString(info.SHA):
		return "", s.notAHub(ref, "it names no commit")
	case at.Path != u.Path && nameForm.MatchString(info.ID) && !strings.Contains(info.ID, ".."):
		r.name = info.ID
	}
	return info.SHA, nil
}

func (s *Source) notAHub(ref model.Ref, why string) error {
	return &model.Error{Reason: "WrongAnswer",
		Text: fmt.Sprintf("%s: the answer of %s is not a hub's: %s: check the endpoint", ref, s.endpoint.url.Host, why)}
}

// entry is one line of a tree.
type entry struct {
	Type string `json:"type"`
	Path string `json:"path"`
	Size int64  `json:"size"`
	OID  string `json:"oid"` // of the git blob; for LFS, of the pointer
	LFS  *struct {
		OID  string `json:"oid"` // sha256 of the content
		Size int64  `json:"size"`
	} `json:"lfs"`
}

// tree lists the files of a commit, page by page.
func (s *Source) tree(ctx context.Context, ref model.Ref, name, commit string) ([]model.File, error) {
	query, key := "recursive=true&expand=false", name+"@"+commit
	var list []model.File
	for range maxPages {
		u, err := s.endpoint.at("/api/models/"+name+"/tree/"+commit, query)
		if err != nil {
			return nil, err
		}
		var page []entry
		_, h, err := s.json(ctx, ref, u, &page)
		if err != nil {
			return nil, err
		}
		for _, e := range page {
			if e.Type == "directory" {
				continue
			}
			f, err := s.file(ref, e)
			if err != nil {
				return nil, err
			}
			f.Key = key
			list = append(list, f)
		}
		if len(list) > maxFiles {
			break
		}
		next, ok := nextPage(h)
		if !ok {
			if len(list) == 0 {
				return nil, &model.Error{Reason: "Empty", Final: true, Text: fmt.Sprintf("%s: the revision has no files", ref)}
			}
			return list, nil
		}
		query = next
	}
	return nil, &model.Error{Reason: "TooManyFiles", Final: true,
		Text: fmt.Sprintf("%s: more than %d files, or than %d pages of them", ref, maxFiles, maxPages)}
}

// file turns a tree's entry into a file: with its sha256 for LFS, else with git's sha1.
func (s *Source) file(ref model.Ref, e entry) (model.File, error) {
	if e.Type != "file" {
		return model.File{}, s.notAHub(ref, fmt.Sprintf("%q is a %q", e.Path, e.Type))
	}
	f := model.File{Path: e.Path, Size: e.Size}
	var err error
	if e.LFS != nil {
		f.Size = e.LFS.Size
		f.Digest, err = model.ParseDigest(e.LFS.OID)
		f.Version = string(f.Digest)
	} else if f.Check, err = model.GitSHA1(e.OID); err == nil {
		_, f.Version, _ = strings.Cut(string(f.Check), ":")
	}
	if err != nil && (strings.Contains(e.OID, "*") || e.LFS != nil && strings.Contains(e.LFS.OID, "*")) {
		// Who may not read a gated repository still sees its tree, with the digests blotted out.
		return f, &model.Error{Reason: "Gated", Final: true, Text: fmt.Sprintf("%s: %s", ref, s.gated())}
	}
	if err != nil {
		return f, s.notAHub(ref, fmt.Sprintf("file %q: %v", e.Path, err))
	}
	return f, nil
}

// nextPage is the query of the next page of a tree. Only the query: where to ask stays our choice.
func nextPage(h http.Header) (query string, ok bool) {
	for link := range strings.SplitSeq(h.Get("Link"), ",") {
		target, rel, found := strings.Cut(link, ";")
		target = strings.TrimSpace(target)
		if !found || strings.TrimSpace(rel) != `rel="next"` || len(target) < 2 {
			continue
		}
		if u, err := url.Parse(target[1 : len(target)-1]); err == nil {
			return u.RawQuery, true
		}
	}
	return "", false
}

// json asks the endpoint's API and decodes the answer, which is bounded. It follows redirects on the same
// host, as those of a renamed repository are, and returns where the answer came from.
func (s *Source) json(ctx context.Context, ref model.Ref, u *url.URL, into any) (*url.URL, http.Header, error) {
	for range maxRedirects + 1 {
		resp, err := s.send(ctx, s.endpoint, api, u, nil)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", ref, err)
		}
		next, err := redirected(u, resp)
		switch {
		case err != nil:
		case next == nil:
			err = s.decode(ctx, ref, u, resp, into)
		case !s.endpoint.owns(next):
			err = &model.Error{Reason: "Moved", Final: true,
				Text: fmt.Sprintf("%s: %s redirects to %s: make that the endpoint if you trust it", ref, u.Host, origin(next))}
		}
		resp.Body.Close()
		if next == nil || err != nil {
			return u, resp.Header, err
		}
		u = next
	}
	return nil, nil, tooManyRedirects(u)
}

func (s *Source) decode(ctx context.Context, ref model.Ref, u *url.URL, resp *http.Response, into any) error {
	if resp.StatusCode != http.StatusOK {
		return s.refusal(ref.String(), resp)
	}
	if err := web.EncodingError(u, resp); err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil && context.Cause(ctx) != nil:
		return fmt.Errorf("%s: %w", ref, context.Cause(ctx))
	case err != nil:
		return web.SendError(u, err)
	case len(text) > maxAnswer:
		return &model.Error{Reason: "TooLarge", Final: true,
			Text: fmt.Sprintf("%s: an answer of %s is larger than %d MiB: the repository is too large for the cache", ref, u.Host, maxAnswer>>20)}
	}
	if err := json.Unmarshal(text, into); err != nil {
		return s.notAHub(ref, "it is not JSON of the form that is asked for")
	}
	return nil
}
