package hub

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Repo is what a reference asks for.
type Repo struct {
	Name     string // organization/name, or a name alone
	Revision string // branch, tag or commit
	Filter   model.Filter
}

var (
	nameForm   = lazyregexp.New(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?$`)
	commitForm = lazyregexp.New(`^[0-9a-f]{40}$`)
)

// IsName reports whether s may be a repository's name: it is put into addresses.
func IsName(s string) bool { return nameForm().MatchString(s) && !strings.Contains(s, "..") }

// IsCommit reports whether s is a commit's whole name.
func IsCommit(s string) bool { return commitForm().MatchString(s) }

// Check says why no hub of the scheme that ref has can ever have it.
func Check(ref model.Ref) error {
	_, err := (&Client{Protocol: Protocol{Scheme: ref.Scheme}}).Parse(ref)
	return err
}

// Parse reads a reference: organization/name, perhaps @revision, and a query that chooses among the files.
func (c *Client) Parse(ref model.Ref) (Repo, error) {
	bad := func(format string, args ...any) (Repo, error) {
		return Repo{}, &model.Error{Reason: "BadSource", Final: true,
			Text: fmt.Sprintf("%s: %s", ref, fmt.Sprintf(format, args...))}
	}
	rest, revision, pinned := strings.Cut(ref.Host+strings.TrimSuffix(ref.Path, "/"), "@")
	r := Repo{Name: rest, Revision: c.Branch}
	if !IsName(r.Name) {
		return bad("want %s://organization/name or %[1]s://organization/name@revision, of a model", c.Scheme)
	}
	if pinned {
		plain, err := url.PathUnescape(revision)
		if err != nil || plain == "" || len(plain) > 255 || strings.ContainsFunc(plain, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			return bad("want a branch, a tag or a commit after the @")
		}
		r.Revision = plain
	}
	if ref.Digest != "" {
		return bad("a hub takes no #sha256: it names the digest of each file itself; pin the revision with @<commit>")
	}
	var err error
	if r.Filter, err = model.ParseFilter(ref.Query); err != nil {
		return bad("%v", err)
	}
	r.Filter.AllowPickle = r.Filter.AllowPickle || c.config.AllowPickle
	return r, nil
}

// Manifest is of those of r's files that its filter takes.
func (r Repo) Manifest(ref model.Ref, list []model.File) (model.Manifest, error) {
	list, err := r.Filter.Files(list)
	if err != nil {
		return model.Manifest{}, fmt.Errorf("%s: %w", ref, err)
	}
	return model.NewManifest(list)
}
