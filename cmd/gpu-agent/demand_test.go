package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/kube"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestWhatAPodNeedsIsInItsAnnotationAndItsVolumes(t *testing.T) {
	created := time.Unix(1_800_000_000, 0)
	pod := kube.Pod{
		UID: "1", Namespace: "ns", Name: "p", Created: created, Models: "llama, mistral@abc, x=hf://org/x, y=hf://other/y, BAD",
		HostPaths: []string{"/cache/models", "/cache/models/by-name/a", "/cache/models/by-name/b@r2/sub", "/cache/store", "/cache/modelsX/by-name/c",
			"/cache/models/hub", "/cache/models/by-name", "/cache/models/hub/models--org--c", "/cache/models/hub/models--d/snapshots",
			"/cache/models/hub/models--e/snapshots/0123/sub", "/cache/models/hub/other", "/by-name/x", "/elsewhere/models/by-name/x"},
	}
	use := func(name, revision string, pull bool) model.Use {
		return model.Use{Model: name, Revision: revision, Since: created, By: "ns/p", Pull: pull}
	}
	repo := func(name, revision string) model.Use {
		return model.Use{Repo: name, Revision: revision, Since: created, By: "ns/p"}
	}
	mounted := []model.Use{use("a", "", false), use("b", "r2", false), repo("org/c", ""), repo("d", ""), repo("e", "0123")}

	uses, problems := usesOf(pod, config.Demand{}, "/cache/models")
	require.Equal(t, append([]model.Use{use("llama", "", true), use("mistral", "abc", true)}, mounted...), uses)
	require.Len(t, problems, 3)
	require.ErrorContains(t, problems[0], "model name")
	require.EqualError(t, problems[1], "hf://org/x: not among what pods may ask for: see cache.demand.prefixes, or name a model of the config")

	uses, problems = usesOf(pod, config.Demand{References: true, Prefixes: []string{"hf://org/"}}, "/cache/models")
	x := use("x", "", true)
	x.Source = model.Ref{Scheme: "hf", Host: "org", Path: "/x"}
	require.Equal(t, append([]model.Use{use("llama", "", true), use("mistral", "abc", true), x}, mounted...), uses)
	require.Len(t, problems, 2)
	require.ErrorContains(t, problems[1], "hf://other/y: not among")
}

func TestAMountOfAModelOnAFurtherDiskIsUseOfIt(t *testing.T) {
	c := config.Config{Cache: config.Cache{Root: "/cache", Disks: []config.Disk{{Name: "b", Root: "/cache/disks/b"}}}}
	pod := kube.Pod{Namespace: "ns", Name: "p", HostPaths: []string{
		"/cache/models/by-name/a", "/cache/disks/b/models/by-name/b", "/cache/models/disks/b/by-name/c@r1", "/cache/models/disks/b", "/cache/disks/b/store/by-name/x"}}
	uses, problems := usesOf(pod, config.Demand{}, hostModels(c)...)
	require.Empty(t, problems)
	require.Equal(t, []model.Use{{Model: "a", By: "ns/p"}, {Model: "b", By: "ns/p"}, {Model: "c", Revision: "r1", By: "ns/p"}}, uses)
}

func TestWhatPodsAskForInVainIsShown(t *testing.T) {
	const refused = "pod ns/p asks for model x: nobody knows it"
	s := &state{Snapshot: &gpu.Snapshot{}, Cache: &model.Inventory{Refused: []string{refused}}}
	for name, show := range map[string]func(io.Writer) error{
		"models ls":      func(w io.Writer) error { return printModels(w, s.Cache) },
		"status":         s.print,
		"page":           func(w io.Writer) error { return writePage(w, s) },
		"models explain": func(w io.Writer) error { return printExplanation(w, model.Explanation{Refused: s.Cache.Refused}) },
	} {
		var out strings.Builder
		require.NoError(t, show(&out))
		require.Contains(t, out.String(), refused, name)
	}
}

func TestWhichModelsAreForThisNode(t *testing.T) {
	gib := uint64(1) << 30
	l4, h100 := gpu.Device{Name: "NVIDIA L4", Memory: 24 * gib, ComputeMajor: 8, ComputeMinor: 9}, gpu.Device{Name: "NVIDIA H100 80GB HBM3", Memory: 80 * gib, ComputeMajor: 9}
	split := h100
	split.MIGEnabled, split.Instances = true, []gpu.Instance{{Memory: 10 * gib}}
	node := func(d ...gpu.Device) *gpu.Snapshot {
		return &gpu.Snapshot{Driver: gpu.Driver{Loaded: true}, Devices: d}
	}
	none := &gpu.Snapshot{Driver: gpu.Driver{Error: "no library"}}
	for name, tc := range map[string]struct {
		needs    config.GPUNeeds
		selector map[string]string
		s        *gpu.Snapshot
		labels   map[string]string
		unfit    string
		unsure   string
	}{
		"nothing is needed":          {s: none},
		"memory that is there":       {needs: config.GPUNeeds{MinMemory: 80 << 30}, s: node(l4, h100)},
		"memory that is not":         {needs: config.GPUNeeds{MinMemory: 80 << 30}, s: node(l4), unfit: "not for this node: needs 80.0 GiB of GPU memory, the largest here has 24.0 GiB"},
		"of an instance":             {needs: config.GPUNeeds{MinMemory: 20 << 30}, s: node(split), unfit: "not for this node: needs 20.0 GiB of GPU memory, the largest here has 10.0 GiB"},
		"of the named product alone": {needs: config.GPUNeeds{MinMemory: 80 << 30, Products: []string{"*L4"}}, s: node(l4, h100), unfit: "not for this node: needs 80.0 GiB of GPU memory, the largest here has 24.0 GiB"},
		"another product":            {needs: config.GPUNeeds{Products: []string{"*A100*", "*T4"}}, s: node(l4, h100), unfit: "not for this node: needs a GPU of *A100* or *T4, here is NVIDIA H100 80GB HBM3, NVIDIA L4"},
		"compute capability":         {needs: config.GPUNeeds{MinComputeCapability: "8.9"}, s: node(l4)},
		"a newer one":                {needs: config.GPUNeeds{MinComputeCapability: "9.0"}, s: node(l4), unfit: "not for this node: needs compute capability 9.0, the best here has 8.9"},
		"no GPU":                     {needs: config.GPUNeeds{MinComputeCapability: "9.0"}, s: node(), unfit: "not for this node: needs a GPU, there is none here"},
		"no driver yet":              {needs: config.GPUNeeds{MinMemory: 1}, s: none, unsure: "not known yet whether it is for this node: no library"},
		"a driver that went away":    {needs: config.GPUNeeds{MinMemory: 80 << 30}, s: &gpu.Snapshot{Devices: []gpu.Device{h100}}},
		"labels not read yet":        {selector: map[string]string{"a": "b"}, s: none, unsure: "not known yet whether it is for this node: the node's labels have not been read"},
		"the label":                  {selector: map[string]string{"a": "b"}, s: none, labels: map[string]string{"a": "b"}},
		"another label":              {selector: map[string]string{"a": "b"}, s: none, labels: map[string]string{"a": "c"}, unfit: "not for this node: needs label a=b, this node has c"},
		"no label":                   {selector: map[string]string{"a": "b"}, s: none, labels: map[string]string{}, unfit: "not for this node: needs label a=b, this node has no a"},
	} {
		unfit, unsure := fits(config.Model{GPU: tc.needs, NodeSelector: tc.selector}, tc.s, tc.labels)
		require.Equal(t, tc.unfit, unfit, name)
		require.Equal(t, tc.unsure, unsure, name)
	}
}
