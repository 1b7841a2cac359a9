package ms_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// client lists a model's files, downloads them, and prints what it was told of each and the sha256 of what it wrote.
const client = `
import hashlib, json, pathlib, sys
from modelscope_hub import HubApi
endpoint, repo, revision, token, to = sys.argv[1:]
api = HubApi(endpoint=endpoint, token=token)
seen = {}
for f in api.list_repo_files(repo, "model", revision=revision):
    if f.type == "blob":
        seen[f.path] = [f.size, f.sha256]
api.download_repo(repo, "model", revision=revision, local_dir=to)
for path in seen:
    seen[path].append(hashlib.sha256((pathlib.Path(to) / path).read_bytes()).hexdigest())
print(json.dumps(seen))
try:
    api.list_repo_files(repo + "-none", "model")
except Exception as e:
    print(type(e).__name__)
`

// The stand-in is only worth what it has of the real hub, which tests cannot reach: the hub's own client has to take it
// for one. MODELSCOPE_HUB_PYTHONPATH is where Python finds modelscope_hub and what that needs.
func TestTheHubsOwnClientTakesTheStandInForTheHub(t *testing.T) {
	where := os.Getenv("MODELSCOPE_HUB_PYTHONPATH")
	if where == "" {
		t.Skip("MODELSCOPE_HUB_PYTHONPATH does not name where modelscope_hub is")
	}
	h := newHub(t)
	h.token = "t0ken"
	all := map[string][]byte{"tokenizer/vo cab+é.txt": []byte("a b"), "x/y/1.json": []byte("{}"), "x/big.bin": make([]byte, 3000)}
	maps.Copy(all, files)
	commit := h.put("Org/m_1.5", "master", all)
	h.put("Org/m_1.5", "master", map[string][]byte{"README.md": []byte("another")})
	h.repos["Org/m_1.5"].private = true

	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "python3", "-c", client, h.URL, "Org/m_1.5", commit, h.token, home+"/model")
	cmd.Env = append(os.Environ(), "PYTHONPATH="+where, "HOME="+home, "MODELSCOPE_CACHE="+home+"/cache")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	listed, refused, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	require.Equal(t, "NotExistError", refused)
	seen := map[string][3]any{}
	require.NoError(t, json.Unmarshal([]byte(listed), &seen), "%s", out)
	require.Equal(t, slices.Sorted(maps.Keys(all)), slices.Sorted(maps.Keys(seen)))
	for p, content := range all {
		sum := fmt.Sprintf("%x", sha256.Sum256(content))
		require.Equal(t, [3]any{float64(len(content)), sum, sum}, seen[p], p)
	}
}
