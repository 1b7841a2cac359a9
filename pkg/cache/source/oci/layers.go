package oci

import (
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	maxLayers = 100_000
	maxSize   = 1 << 50 // bytes of one layer: sums of what a manifest claims must not overflow
)

// The annotations that name a layer's file: ModelPack's, and the one of ORAS, which KitOps has too.
const (
	pathAnnotation   = "org.cncf.model.filepath"
	unpackAnnotation = "io.deis.oras.content.unpack" // ORAS: the layer is an archive of the directory it is named for
)

// unnamed holds the names of layers that carry none, by media type: Docker's models, after the files
// that Docker itself unpacks them to, and Ollama's, which are of the same kinds. A table: nobody changes it.
var unnamed = map[string]string{
	"application/vnd.docker.ai.gguf.v3":             "model.gguf",
	"application/vnd.docker.ai.gguf.v3.lora":        "adapter.gguf",
	"application/vnd.docker.ai.mmproj":              "model.mmproj",
	"application/vnd.docker.ai.chat.template.jinja": "template.jinja",
	"application/vnd.docker.ai.license":             "LICENSE",
	"application/vnd.ollama.image.model":            "model.gguf",
	"application/vnd.ollama.image.adapter":          "adapter.gguf",
	"application/vnd.ollama.image.projector":        "model.mmproj",
	"application/vnd.ollama.image.template":         "template",
	"application/vnd.ollama.image.system":           "system",
	"application/vnd.ollama.image.params":           "params.json",
	"application/vnd.ollama.image.license":          "LICENSE",
}

// layerFiles is the file that each layer is, an archive or one of the model's. A layer that is neither refuses the
// model: without it the model would be a part.
func layerFiles(ref model.Ref, config string, layers []ocispec.Descriptor) ([]model.File, error) {
	switch {
	case len(layers) == 0:
		return nil, &model.Error{Reason: "NotFound", Final: true, Text: fmt.Sprintf("%s: its manifest has no layers: no file to hold", ref)}
	case len(layers) > maxLayers:
		return nil, badManifest(ref, fmt.Sprintf("%d layers, more than %d", len(layers), maxLayers))
	}
	alike := map[string]int{} // unnamed layers by the name they would get
	for _, l := range layers {
		if title(l) == "" {
			alike[unnamed[l.MediaType]]++
		}
	}
	seen := map[string]int{}
	files := make([]model.File, 0, len(layers))
	for i, l := range layers {
		at := fmt.Sprintf("layer %d (%s)", i+1, quoted(l.MediaType))
		digest, err := model.ParseDigest(l.Digest.String())
		if err != nil || !strings.HasPrefix(l.Digest.String(), "sha256:") || l.Size < 0 || l.Size > maxSize {
			return nil, badManifest(ref, at+": want a sha256 digest and a size")
		}
		f := model.File{Size: l.Size, Digest: digest, Key: "sha256:" + string(digest)}
		if f.Archive = archive(config, l); f.Archive != "" {
			if unpackable(l.MediaType) {
				f.Path = fmt.Sprintf("layer-%06d-%s", i+1, digest[:12]) // by which the cache unpacks them in their order
				files = append(files, f)
				continue
			}
			return nil, unsupported(ref, "%s is an archive of a kind that is not unpacked: push it as tar, tar+gzip or tar+zstd, where anybody may pull it", at)
		}
		name := title(l)
		if name == "" {
			name = unnamed[l.MediaType]
			if name == "" {
				return nil, unsupported(ref, "%s does not name its file: annotate it with %s", at, ocispec.AnnotationTitle)
			}
			seen[name]++
			name = numbered(name, seen[name], alike[name])
		}
		f.Path = name
		files = append(files, f)
	}
	return files, nil
}

func title(l ocispec.Descriptor) string {
	name := l.Annotations[pathAnnotation]
	if name == "" {
		name = l.Annotations[ocispec.AnnotationTitle]
	}
	return strings.TrimPrefix(name, "./")
}

// archive is what the layer holds where it holds files rather than being one. ORAS gives plain files the media
// type of an image's layer, and says so when one is an archive. What has an image's configuration is an image:
// its layers may have titles too, of those who made it.
func archive(config string, l ocispec.Descriptor) model.Archive {
	image := strings.HasPrefix(l.MediaType, "application/vnd.oci.image.layer.") || strings.HasPrefix(l.MediaType, "application/vnd.docker.image.rootfs.")
	isImage := config == ocispec.MediaTypeImageConfig || config == dockerConfig
	switch {
	case l.Annotations[unpackAnnotation] == "true":
		return model.Directory
	case image && (isImage || title(l) == ""):
		return model.Image
	case image:
		return ""
	}
	for _, end := range []string{".tar", "+tar", "+gzip", "+zstd", ".tar.gzip", ".tar.zstd", ".tar.lz4", "+lz4"} {
		if strings.HasSuffix(l.MediaType, end) {
			return model.Directory
		}
	}
	return ""
}

// unpackable reports that the cache can unpack a layer of that type, and that the registry may hand it out.
func unpackable(mediaType string) bool {
	return !strings.HasSuffix(mediaType, "lz4") && !strings.Contains(mediaType, ".nondistributable.") && !strings.Contains(mediaType, ".foreign.")
}

// numbered tells layers of one kind apart: GGUF shards as llama.cpp looks for them, others by a suffix.
func numbered(name string, n, of int) string {
	switch base, isModel := strings.CutSuffix(name, ".gguf"); {
	case of == 1:
		return name
	case isModel:
		return fmt.Sprintf("%s-%05d-of-%05d.gguf", base, n, of)
	}
	return fmt.Sprintf("%s-%d", name, n)
}
