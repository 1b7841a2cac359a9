package oci_test

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"oras.land/oras-go/v2"
	orasfile "oras.land/oras-go/v2/content/file"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/oci"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// pull has a cache of its own bring a model, and returns the files by path; or why there are none.
func pull(t *testing.T, ref string) (map[string]string, *model.Status) {
	root := t.TempDir()
	t.Cleanup(func() { require.NoError(t, durable.Disk{}.RemoveTree(filepath.Join(root, "c"))) })
	c, err := cache.Open(cache.Config{Root: filepath.Join(root, "c"), Limit: 64 << 20}, map[string]cache.Source{"oci": newSource(t, oci.Config{})})
	require.NoError(t, err)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	ended := make(chan error, 1)
	c.Want([]model.Spec{{Name: "m", Source: sourcetest.Ref(t, ref)}})
	go func() { ended <- c.Run(ctx) }()
	defer func() {
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, c.Close())
	}()
	for {
		inv, changed := c.Watch()
		s := inv.Model("m")
		if s != nil && s.Final {
			return nil, s
		}
		if s != nil && s.State == model.Ready {
			files := map[string]string{}
			require.NoError(t, fs.WalkDir(os.DirFS(s.Path), ".", func(p string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					var b []byte
					b, err = os.ReadFile(filepath.Join(s.Path, p))
					files[p] = string(b)
				}
				return err
			}))
			return files, s
		}
		select {
		case <-changed:
		case <-ctx.Done():
			require.Fail(t, "waited in vain", "%+v", s)
		}
	}
}

func write(t *testing.T, dir string, files map[string]string) {
	for p, text := range files {
		p = filepath.Join(dir, p)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, []byte(text), 0o644))
	}
}

// TestAModelcarThatImageToolsBuilt pulls an image as KServe's users build them, from a registry and by tools that are not
// ours.
func TestAModelcarThatImageToolsBuilt(t *testing.T) {
	for _, tool := range []string{"umoci", "skopeo"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s on PATH: apt-get install umoci skopeo", tool)
		}
	}
	host, dir := distribution(t), t.TempDir()
	weights := string(bytes.Repeat([]byte("weights "), 50_000))
	write(t, dir, map[string]string{"base/bin/sh": "#!", "m/model.safetensors": weights, "m/old.txt": "old", "m/d/a.json": "{}", "n/new.txt": "new", "e/d/b.json": "[]"})
	require.NoError(t, os.Symlink("model.safetensors", filepath.Join(dir, "m/latest.safetensors")))
	require.NoError(t, os.Link(filepath.Join(dir, "m/d/a.json"), filepath.Join(dir, "m/d/same.json")))
	call := func(name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s %v: %s", name, args, out)
	}
	call("umoci", "init", "--layout", "l")
	call("umoci", "new", "--image", "l:v1")
	for _, layer := range [][]string{
		{"base", "/"}, {"m", "/models"}, {"--whiteout", "/models/old.txt"}, {"n", "/models/n"}, {"--opaque", "e/d", "/models/d"},
	} {
		call("umoci", append([]string{"insert", "--rootless", "--image", "l:v1"}, layer...)...)
	}
	call("skopeo", "copy", "--dest-tls-verify=false", "oci:l:v1", "docker://"+host+"/models/car:oci")
	call("skopeo", "copy", "--dest-tls-verify=false", "--format=v2s2", "oci:l:v1", "docker://"+host+"/models/car:docker")
	call("skopeo", "copy", "--dest-tls-verify=false", "--dest-compress-format=zstd", "--dest-compress", "oci:l:v1", "docker://"+host+"/models/car:zstd")
	for _, tag := range []string{"oci", "docker", "zstd"} {
		got, s := pull(t, "oci://"+host+"/models/car:"+tag)
		require.Equal(t, map[string]string{"model.safetensors": weights, "latest.safetensors": weights, "n/new.txt": "new", "d/b.json": "[]"}, got,
			"%s: %+v", tag, s)
	}
}

// TestADirectoryThatORASPushed pulls what the library of ORAS makes of a directory and a file.
func TestADirectoryThatORASPushed(t *testing.T) {
	host, dir := distribution(t), t.TempDir()
	write(t, dir, map[string]string{"model/config.json": "{}", "model/d/weights": "w", "README.md": "read me"})
	store, err := orasfile.New(dir)
	require.NoError(t, err)
	defer store.Close()
	var layers []ocispec.Descriptor
	for _, name := range []string{"model", "README.md"} {
		l, err := store.Add(t.Context(), name, "", "")
		require.NoError(t, err)
		layers = append(layers, l)
	}
	desc, err := oras.PackManifest(t.Context(), store, oras.PackManifestVersion1_1, "application/x.model", oras.PackManifestOptions{Layers: layers})
	require.NoError(t, err)
	require.NoError(t, store.Tag(t.Context(), desc, "v1"))
	repo, err := remote.NewRepository(host + "/models/oras")
	require.NoError(t, err)
	repo.PlainHTTP = true
	_, err = oras.Copy(t.Context(), store, "v1", repo, "v1", oras.DefaultCopyOptions)
	require.NoError(t, err)
	got, s := pull(t, "oci://"+host+"/models/oras:v1")
	require.Equal(t, map[string]string{"model/config.json": "{}", "model/d/weights": "w", "README.md": "read me"}, got, "%+v", s)
}

// TestARegistryThatLiesAboutAnArchive is caught by the digest before anything is unpacked.
func TestARegistryThatLiesAboutAnArchive(t *testing.T) {
	t.Parallel()
	reg, host := newRegistry(t)
	l := layer("application/vnd.oci.image.layer.v1.tar", "", []byte("tar of a model"))
	reg.blobs[l.Digest.String()] = []byte("tar of nothing")
	reg.put("m", "v1", ocispec.MediaTypeImageManifest, manifest(t, l))
	_, s := pull(t, "oci://"+host+"/m:v1")
	require.Equal(t, "WrongDigest", s.Reason, "%+v", s)

	reg.layer("application/vnd.oci.image.layer.v1.tar", "", []byte("not a tar at all"))
	reg.put("m", "v2", ocispec.MediaTypeImageManifest, manifest(t, layer("application/vnd.oci.image.layer.v1.tar", "", []byte("not a tar at all"))))
	_, s = pull(t, "oci://"+host+"/m:v2")
	require.Equal(t, "BadArchive", s.Reason, "%+v", s)
	require.Contains(t, s.Message, "file layer-000001-")
}
