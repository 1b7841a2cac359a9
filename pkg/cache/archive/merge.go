package archive

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Unpacked is an archive whose contents are stored.
type Unpacked struct {
	Digest  model.Digest  `json:"digest"` // of the archive
	Kind    model.Archive `json:"kind"`
	Members []Member      `json:"members,omitempty"`
}

// maxLinks bounds a chain of symbolic links, as Linux does.
const maxLinks = 40

// Merge is the files that archives make, sorted by path: layers of an image one over another in their order,
// directories beside one another. Links become files of their own. What does not go together is a final
// *model.Error.
func Merge(all []Unpacked) ([]model.File, error) {
	t := tree{files: map[string]leaf{}, dirs: map[string]int{}}
	for i, a := range all {
		for _, m := range a.Members { // they are about what is below, wherever they stand in the archive
			switch m.Kind {
			case Whiteout:
				t.remove(m.Path)
				t.empty(m.Path)
			case Opaque:
				t.empty(m.Path)
			}
		}
		for _, m := range a.Members {
			if err := t.add(i, a.Kind, m); err != nil {
				return nil, err
			}
		}
	}
	files := make([]model.File, 0, len(t.files))
	for _, p := range slices.Sorted(maps.Keys(t.files)) { // so that it is the same fault each time, too
		end, err := t.end(p, t.files[p])
		if err != nil {
			return nil, err
		}
		files = append(files, model.File{Path: p, Size: end.Size, Digest: end.Digest})
	}
	if len(files) == 0 && len(all) > 0 && all[0].Kind == model.Image {
		return nil, &model.Error{Reason: "Empty", Final: true,
			Text: "the image has no file in /models, where a modelcar keeps its model: put it there, or name another image"}
	}
	return files, nil
}

// tree is what has been unpacked so far.
type tree struct {
	files map[string]leaf // by path
	dirs  map[string]int  // how many files are below, at any depth
}

type leaf struct {
	Member
	from int // number of the archive
}

func (t *tree) add(from int, kind model.Archive, m Member) error {
	switch m.Kind {
	case Whiteout, Opaque:
		return nil
	case Dir:
		if kind == model.Image && t.files[m.Path].from < from {
			t.remove(m.Path)
		}
		return nil
	case Link:
		to, ok := t.files[m.To]
		if !ok {
			return bad("%q is a link to %q, which is not there", m.Path, m.To)
		}
		m = Member{Path: m.Path, Kind: to.Kind, Size: to.Size, Digest: to.Digest, To: to.To}
	}
	if old, ok := t.files[m.Path]; ok {
		if kind != model.Image || old.from == from {
			return bad("%q is there twice", m.Path)
		}
		t.remove(m.Path)
	}
	for dir := path.Dir(m.Path); dir != "."; dir = path.Dir(dir) {
		if old, ok := t.files[dir]; ok {
			if kind != model.Image || old.from == from {
				return bad("%q is a file and also the directory of %q", dir, m.Path)
			}
			t.remove(dir)
		}
	}
	if t.dirs[m.Path] > 0 {
		for _, p := range slices.Sorted(maps.Keys(t.files)) {
			old := t.files[p]
			if strings.HasPrefix(p, m.Path+"/") && (kind != model.Image || old.from == from) {
				return bad("%q is a file and also the directory of %q", m.Path, p)
			}
		}
		t.empty(m.Path)
	}
	t.files[m.Path] = leaf{m, from}
	t.count(m.Path, 1)
	return nil
}

// end is the file that a link leads to.
func (t *tree) end(p string, l leaf) (leaf, error) {
	for range maxLinks {
		if l.Kind != Symlink {
			return l, nil
		}
		next, ok := t.files[l.To]
		switch {
		case ok:
			l = next
		case l.To == "" || t.dirs[l.To] > 0:
			return l, bad("%q is a link to the directory %q: put the files there themselves", p, l.To)
		default:
			return l, bad("%q is a link to %q, which is not there", p, l.To)
		}
	}
	return l, bad("%q is a link in a circle", p)
}

func (t *tree) remove(p string) {
	if _, ok := t.files[p]; ok {
		delete(t.files, p)
		t.count(p, -1)
	}
}

// empty removes all below a directory.
func (t *tree) empty(dir string) {
	if dir != "" && t.dirs[dir] == 0 {
		return
	}
	for p := range t.files {
		if dir == "" || strings.HasPrefix(p, dir+"/") {
			t.remove(p)
		}
	}
}

func (t *tree) count(p string, n int) {
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		t.dirs[dir] += n
	}
}
