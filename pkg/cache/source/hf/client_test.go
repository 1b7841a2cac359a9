package hf_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// client lists a model's files and prints the size and sha256 of each as the hub's own client reads it.
const client = `
import { listFiles, downloadFile } from "@huggingface/hub";
import { createHash } from "node:crypto";
const [hubUrl, repo, accessToken] = process.argv.slice(2);
const seen = {};
for await (const f of listFiles({ repo, hubUrl, accessToken, recursive: true })) {
  if (f.type !== "file") continue;
  const blob = await downloadFile({ repo, hubUrl, accessToken, path: f.path, xet: false });
  const bytes = Buffer.from(await blob.arrayBuffer());
  seen[f.path] = f.size + " " + (f.lfs ? f.lfs.oid : "-") + " " + createHash("sha256").update(bytes).digest("hex");
}
console.log(JSON.stringify(seen));
`

// The stand-in is only worth what it has of the real hub, which tests cannot reach: the hub's own client
// has to take it for one. HUGGINGFACE_HUB_JS is a directory in which npm has installed @huggingface/hub.
func TestTheHubsOwnClientTakesTheStandInForTheHub(t *testing.T) {
	dir := os.Getenv("HUGGINGFACE_HUB_JS")
	if dir == "" {
		t.Skip("HUGGINGFACE_HUB_JS does not name a directory with @huggingface/hub")
	}
	h := newHub(t)
	h.token, h.public = "hf_t0ken", h.URL
	all := map[string][]byte{"tokenizer/vo cab.txt": []byte("a b"), "x/1.json": []byte("{}"), "x/2.json": []byte("[]")}
	maps.Copy(all, files)
	h.put("org/m", "main", all)

	script, err := os.CreateTemp(dir, "*.mjs") // it looks for the package beside itself
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.Remove(script.Name())) })
	_, err = script.WriteString(client)
	require.NoError(t, err)
	require.NoError(t, script.Close())
	cmd := exec.CommandContext(t.Context(), "node", script.Name(), h.URL, "org/m", h.token)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err)
	seen := map[string]string{}
	require.NoError(t, json.Unmarshal(out, &seen), "%s", out)
	require.Equal(t, slices.Sorted(maps.Keys(all)), slices.Sorted(maps.Keys(seen)))
	for p, content := range all {
		sum := fmt.Sprintf("%x", sha256.Sum256(content))
		lfs := "-"
		if len(content) > lfsAbove {
			lfs = sum
		}
		require.Equal(t, fmt.Sprintf("%d %s %s", len(content), lfs, sum), seen[p], p)
	}
}
