package oci_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// registry is one in memory that serves what it is given, right or wrong.
type registry struct {
	mu        sync.Mutex
	blobs     map[string][]byte // by digest
	manifests map[string][]byte // by "repository:tag", and by "repository:digest"
	types     map[string]string // of manifests, by the same
	// before answers in place of the registry, where it returns true.
	before func(w http.ResponseWriter, r *http.Request) bool
	seen   []*http.Request
}

func newRegistry(t *testing.T) (*registry, string) {
	reg := &registry{blobs: map[string][]byte{}, manifests: map[string][]byte{}, types: map[string]string{}}
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	return reg, strings.TrimPrefix(srv.URL, "http://")
}

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (reg *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reg.mu.Lock()
	reg.seen = append(reg.seen, r.Clone(r.Context()))
	before := reg.before
	reg.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	reg.mu.Lock()
	defer reg.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	if repo, name, ok := strings.Cut(path, "/manifests/"); ok && reg.manifests[repo+":"+name] != nil {
		w.Header().Set("Content-Type", reg.types[repo+":"+name])
		w.Header().Set("Docker-Content-Digest", sha(reg.manifests[repo+":"+name]))
		_, _ = w.Write(reg.manifests[repo+":"+name])
		return
	}
	if _, name, ok := strings.Cut(path, "/blobs/"); ok && reg.blobs[name] != nil {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(reg.blobs[name]))
		return
	}
	http.Error(w, `{"errors":[{"code":"NAME_UNKNOWN","message":"\u001b[31m"}]}`, http.StatusNotFound)
}

func (reg *registry) answer(before func(w http.ResponseWriter, r *http.Request) bool) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.before, reg.seen = before, nil
}

// put stores a manifest, or anything, under a tag and its digest.
func (reg *registry) put(repo, tag, mediaType string, text []byte) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	for _, name := range []string{tag, sha(text)} {
		reg.manifests[repo+":"+name] = text
		reg.types[repo+":"+name] = mediaType
	}
}

// layer describes a blob and stores it.
func (reg *registry) layer(mediaType, title string, content []byte) ocispec.Descriptor {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.blobs[sha(content)] = content
	return layer(mediaType, title, content)
}

func layer(mediaType, title string, content []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(sha(content)), Size: int64(len(content))}
	if title != "" {
		d.Annotations = map[string]string{ocispec.AnnotationTitle: title}
	}
	return d
}

// manifest is the text of an OCI manifest.
func manifest(t *testing.T, layers ...ocispec.Descriptor) []byte {
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON, Layers: layers}
	m.SchemaVersion = 2
	text, err := json.Marshal(m)
	require.NoError(t, err)
	return text
}
