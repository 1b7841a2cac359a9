package oci_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/oci"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func raw(mediaType string, annotations map[string]string) ocispec.Descriptor {
	d := layer(mediaType, "", []byte(mediaType+fmt.Sprint(annotations)))
	d.Annotations = annotations
	return d
}

func TestEachFormatNamesItsFiles(t *testing.T) {
	t.Parallel()
	const path, title = "org.cncf.model.filepath", ocispec.AnnotationTitle
	for name, c := range map[string]struct {
		layers []ocispec.Descriptor
		want   string
	}{
		"ModelPack": {[]ocispec.Descriptor{
			raw("application/vnd.cncf.model.weight.v1.raw", map[string]string{path: "model.safetensors"}),
			raw("application/vnd.cncf.model.weight.config.v1.raw", map[string]string{path: "config.json", title: "other"}),
			raw("application/vnd.cncf.model.doc.v1.raw", map[string]string{path: "docs/README.md"}),
		}, "config.json docs/README.md model.safetensors"},
		"ORAS": {[]ocispec.Descriptor{
			raw("application/vnd.oci.image.layer.v1.tar", map[string]string{title: "./model.safetensors"}),
			raw("application/vnd.oci.image.layer.v1.tar+gzip", map[string]string{title: "code.tar.gz"}),
			raw("text/markdown", map[string]string{title: "README.md"}),
		}, "README.md code.tar.gz model.safetensors"},
		"Docker": {[]ocispec.Descriptor{
			raw("application/vnd.docker.ai.gguf.v3", nil),
			raw("application/vnd.docker.ai.license", map[string]string{"n": "1"}),
			raw("application/vnd.docker.ai.license", map[string]string{"n": "2"}),
			raw("application/vnd.docker.ai.mmproj", nil),
		}, "LICENSE-1 LICENSE-2 model.gguf model.mmproj"},
		"Docker, in shards": {[]ocispec.Descriptor{
			raw("application/vnd.docker.ai.gguf.v3", nil), raw("application/vnd.docker.ai.gguf.v3", map[string]string{"n": "2"}),
		}, "model-00001-of-00002.gguf model-00002-of-00002.gguf"},
		"Ollama": {[]ocispec.Descriptor{
			raw("application/vnd.ollama.image.model", nil), raw("application/vnd.ollama.image.params", nil),
		}, "model.gguf params.json"},
	} {
		reg, host := newRegistry(t)
		reg.put("m", "latest", ocispec.MediaTypeImageManifest, manifest(t, c.layers...))
		m, err := newSource(t, oci.Config{}).Resolve(t.Context(), sourcetest.Ref(t, "oci://"+host+"/m"))
		require.NoError(t, err, name)
		var paths []string
		for _, f := range m.Files {
			paths = append(paths, f.Path)
			require.Equal(t, "sha256:"+string(f.Digest), f.Key)
		}
		require.Equal(t, c.want, strings.Join(paths, " "), name)
	}
}

func TestResolveRefusesWhatIsNotFiles(t *testing.T) {
	t.Parallel()
	big := raw("application/x", map[string]string{ocispec.AnnotationTitle: "big"})
	big.Size = 1 << 60
	sha512 := big
	sha512.Size, sha512.Digest = 1, digest.SHA512.FromString("x")
	named := func(title string) ocispec.Descriptor {
		return raw("application/x", map[string]string{ocispec.AnnotationTitle: title})
	}
	const archived = "is an archive of a kind that is not unpacked: push it as tar, tar+gzip or tar+zstd, where anybody may pull it"
	for name, c := range map[string]struct {
		layers []ocispec.Descriptor
		reason string
		text   string
	}{
		"lz4": {[]ocispec.Descriptor{named("a"), raw("application/vnd.cncf.model.weight.v1.tar+lz4", nil)}, "Unsupported",
			`layer 2 ("application/vnd.cncf.model.weight.v1.tar+lz4") ` + archived},
		"Windows's base":   {[]ocispec.Descriptor{raw("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", nil)}, "Unsupported", archived},
		"no name":          {[]ocispec.Descriptor{raw("application/\x1b[31m", nil)}, "Unsupported", "does not name its file: annotate it with org.opencontainers.image.title"},
		"no layers":        {nil, "NotFound", "no layers"},
		"climbs":           {[]ocispec.Descriptor{named("../../etc/cron.d/x")}, "BadPath", "leaves the model's directory"},
		"absolute":         {[]ocispec.Descriptor{named("/etc/passwd")}, "BadPath", "absolute"},
		"twice":            {[]ocispec.Descriptor{named("a"), named("a")}, "BadPath", "twice"},
		"impossible size":  {[]ocispec.Descriptor{big}, "BadManifest", "want a sha256 digest and a size"},
		"another checksum": {[]ocispec.Descriptor{sha512}, "BadManifest", "want a sha256 digest and a size"},
	} {
		reg, host := newRegistry(t)
		reg.put("m", "latest", ocispec.MediaTypeImageManifest, manifest(t, c.layers...))
		_, err := newSource(t, oci.Config{}).Resolve(t.Context(), sourcetest.Ref(t, "oci://"+host+"/m"))
		require.Equal(t, c.reason, model.ReasonOf(err), "%s: %v", name, err)
		require.True(t, model.IsFinal(err), name)
		require.ErrorContains(t, err, c.text, name)
		require.NotContains(t, err.Error(), "\x1b", name)
	}
}

// TestArchivesAreNamedInTheOrderOfTheirLayers, for that is the order in which they are unpacked.
func TestArchivesAreNamedInTheOrderOfTheirLayers(t *testing.T) {
	t.Parallel()
	title := func(s string) map[string]string { return map[string]string{ocispec.AnnotationTitle: s} }
	const ociLayer, dockerLayer = "application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"
	unpack := title("dir")
	unpack["io.deis.oras.content.unpack"] = "true"
	for name, c := range map[string]struct {
		config string
		layers []ocispec.Descriptor
		want   []model.Archive
	}{
		"an image":                    {ocispec.MediaTypeImageConfig, []ocispec.Descriptor{raw(ociLayer, nil), raw(ociLayer, nil)}, []model.Archive{"image", "image"}},
		"Docker's image":              {"application/vnd.docker.container.image.v1+json", []ocispec.Descriptor{raw(dockerLayer, nil)}, []model.Archive{"image"}},
		"an image with titles":        {ocispec.MediaTypeImageConfig, []ocispec.Descriptor{raw(ociLayer, title("model.gguf"))}, []model.Archive{"image"}},
		"ORAS's file":                 {"application/vnd.oci.empty.v1+json", []ocispec.Descriptor{raw(ociLayer, title("a"))}, []model.Archive{""}},
		"ORAS's directory and a file": {"application/vnd.oci.empty.v1+json", []ocispec.Descriptor{raw(ociLayer, unpack), raw(ociLayer, title("z"))}, []model.Archive{"directory", ""}},
		"ModelPack": {"application/vnd.cncf.model.config.v1+json", []ocispec.Descriptor{
			raw("application/vnd.cncf.model.weight.v1.tar", map[string]string{"org.cncf.model.filepath": "w"}),
			raw("application/vnd.cncf.model.doc.v1.tar+zstd", map[string]string{"org.cncf.model.filepath": "d"})}, []model.Archive{"directory", "directory"}},
		"KitOps": {"application/vnd.kitops.modelkit.config.v1+json", []ocispec.Descriptor{
			raw("application/vnd.kitops.modelkit.model.v1.tar+gzip", nil), raw("application/vnd.kitops.modelkit.code.v1.tar", nil)}, []model.Archive{"directory", "directory"}},
	} {
		reg, host := newRegistry(t)
		for i := range c.layers { // told apart
			c.layers[i].Digest = digest.Digest(sha([]byte{byte(i)}))
		}
		text, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{MediaType: c.config}, Layers: c.layers})
		require.NoError(t, err)
		reg.put("m", "latest", ocispec.MediaTypeImageManifest, text)
		m, err := newSource(t, oci.Config{}).Resolve(t.Context(), sourcetest.Ref(t, "oci://"+host+"/m"))
		require.NoError(t, err, name)
		var got []model.Archive
		for i, f := range m.Files {
			got = append(got, f.Archive)
			require.Equal(t, c.layers[i].Digest.String(), f.Key, name)
			if f.Archive != "" {
				require.Equal(t, fmt.Sprintf("layer-%06d-%s", i+1, f.Digest[:12]), f.Path, name)
			}
		}
		require.Equal(t, c.want, got, name)
	}
}

func TestAManifestIsWhatItsDigestSays(t *testing.T) {
	t.Parallel()
	reg, host := newRegistry(t)
	one := manifest(t, reg.layer("application/x", "a", []byte("one")))
	two := manifest(t, reg.layer("application/x", "a", []byte("two")))
	reg.put("m", "v1", ocispec.MediaTypeImageManifest, one)
	s := newSource(t, oci.Config{})
	pinned := "oci://" + host + "/m@" + sha(one)
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, pinned))
	require.NoError(t, err)
	require.Equal(t, strings.TrimPrefix(sha(one), "sha256:"), m.Revision, "as registries show it")
	byTag, err := s.Resolve(t.Context(), sourcetest.Ref(t, "oci://"+host+"/m:v1@"+sha(one)))
	require.NoError(t, err)
	require.Equal(t, m, byTag, "the digest outweighs the tag")

	reg.manifests["m:"+sha(one)] = two
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, pinned))
	require.Equal(t, "WrongDigest", model.ReasonOf(err), "%v", err)
	reg.answer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Docker-Content-Digest", sha(one))
		_, _ = w.Write(two)
		return true
	})
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "oci://"+host+"/m:v1"))
	require.Equal(t, "WrongDigest", model.ReasonOf(err), "%v", err)

	for name, c := range map[string]struct{ body, text string }{
		"JSON for ever": {strings.Repeat(" ", 4<<20) + "{}", "larger than 4 MiB"},
		"HTML":          {"<html>", "not JSON"},
		"wrong types":   {`{"layers": 1}`, "not JSON of a manifest"},
		"another type":  {`{"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws\u001b"}`, "not a manifest of layers"},
		"no type":       {`{}`, "not a manifest of layers"},
	} {
		reg.answer(func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write([]byte(c.body))
			return true
		})
		_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "oci://"+host+"/m:v1"))
		require.ErrorContains(t, err, c.text, name)
		require.True(t, model.IsFinal(err), name)
		require.NotContains(t, err.Error(), "\x1b", name)
	}
}

func TestAnIndexOfOneManifestIsThatManifest(t *testing.T) {
	t.Parallel()
	reg, host := newRegistry(t)
	text := manifest(t, reg.layer("application/x", "a", []byte("one")))
	reg.put("m", "unused", ocispec.MediaTypeImageManifest, text)
	inner := layer(ocispec.MediaTypeImageManifest, "", text)
	note := layer(ocispec.MediaTypeImageManifest, "", []byte("sbom"))
	note.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	put := func(all ...ocispec.Descriptor) {
		index, err := json.Marshal(ocispec.Index{Manifests: all}) // OCI's own need not say its type in the text
		require.NoError(t, err)
		reg.put("m", "v1", ocispec.MediaTypeImageIndex, index)
	}
	ref := sourcetest.Ref(t, "oci://"+host+"/m:v1")
	s := newSource(t, oci.Config{})

	put(inner, note)
	m, err := s.Resolve(t.Context(), ref)
	require.NoError(t, err)
	require.Equal(t, strings.TrimPrefix(sha(text), "sha256:"), m.Revision)

	put(inner, inner)
	_, err = s.Resolve(t.Context(), ref)
	require.EqualError(t, err, ref.String()+": it is an index of 2 manifests: name one of them by its digest, oci://…@sha256:…")
	other, mine, theirs := layer(ocispec.MediaTypeImageManifest, "", []byte("x")), inner, inner
	mine.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	other.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	theirs.Platform = &ocispec.Platform{OS: "windows", Architecture: runtime.GOARCH}
	put(other, theirs, mine, note)
	m, err = s.Resolve(t.Context(), ref)
	require.NoError(t, err)
	require.Equal(t, strings.TrimPrefix(sha(text), "sha256:"), m.Revision, "an image for this machine")
	odd := inner
	odd.Digest = "sha256:../../../_catalog"
	put(odd)
	_, err = s.Resolve(t.Context(), ref)
	require.Equal(t, "BadManifest", model.ReasonOf(err), "%v", err)
}

func TestRefsThatNoRegistryKnows(t *testing.T) {
	t.Parallel()
	s := newSource(t, oci.Config{})
	for _, ref := range []string{
		"oci://host", "oci://host/", "oci://host/Upper", "oci://host/a:", "oci://host/a@sha256:abc", "oci://host/a%2Fb", "oci://host/../a",
		"oci://host/a?tag=x", "oci://host/a#sha256=" + strings.Repeat("a", 64),
	} {
		r := sourcetest.Ref(t, ref)
		_, err := s.Resolve(t.Context(), r)
		require.Equal(t, "BadSource", model.ReasonOf(err), "%s: %v", ref, err)
		require.True(t, model.IsFinal(err))
		require.ErrorContains(t, err, r.String())
		_, err = s.Open(t.Context(), r, model.File{Size: 1}, 0, 1)
		require.Equal(t, "BadSource", model.ReasonOf(err), ref)
	}
}
