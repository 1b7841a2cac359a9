package cache

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// reader finds a repository as the hub's own client does, without asking anybody, and reads the header of the weights.
const reader = `
import { scanCacheDir, downloadFileToCacheDir } from "@huggingface/hub";
import { readFileSync } from "node:fs";
const [cacheDir, revision] = process.argv.slice(2);
const fetch = () => { throw new Error("the client asks the hub"); };
const cache = await scanCacheDir(cacheDir);
const paths = [];
for (const path of ["config.json", "model.safetensors"]) {
  paths.push(await downloadFileToCacheDir({ repo: "org/m", revision, path, cacheDir, fetch }));
}
const weights = readFileSync(paths[1]);
const n = Number(weights.readBigUInt64LE(0));
console.log(JSON.stringify({
  warnings: cache.warnings.map(String), repo: cache.repos[0].id.name, refs: cache.repos[0].revisions[0].refs,
  commit: cache.repos[0].revisions[0].commitOid, size: cache.size, paths,
  header: JSON.parse(weights.subarray(8, 8 + n)), data: weights.length - 8 - n,
}));
`

// HUGGINGFACE_HUB_JS is a directory in which npm has installed @huggingface/hub.
func TestTheHubsOwnClientReadsAModelOfflineFromAReadOnlyMount(t *testing.T) {
	dir := os.Getenv("HUGGINGFACE_HUB_JS")
	if dir == "" {
		t.Skip("HUGGINGFACE_HUB_JS does not name a directory with @huggingface/hub")
	}
	header := []byte(`{"w":{"dtype":"F32","shape":[256],"data_offsets":[0,1024]}}`)
	weights := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	weights = append(append(weights, header...), noise(1, 1024)...)
	o, root := newOrigin(), t.TempDir()
	o.hub["a"] = model.Hub{Repo: "org/m", Revision: "main"}
	o.put("a", commit1, map[string][]byte{"config.json": []byte("{}"), "model.safetensors": weights})
	c := open(t, config(root), o)
	stop := run(t, c)
	_, err := c.Pull(t.Context(), spec("a", "a"))
	require.NoError(t, err)
	ready(t, c, "a")
	stop()

	mount := t.TempDir()
	if err := unix.Mount(filepath.Join(root, "models"), mount, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("nothing can be mounted here: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(mount, 0)) })
	require.NoError(t, unix.Mount("", mount, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	script, err := os.CreateTemp(dir, "*.mjs") // it looks for the package beside itself
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.Remove(script.Name())) })
	_, err = script.WriteString(reader)
	require.NoError(t, err)
	require.NoError(t, script.Close())
	hub := filepath.Join(mount, "hub")
	cmd := exec.CommandContext(t.Context(), "node", script.Name(), hub, commit1)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err)
	snapshot := filepath.Join(hub, "models--org--m", "snapshots", commit1)
	want, err := json.Marshal(map[string]any{
		"warnings": []string{}, "repo": "org/m", "refs": []string{"main"}, "commit": commit1, "size": len(weights) + 2,
		"paths":  []string{filepath.Join(snapshot, "config.json"), filepath.Join(snapshot, "model.safetensors")},
		"header": json.RawMessage(header), "data": 1024,
	})
	require.NoError(t, err)
	require.JSONEq(t, string(want), string(out))
}
