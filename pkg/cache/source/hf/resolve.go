package hf

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hub"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	maxFiles = 100_000
	maxPages = 4000 // a hub may make them as short as 50 files
)

// Resolve asks the endpoint which commit ref's revision is now and which files that has. The manifest's
// revision is the commit. The query of ref chooses among the files: see model.Filter.
func (s *Source) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	r, err := s.Parse(ref)
	if err != nil {
		return model.Manifest{}, err
	}
	named := model.Hub{Repo: r.Name, Revision: r.Revision} // before a new name of the repository
	commit, err := s.commit(ctx, ref, &r)
	if err != nil {
		return model.Manifest{}, err
	}
	list, err := s.tree(ctx, ref, r.Name, commit)
	if err != nil {
		return model.Manifest{}, err
	}
	m, err := r.Manifest(ref, list)
	m.Revision, m.Hub = commit, named
	return m, err
}

// commit is what r's revision stands for. It follows a repository that was renamed.
func (s *Source) commit(ctx context.Context, ref model.Ref, r *hub.Repo) (string, error) {
	var info struct {
		ID       string `json:"id"`
		SHA      string `json:"sha"`
		Disabled bool   `json:"disabled"`
	}
	moved, _, err := s.JSON(ctx, ref, "/api/models/"+r.Name+"/revision/"+url.PathEscape(r.Revision), "", &info)
	if err != nil {
		return "", err
	}
	switch {
	case info.Disabled:
		return "", &model.Error{Reason: "Disabled", Final: true,
			Text: fmt.Sprintf("%s: the hub has disabled this repository: take another", ref)}
	case !hub.IsCommit(info.SHA):
		return "", s.WrongAnswer(ref, "it names no commit")
	case moved && hub.IsName(info.ID):
		r.Name = info.ID
	}
	return info.SHA, nil
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
		var page []entry
		_, h, err := s.JSON(ctx, ref, "/api/models/"+name+"/tree/"+commit, query, &page)
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
		return model.File{}, s.WrongAnswer(ref, fmt.Sprintf("%q is a %q", e.Path, e.Type))
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
		return f, &model.Error{Reason: "Gated", Final: true, Text: fmt.Sprintf("%s: %s", ref, gated(s.Client))}
	}
	if err != nil {
		return f, s.WrongAnswer(ref, fmt.Sprintf("file %q: %v", e.Path, err))
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
