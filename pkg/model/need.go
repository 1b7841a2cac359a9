package model

import (
	"fmt"
	"path"
	"strings"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
)

// Need is a model that a pod names.
type Need struct {
	Name     string
	Revision string // as Revision12 has it; "": whichever is current
	Source   Ref    // zero: as the config says
}

// The most that is read of what a pod says.
const (
	maxNeeds     = 16
	maxNeedsText = 4096
)

var (
	shortRevision = lazyregexp.New(`^[a-zA-Z0-9]([-_.a-zA-Z0-9]{0,10}[a-zA-Z0-9])?$`)
	otherThanName = lazyregexp.New(`[^a-z0-9._-]+`)
)

// ParseNeeds reads a list as pods write it, separated by commas: a name, name@revision12, a reference, or
// name=reference. A reference alone goes by its last part, hf://Org/Llama-3 by llama-3. What is wrong is in problems,
// one each, and the rest holds.
func ParseNeeds(text string) (needs []Need, problems []error) {
	if len(text) > maxNeedsText {
		return nil, []error{fmt.Errorf("%d bytes: want at most %d", len(text), maxNeedsText)}
	}
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		if len(needs) == maxNeeds {
			return needs, append(problems, fmt.Errorf("more than %d models: the rest is not looked at", maxNeeds))
		}
		need, err := parseNeed(item)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		needs = append(needs, need)
	}
	return needs, problems
}

func parseNeed(item string) (n Need, err error) {
	if !strings.Contains(item, "://") {
		var pinned bool
		n.Name, n.Revision, pinned = strings.Cut(item, "@")
		if pinned && !shortRevision().MatchString(n.Revision) {
			return n, fmt.Errorf("%q: want name@revision with at most 12 characters of the revision, as gpu-agent models ls shows it", item)
		}
		return n, CheckName(n.Name)
	}
	name, reference, named := strings.Cut(item, "=")
	if !named || strings.Contains(name, "://") {
		name, reference = "", item
	}
	if n.Source, err = ParseRef(reference); err != nil {
		return n, err
	}
	// What a prefix allows must be what is fetched: nothing that another part of the way could read otherwise.
	if n.Source.Query != "" || strings.Contains(n.Source.Path, "%") || n.Source.Path != "" && path.Clean(n.Source.Path) != strings.TrimSuffix(n.Source.Path, "/") {
		return n, fmt.Errorf("%s: a pod's reference has no query, no escaped characters and no ..", n.Source)
	}
	if n.Name = name; name == "" {
		last := path.Base(n.Source.Host + n.Source.Path)
		last, _, _ = strings.Cut(last, "@")
		last, _, _ = strings.Cut(last, ":")
		n.Name = strings.Trim(otherThanName().ReplaceAllString(strings.ToLower(last), "-"), "-._")
	}
	return n, CheckName(n.Name)
}

// Under reports whether the reference begins with one of these prefixes, each up to a whole part of it.
func (r Ref) Under(prefixes []string) bool {
	for _, p := range prefixes {
		rest, ok := strings.CutPrefix(r.String(), p)
		if ok && (rest == "" || strings.HasSuffix(p, "/") || strings.ContainsAny(rest[:1], "/@:")) {
			return true
		}
	}
	return false
}
