package ms

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
	cut      = 3000 // entries after which the hub ends a list without a word, whatever page is asked for
	maxFiles = 100_000
	maxDirs  = 500 // directories of one repository that are asked for, at two requests each
)

// Resolve asks the endpoint which files ref's revision has. The query of ref chooses among them: see model.Filter.
func (s *Source) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	if err := Check(ref); err != nil {
		return model.Manifest{}, err
	}
	r, err := s.Parse(ref)
	if err != nil {
		return model.Manifest{}, err
	}
	list, err := s.files(ctx, ref, r)
	if err != nil {
		return model.Manifest{}, err
	}
	m, err := r.Manifest(ref, list)
	if err == nil && hub.IsCommit(r.Revision) {
		m.Revision = r.Revision
	}
	return m, err
}

// Check says why ref can never be read, whatever the hub has.
func Check(ref model.Ref) error {
	if err := hub.Check(ref); err != nil {
		return err
	}
	if strings.Trim(ref.Path, "/") == "" {
		return &model.Error{Reason: "BadSource", Final: true, Text: fmt.Sprintf("%s: want ms://organization/name", ref)}
	}
	return nil
}

// files lists the whole repository. Where a list may have been cut, its directories are asked for one by one.
func (s *Source) files(ctx context.Context, ref model.Ref, r hub.Repo) ([]model.File, error) {
	var list []model.File
	dirs := []string{""}
	for i := 0; i < len(dirs); i++ {
		entries, err := s.list(ctx, ref, r, dirs[i], "True")
		if err != nil {
			return nil, err
		}
		whole := len(entries) < cut
		if !whole {
			if entries, err = s.list(ctx, ref, r, dirs[i], "False"); err != nil {
				return nil, err
			}
			if len(entries) >= cut {
				return nil, &model.Error{Reason: "TooManyFiles", Final: true,
					Text: fmt.Sprintf("%s: directory %q has %d entries or more, and the hub lists no more", ref, "/"+dirs[i], cut)}
			}
		}
		for _, e := range entries {
			switch {
			case e.Type == "tree" && whole: // its files are listed too
			case e.Type == "tree":
				dirs = append(dirs, e.Path)
			case e.Type == "blob":
				f, err := s.file(ref, r, e)
				if err != nil {
					return nil, err
				}
				list = append(list, f)
			default:
				return nil, s.WrongAnswer(ref, fmt.Sprintf("%q is a %q", e.Path, e.Type))
			}
		}
		if len(list) > maxFiles || len(dirs) > maxDirs {
			return nil, &model.Error{Reason: "TooManyFiles", Final: true,
				Text: fmt.Sprintf("%s: more than %d files, or than %d directories", ref, maxFiles, maxDirs)}
		}
	}
	if len(list) == 0 {
		return nil, &model.Error{Reason: "NotFound", Final: true, Text: fmt.Sprintf("%s: %s", ref, noRevision)}
	}
	return list, nil
}

// entry is one line of a list.
type entry struct {
	Type     string
	Path     string // from the repository's root
	Size     int64
	Sha256   string
	Revision string // the commit that changed it last
}

// list is what is in a directory, with "True" for deep also below it.
func (s *Source) list(ctx context.Context, ref model.Ref, r hub.Repo, dir, deep string) ([]entry, error) {
	query := url.Values{"Revision": {r.Revision}, "Recursive": {deep}}
	if dir != "" {
		query.Set("Root", dir)
	}
	var answer struct {
		Code int64
		Data struct{ Files []entry }
	}
	if _, _, err := s.JSON(ctx, ref, models+r.Name+"/repo/files", query.Encode(), &answer); err != nil {
		return nil, err
	}
	if answer.Code == codeOK {
		return answer.Data.Files, nil
	}
	reason, what := meaning(s.Client, http.StatusNotFound, answer.Code)
	return nil, &model.Error{Reason: reason, Final: true, Text: fmt.Sprintf("%s: the hub answers with code %d: %s", ref, answer.Code, what)}
}

// file turns an entry into a file, read at the commit that ref names, else at the one that the entry names.
func (s *Source) file(ref model.Ref, r hub.Repo, e entry) (model.File, error) {
	f := model.File{Path: e.Path, Size: e.Size, Version: e.Revision, Key: r.Name + "@" + e.Revision}
	if hub.IsCommit(r.Revision) || !hub.IsCommit(e.Revision) {
		f.Key = r.Name + "@" + r.Revision
	}
	if e.Sha256 == "" {
		return f, nil // recorded when it is fetched
	}
	var err error
	if f.Digest, err = model.ParseDigest(e.Sha256); err != nil {
		return f, s.WrongAnswer(ref, fmt.Sprintf("file %q: %v", e.Path, err))
	}
	return f, nil
}
