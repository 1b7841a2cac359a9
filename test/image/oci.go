package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// image is what goes in: files maps an absolute path in the image to a file of this machine.
type image struct {
	name       string
	arch       string
	entrypoint []string
	user       string
	files      map[string]string
}

// descriptor, and the documents below, are those of the OCI image specification 1.1.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type imageConfig struct {
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Config       runConfig `json:"config"`
	RootFS       rootFS    `json:"rootfs"`
}

type runConfig struct {
	User       string   `json:"User,omitempty"`
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Env        []string `json:"Env"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// epoch is the time of every entry: any fixed one makes the archive reproducible.
func epoch() time.Time { return time.Unix(0, 0).UTC() }

// writeImage writes img beside its final name and renames, so that a reader sees all of it or none.
func writeImage(name string, img image) (err error) {
	dir := filepath.Dir(name)
	layer, err := os.CreateTemp(dir, ".layer-*")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	layerDesc, err := writeLayer(layer, img.files)
	if err != nil {
		return err
	}
	out, err := os.CreateTemp(dir, ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // gone already after the rename
	defer out.Close()
	if err := writeLayout(out, img, layer, layerDesc); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := out.Chmod(0o644); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(out.Name(), name)
}

// writeLayer writes one uncompressed layer, whose digest is therefore also its diff_id.
func writeLayer(w io.Writer, files map[string]string) (descriptor, error) {
	hash := sha256.New()
	counted := &counter{w: io.MultiWriter(w, hash)}
	tw := tar.NewWriter(counted)
	for _, dir := range directories(files) {
		header := &tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755, ModTime: epoch()}
		if dir == "/tmp" {
			header.Mode = 0o1777
		}
		if err := tw.WriteHeader(header); err != nil {
			return descriptor{}, err
		}
	}
	for _, to := range slices.Sorted(maps.Keys(files)) {
		if err := addFile(tw, files[to], to); err != nil {
			return descriptor{}, err
		}
	}
	if err := tw.Close(); err != nil {
		return descriptor{}, err
	}
	return descriptor{MediaType: mediaLayer, Digest: digest(hash.Sum(nil)), Size: counted.n}, nil
}

func addFile(tw *tar.Writer, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file: name each file of a directory", from)
	}
	mode := int64(0o644) // the umask of the building machine does not enter
	if info.Mode()&0o111 != 0 {
		mode = 0o755
	}
	err = tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(to, "/"), Mode: mode, Size: info.Size(), ModTime: epoch(),
	})
	if err != nil {
		return err
	}
	if _, err := io.Copy(tw, f); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

// directories is every parent of files, parents first, and /tmp, which programs expect.
func directories(files map[string]string) []string {
	found := map[string]bool{"/tmp": true}
	for to := range files {
		for dir := path.Dir(to); dir != "/"; dir = path.Dir(dir) {
			found[dir] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func writeLayout(w io.Writer, img image, layer io.ReadSeeker, layerDesc descriptor) error {
	config, err := json.Marshal(imageConfig{
		Architecture: img.arch,
		OS:           "linux",
		Config: runConfig{
			User:       img.user,
			Entrypoint: img.entrypoint,
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		RootFS: rootFS{Type: "layers", DiffIDs: []string{layerDesc.Digest}},
	})
	if err != nil {
		return err
	}
	man, err := json.Marshal(manifest{
		SchemaVersion: 2, MediaType: mediaManifest, Config: describe(mediaConfig, config), Layers: []descriptor{layerDesc},
	})
	if err != nil {
		return err
	}
	top := describe(mediaManifest, man)
	top.Annotations = map[string]string{
		"io.containerd.image.name":          img.name,
		"org.opencontainers.image.ref.name": img.name[strings.LastIndex(img.name, ":")+1:],
	}
	idx, err := json.Marshal(index{SchemaVersion: 2, MediaType: mediaIndex, Manifests: []descriptor{top}})
	if err != nil {
		return err
	}

	tw := tar.NewWriter(w)
	add := func(name string, size int64, content io.Reader) error {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: epoch()}
		if err := tw.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.Copy(tw, content)
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for _, entry := range []struct {
		name    string
		size    int64
		content io.Reader
	}{
		{"oci-layout", 30, strings.NewReader(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", int64(len(idx)), bytes.NewReader(idx)},
		{blobPath(top.Digest), top.Size, bytes.NewReader(man)},
		{blobPath(describe(mediaConfig, config).Digest), int64(len(config)), bytes.NewReader(config)},
		{blobPath(layerDesc.Digest), layerDesc.Size, layer},
	} {
		if err := add(entry.name, entry.size, entry.content); err != nil {
			return fmt.Errorf("%s: %w", entry.name, err)
		}
	}
	return tw.Close()
}

func describe(media string, content []byte) descriptor {
	sum := sha256.Sum256(content)
	return descriptor{MediaType: media, Digest: digest(sum[:]), Size: int64(len(content))}
}

func digest(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
