package cache

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

var commit1, commit2 = strings.Repeat("1", 40), strings.Repeat("2", 40)

func both(a, b map[string][]byte) map[string][]byte {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// outline is what the directories of a repository hold, one level down.
func outline(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	require.NoError(t, err)
	for i, p := range paths {
		paths[i], err = filepath.Rel(dir, p)
		require.NoError(t, err)
	}
	return paths
}

// serves fails unless every snapshot of a repository is one that it may be, with a tree that lists its
// files and no others, and every ref has a snapshot.
func serves(t *testing.T, root, repo string, may map[string][]map[string][]byte) {
	t.Helper()
	dir := layout(root).repository(repo)
	refs := tree(t, filepath.Join(dir, "refs"))
	for _, commit := range refs {
		require.DirExists(t, filepath.Join(dir, "snapshots", string(commit)))
	}
	for _, p := range outline(t, dir) {
		commit, ok := strings.CutPrefix(p, "snapshots/")
		if !ok {
			continue
		}
		got := tree(t, filepath.Join(dir, p))
		require.True(t, slices.ContainsFunc(may[commit], func(want map[string][]byte) bool {
			return maps.EqualFunc(got, want, slices.Equal)
		}), "snapshot %s is no revision: %v", commit, slices.Sorted(maps.Keys(got)))
		text, err := os.ReadFile(filepath.Join(dir, "trees", commit+".json"))
		require.NoError(t, err)
		var listed struct {
			Files map[string]struct{ Size int } `json:"files"`
		}
		require.NoError(t, json.Unmarshal(text, &listed))
		require.Len(t, listed.Files, len(got))
		for path, f := range listed.Files {
			require.Len(t, got[path], f.Size, path)
		}
	}
}

func gitID(content []byte) string {
	sum := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(content)), content...))
	return hex.EncodeToString(sum[:])
}

func TestClientsOfTheHubFindTheModelWhereTheyLook(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files, l := weights(1), layout(root)
		o.hub["a"] = model.Hub{Repo: "org/m", Revision: "refs/pr/1"}
		o.put("a", commit1, files)
		for i, f := range o.models["a"].Files { // as the hub has it: large files by sha256, others by git's sum
			if f.Size < 1000 {
				check, err := model.GitSHA1(gitID(files[f.Path]))
				require.NoError(t, err)
				o.models["a"].Files[i].Check, o.models["a"].Files[i].Digest = check, ""
			}
		}
		c := open(t, config(root), o)
		stop := run(t, c)
		pull(t, c, "a")
		dir := l.repository("org/m")
		require.Equal(t, filepath.Join(root, "models", "hub", "models--org--m"), dir)
		require.Equal(t, map[string][]byte{"refs/pr/1": []byte(commit1)}, tree(t, filepath.Join(dir, "refs")))
		serves(t, root, "org/m", map[string][]map[string][]byte{commit1: {files}})
		for path, mode := range map[string]os.FileMode{"": 0o555, "refs/refs/pr": 0o555, "snapshots/" + commit1 + "/sub": 0o555,
			"refs/refs/pr/1": 0o444, "trees/" + commit1 + ".json": 0o444, "snapshots/" + commit1 + "/copy": 0o444} {
			info, err := os.Lstat(filepath.Join(dir, path))
			require.NoError(t, err)
			require.Equal(t, mode, info.Mode().Perm(), path)
		}
		text, err := os.ReadFile(filepath.Join(dir, "trees", commit1+".json"))
		require.NoError(t, err)
		size := len(files["copy"])
		pointer := fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", digest(files["copy"]), size)
		large := fmt.Sprintf(`{"size":%d,"blob_id":"%s","lfs_sha256":"%s","lfs_size":%d,"xet_hash":null}`,
			size, gitID([]byte(pointer)), digest(files["copy"]), size)
		require.JSONEq(t, fmt.Sprintf(`{"format_version":1,"files":{"copy":%s,"model.safetensors":%s,
			"empty":{"size":0,"blob_id":"%s","lfs_sha256":null,"lfs_size":null,"xet_hash":null},
			"sub/dir/config.json":{"size":500,"blob_id":"%s","lfs_sha256":null,"lfs_size":null,"xet_hash":null}}}`,
			large, large, gitID(nil), gitID(files["sub/dir/config.json"])), string(text))

		// Another model of the same repository, of which it takes fewer files, and a name for its commit.
		some := map[string][]byte{"copy": files["copy"]}
		o.hub["b"] = model.Hub{Repo: "org/m", Revision: "main"}
		o.put("b", commit2, some)
		pull(t, c, "b")
		serves(t, root, "org/m", map[string][]map[string][]byte{commit1: {files}, commit2: {some}})
		require.NoError(t, c.Remove(t.Context(), "a", false))
		require.Equal(t, []string{"refs/main", "snapshots/" + commit2, "trees/" + commit2 + ".json"}, outline(t, dir))
		o.hub["b"] = model.Hub{Repo: "org/m", Revision: "v2"}
		o.put("b", commit2, some)
		require.NoError(t, ask(t, c, model.Spec{Name: "b"}))
		wait(t, c, "b", func(s *model.Status) bool { return s.Update == nil && s.Answered == s.Asked })
		require.Equal(t, map[string][]byte{"v2": []byte(commit2)}, tree(t, filepath.Join(dir, "refs")))
		o.hub["b"] = model.Hub{Repo: "org/m", Revision: commit2}
		o.put("b", commit2, some)
		require.NoError(t, ask(t, c, model.Spec{Name: "b"}))
		wait(t, c, "b", func(s *model.Status) bool { return s.Update == nil && s.Answered == s.Asked })
		require.Equal(t, map[string][]byte{commit2: []byte(commit2)}, tree(t, filepath.Join(dir, "refs")))
		require.NoError(t, c.Remove(t.Context(), "b", false))
		require.NoDirExists(t, dir)
		stop()
		tidy(t, root)
	})
}

func TestARepositoryOfSomebodyElseStays(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		mine := filepath.Join(layout(root).repository("org/m"), "refs", "main")
		require.NoError(t, os.MkdirAll(filepath.Dir(mine), 0o755))
		require.NoError(t, os.WriteFile(mine, []byte(commit2), 0o600))
		o.hub["a"] = model.Hub{Repo: "org/m", Revision: "main"}
		o.put("a", commit1, map[string][]byte{"f": noise(1, 1000)})
		c := open(t, config(root), o)
		require.Equal(t, int64(40), c.Get().Used, "it counts")
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		require.Contains(t, failed(t, c, "a", "Foreign").Message, "models--org--m is there already and not of this cache")
		require.FileExists(t, mine)
		require.NoError(t, os.RemoveAll(layout(root).repository("org/m")))
		require.NoError(t, ask(t, c, spec("a", "a")))
		ready(t, c, "a")
		stop()
	})
}

func TestAHubThatNamesNoRepositoryIsRefused(t *testing.T) {
	for _, m := range []model.Manifest{
		{Revision: "main", Hub: model.Hub{Repo: "org/m", Revision: "main"}},
		{Revision: commit1, Hub: model.Hub{Repo: "../m", Revision: "main"}},
		{Revision: commit1, Hub: model.Hub{Repo: "a--b", Revision: "main"}},
		{Revision: commit1, Hub: model.Hub{Repo: "org/m", Revision: "../../x"}},
	} {
		m.Files = []model.File{{Path: "f", Size: 1}}
		_, err := checkManifest(model.Ref{Scheme: "hf", Host: "x"}, m)
		require.Equal(t, "BadPath", model.ReasonOf(err), "%+v", m)
	}
}
