package arch_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/gpu-agent/gpu-agent/"

// allowed holds the arrows of the house: which of our packages each may import, and why.
// A pattern that ends in "/" covers the packages below it.
var allowed = []struct {
	pkg  string
	may  []string
	why  string
	deep bool // below pkg, not pkg itself
}{
	{"pkg/gpu", nil, "a noun: plain values", false},
	{"pkg/gpu/", []string{"pkg/gpu"}, "builds nouns for tests", true},
	{"pkg/model", []string{"internal/lazyregexp"}, "a noun: plain values", false},
	{"internal/watch", nil, "knows nothing of what it carries", false},
	{"internal/supervise", nil, "knows nothing of what it runs", false},
	{"internal/durable", nil, "knows nothing of what it stores", false},
	{"internal/lazyregexp", nil, "knows nothing of what it matches", false},
	{"internal/multibuffer", nil, "knows nothing of what it hashes", false},
	{"internal/already", nil, "is initialised before all that it does not import", false},
	{"internal/arch", nil, "looks at all, imports none", false},
	{"pkg/resource", []string{"pkg/gpu", "internal/lazyregexp"}, "a pure decision over the hardware", false},
	{"pkg/ready", []string{"pkg/gpu", "internal/watch"}, "passes the nouns on, and asks parts that it does not know", false},
	{"internal/process", nil, "knows nothing of what it runs", false},
	{"pkg/mps", []string{"pkg/gpu", "pkg/resource", "internal/process"}, "serves what is offered by MPS, and nothing else", false},
	{"pkg/cdi", []string{"pkg/gpu", "internal/durable", "internal/process"}, "a face towards the container runtime", false},
	{"pkg/cdi/generate", []string{"pkg/cdi"}, "answers what pkg/cdi asks, in a process of its own", false},
	{"pkg/nvml", []string{"pkg/gpu", "internal/watch", "internal/durable"}, "an owner knows its noun and no face; health outlives the process", false},
	{"pkg/cache", []string{"pkg/model", "pkg/cache/archive", "internal/watch", "internal/durable", "internal/multibuffer", "internal/lazyregexp"}, "an owner knows its noun and no face", false},
	{"pkg/cache/", []string{"pkg/model", "pkg/cache/source/sourcetest", "pkg/cache/source/web", "pkg/cache/source/hub", "internal/lazyregexp"}, "a source knows the nouns, and what sources of its protocol share, not who reads it", true},
	{"pkg/deviceplugin", []string{"pkg/gpu", "pkg/resource"}, "a face knows what is offered, not who found out", false},
	{"pkg/deviceplugin/", nil, "a kubelet stand-in knows the kubelet's API alone", true},
	{"pkg/exporter", []string{"pkg/gpu", "pkg/model", "pkg/resource"}, "a face", false},
	{"pkg/labels", []string{"pkg/gpu", "pkg/model", "pkg/resource"}, "a face", false},
	{"pkg/condition", []string{"pkg/gpu"}, "a face", false},
	{"pkg/kube", []string{"pkg/gpu", "pkg/resource", "internal/watch"}, "the way out knows no face", false},
	{"pkg/config", []string{"pkg/nvml", "pkg/cache", "pkg/cache/source/http", "pkg/cache/source/s3", "pkg/deviceplugin",
		"pkg/exporter", "pkg/labels", "pkg/kube", "pkg/resource", "pkg/model", "pkg/gpu", "internal/lazyregexp"}, "fills their Config", false},
}

// home names the only packages that may import a heavy module directly.
var home = map[string][]string{
	// In a process there is one owner of the driver's library: pkg/cdi/generate runs in a child.
	"github.com/NVIDIA/go-nvml":                  {"pkg/nvml", "pkg/cdi/generate"},
	"github.com/NVIDIA/nvidia-container-toolkit": {"pkg/cdi/generate"},
	"tags.cncf.io/container-device-interface":    {"pkg/cdi", "pkg/cdi/generate"},
	"github.com/prometheus/client_golang":        {"pkg/exporter"},
	"k8s.io/kubelet/pkg/apis/deviceplugin":       {"pkg/deviceplugin", "pkg/deviceplugin/kubelettest"},
	"k8s.io/kubelet/pkg/apis/podresources":       {"pkg/kube"},
	"k8s.io/kubelet/pkg/apis/pods":               {"pkg/kube"},
	"k8s.io/client-go":                           {"pkg/kube"},
	"github.com/aws/aws-sdk-go-v2":               {"pkg/cache/source/s3"},
	"github.com/klauspost/compress":              {"pkg/cache/archive"},
	"github.com/klauspost/cpuid":                 {"internal/multibuffer"},
	"github.com/minio/crc64nvme":                 {"pkg/model"},
	"oras.land/oras-go/v2":                       {"pkg/cache/source/oci"},
	"golang.org/x/oauth2":                        {"pkg/cache/source/gs", "pkg/cache/source/az"},
	"github.com/prometheus/exporter-toolkit":     {"cmd/gpu-agent"},
	"github.com/spf13/cobra":                     {"cmd/gpu-agent"},
	// What is compiled when a package is initialised costs every command, and each init container that waits.
	"regexp": {"internal/lazyregexp"},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	require.NoError(t, err)
	var list []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		list = append(list, p)
	}
	require.Greater(t, len(list), 15, "go list found the tree")
	return list
}

func TestImportsFollowTheArrows(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, in := range p.Imports {
			to, ours := strings.CutPrefix(in, module)
			if !ours {
				continue
			}
			checkArrow(t, name, to)
		}
	}
}

func checkArrow(t *testing.T, from, to string) {
	t.Helper()
	if strings.HasPrefix(from, "cmd/") || strings.HasPrefix(from, "bench/") {
		return
	}
	for _, rule := range allowed {
		if from != rule.pkg && !(rule.deep && strings.HasPrefix(from, rule.pkg)) {
			continue
		}
		for _, may := range rule.may {
			if to == may {
				return
			}
		}
		t.Errorf("%s imports %s, but may import only %v: %s", from, to, rule.may, rule.why)
		return
	}
	t.Errorf("%s imports %s and has no rule here: add one, with its reason", from, to)
}

func TestEachHeavyModuleHasOneHome(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, in := range p.Imports {
			for heavy, homes := range home {
				if in != heavy && !strings.HasPrefix(in, heavy+"/") {
					continue
				}
				require.Contains(t, homes, name, "%s imports %s", name, in)
			}
		}
	}
}

// TestNoTemplates holds the binary down: a program that can reach text/template keeps every exported method of
// every type, among them the operations of S3 that nothing calls (9 MB; see third_party/conntrack). These two
// import it for functions that the agent does not reach.
func TestNoTemplates(t *testing.T) {
	unreached := map[string]bool{
		"github.com/prometheus/exporter-toolkit/web": true, // its landing page
		"github.com/spf13/cobra":                     true, // usage texts of one's own
		"html/template":                              true,
	}
	cmd := exec.Command("go", "list", "-tags=grpcnotrace", "-deps", "-json=ImportPath,Imports", "./cmd/gpu-agent")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	require.NoError(t, err)
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return
		} else {
			require.NoError(t, err)
		}
		if slices.Contains(p.Imports, "text/template") || slices.Contains(p.Imports, "html/template") {
			require.True(t, unreached[p.ImportPath], "%s imports templates", p.ImportPath)
		}
	}
}
