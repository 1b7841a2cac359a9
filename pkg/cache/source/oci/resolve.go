package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// maxManifest bounds what is read of a manifest, in bytes: the distribution specification has registries
// take up to 4 MiB.
const maxManifest = 4 << 20

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// document is a manifest or an index.
type document struct {
	MediaType string               `json:"mediaType"`
	Config    ocispec.Descriptor   `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`

	digest model.Digest // of its text
}

// Resolve reads the manifest that ref names, or the one of the index that it names: each layer is a
// file. The revision is the manifest's sha256, as registries show it.
func (s *Source) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	at, err := parse(ref)
	if err != nil {
		return model.Manifest{}, err
	}
	doc, err := s.document(ctx, ref, at)
	if err != nil {
		return model.Manifest{}, err
	}
	if doc.MediaType == ocispec.MediaTypeImageIndex || doc.MediaType == dockerList {
		if at.Reference, err = only(ref, doc.Manifests); err != nil {
			return model.Manifest{}, err
		}
		if doc, err = s.document(ctx, ref, at); err != nil {
			return model.Manifest{}, err
		}
	}
	if doc.MediaType != ocispec.MediaTypeImageManifest && doc.MediaType != dockerManifest {
		return model.Manifest{}, unsupported(ref, "it is of type %s, not a manifest of layers: push it with modctl or oras", quoted(doc.MediaType))
	}
	files, err := layerFiles(ref, doc.Config.MediaType, doc.Layers)
	if err != nil {
		return model.Manifest{}, err
	}
	m, err := model.NewManifest(files)
	m.Revision = string(doc.digest)
	return m, err
}

// document reads the manifest or index at. What is named by digest must have it.
func (s *Source) document(ctx context.Context, ref model.Ref, at registry.Reference) (document, error) {
	req, err := s.request(ctx, at, "manifests", at.Reference)
	if err != nil {
		return document{}, err
	}
	req.Header.Set("Accept", strings.Join([]string{
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerList,
	}, ", "))
	resp, err := s.do(req, false)
	if err != nil {
		if e, ok := errors.AsType[*model.Error](err); ok && e.Reason == "NotFound" {
			e.Text = ref.String() + ": " + e.Text
		}
		return document{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return document{}, statusError(req.URL, resp, false)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return document{}, fmt.Errorf("%s: %w", ref, cause)
	}
	if err != nil {
		return document{}, web.SendError(req.URL, err)
	}
	if len(text) > maxManifest {
		return document{}, badManifest(ref, "larger than 4 MiB")
	}
	sum := sha256.Sum256(text)
	doc := document{digest: model.Digest(hex.EncodeToString(sum[:]))}
	for _, named := range []string{at.Reference, resp.Header.Get("Docker-Content-Digest")} {
		if d, err := model.ParseDigest(named); err == nil && strings.Contains(named, ":") && d != doc.digest {
			return document{}, &model.Error{Reason: "WrongDigest",
				Text: fmt.Sprintf("%s: the registry sends a manifest with sha256 %s in place of %s", ref, doc.digest, d)}
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return document{}, badManifest(ref, "not JSON of a manifest")
	}
	if doc.MediaType == "" { // optional in OCI's own
		doc.MediaType, _, _ = mime.ParseMediaType(resp.Header.Get("Content-Type"))
	}
	return doc, nil
}

// only is the digest of the one manifest of an index, or of the one for machines like this: weights have no
// platform, but images have.
func only(ref model.Ref, all []ocispec.Descriptor) (string, error) {
	var found, here []ocispec.Descriptor
	for _, d := range all {
		if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" { // buildx puts them beside
			continue
		}
		found = append(found, d)
		if d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH {
			here = append(here, d)
		}
	}
	if len(found) > 1 && len(here) == 1 {
		found = here
	}
	if len(found) != 1 {
		return "", unsupported(ref, "it is an index of %d manifests: name one of them by its digest, oci://…@sha256:…", len(found))
	}
	if found[0].Digest.Validate() != nil || found[0].Digest.Algorithm() != "sha256" {
		return "", badManifest(ref, "its index names a manifest by something else than a sha256")
	}
	return found[0].Digest.String(), nil
}

func unsupported(ref model.Ref, format string, args ...any) error {
	return &model.Error{Reason: "Unsupported", Final: true, Text: fmt.Sprintf("%s: ", ref) + fmt.Sprintf(format, args...)}
}

func badManifest(ref model.Ref, how string) error {
	return &model.Error{Reason: "BadManifest", Final: true, Text: fmt.Sprintf("%s: bad manifest: %s: push it again", ref, how)}
}

// quoted is a word of the registry's for people.
func quoted(s string) string { return fmt.Sprintf("%q", model.Printable(s)) }
