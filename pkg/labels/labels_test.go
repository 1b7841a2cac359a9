package labels

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// node is n GPUs like d.
func node(n int, d gpu.Device) *gpu.Snapshot {
	s := gputest.Node(0)
	for i := range n {
		d.Index, d.UUID = i, gputest.UUID(i)
		s.Devices = append(s.Devices, d)
	}
	return s
}

func a100() gpu.Device {
	return gpu.Device{Name: "NVIDIA A100-SXM4-40GB", Memory: 40 << 30, ComputeMajor: 8, MIGCapable: true}
}

// t4 is MIG-capable like the simulated one that the fixture was recorded from; a real T4 is not.
func t4() gpu.Device {
	return gpu.Device{Name: "NVIDIA T4", Memory: 16 << 30, ComputeMajor: 7, ComputeMinor: 5, MIGCapable: true}
}

func h100() gpu.Device { return gputest.Node(1).Devices[0] }

// offer is replicas units of every GPU, as the kubelet sees them.
func offer(name string, s *gpu.Snapshot, replicas int) []resource.Offer {
	o := resource.Offer{Resource: name, Renamed: strings.HasSuffix(name, ".shared")}
	if replicas > 1 {
		o.Sharing = resource.TimeSliced
	}
	for _, d := range s.Devices {
		for i := range replicas {
			id := resource.ID(d.UUID)
			if replicas > 1 {
				id = resource.ID(fmt.Sprintf("%s::%d", d.UUID, i))
			}
			o.Units = append(o.Units, resource.Unit{ID: id, Device: d.UUID, Healthy: true})
		}
	}
	return []resource.Offer{o}
}

func shared(name string, replicas int) *resource.Sharing {
	return &resource.Sharing{Resources: []resource.Shared{{Name: name, Replicas: replicas}}}
}

func of(t *testing.T, cfg resource.Config, s *gpu.Snapshot) Input {
	t.Helper()
	p, err := resource.NewPolicy(cfg)
	require.NoError(t, err)
	return Of(p, s)
}

// recorded is what GFD 0.20 printed. gpu.machine is of the machine that it ran on.
func recorded(t *testing.T, name string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	l := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		require.True(t, ok, line)
		l[key] = value
	}
	require.Greater(t, len(l), 20)
	delete(l, "nvidia.com/gpu.machine")
	return l
}

func TestLabelsAreThoseOfGFD(t *testing.T) {
	t.Parallel()
	h := node(8, h100())
	tests := map[string]struct {
		s   *gpu.Snapshot
		cfg resource.Config
	}{
		"h100.labels":        {h, resource.Config{}},
		"h100-ts4.labels":    {h, resource.Config{TimeSlicing: shared("nvidia.com/gpu", 4)}},
		"h100-single.labels": {h, resource.Config{MIGStrategy: resource.MIGSingle}},
		"a100.labels":        {node(8, a100()), resource.Config{}},
		"t4.labels":          {node(4, t4()), resource.Config{}},
	}
	for file, tt := range tests {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			in := of(t, tt.cfg, tt.s)
			in.Machine = "Standard PC (Q35 + ICH9, 2009)"
			got := For(in)
			require.Equal(t, "Standard-PC-Q35-ICH9-2009", got["nvidia.com/gpu.machine"])
			delete(got, "nvidia.com/gpu.machine")
			for key := range got {
				if strings.HasPrefix(key, ownPrefix) {
					delete(got, key)
				}
			}
			require.Equal(t, recorded(t, file), got)
		})
	}
}

func TestOurOwnLabels(t *testing.T) {
	t.Parallel()
	s := gputest.Sick(gputest.Node(8), 3, gpu.Lost)
	s.Simulated = true
	got := For(Input{Snapshot: s, Inventory: &model.Inventory{Models: []model.Status{
		{Name: "big", State: model.Removing, Revision: "0123456789abcdef"},
		{Name: "llama-3.1-8b", State: model.Ready, Revision: "3b1c9f0a2d4e5566"},
		{Name: "pulling", State: model.Pulling, Revision: "3b1c9f0a2d4e5566"},
		{Name: "etag", State: model.Ready, Revision: `"9-abc"`},
		{Name: "odd", State: model.Ready, Revision: `12345678901-x`},
		{Name: "bare", State: model.Ready},
	}}})
	own := map[string]string{}
	for key, value := range got {
		if !strings.HasPrefix(key, nvidiaPrefix) {
			own[key] = value
		}
	}
	require.Equal(t, map[string]string{
		"gpu-agent.dev/gpu.healthy":                         "7",
		"gpu-agent.dev/simulated":                           "true",
		"gpu-agent.dev/product.nvidia-h100-80gb-hbm3.count": "8",
		"models.gpu-agent.dev/llama-3.1-8b":                 "3b1c9f0a2d4e",
		"models.gpu-agent.dev/etag":                         "9-abc",
		"models.gpu-agent.dev/odd":                          "12345678901",
		"models.gpu-agent.dev/bare":                         "unknown",
	}, own)
	require.Equal(t, "8", got["nvidia.com/gpu.count"], "a lost GPU stays in the count")
	require.Equal(t, "unknown", got["nvidia.com/gpu.machine"])
}

func TestNothingIsSaidOfGPUsThatAreNotThere(t *testing.T) {
	t.Parallel()
	inv := &model.Inventory{Models: []model.Status{{Name: "m", State: model.Ready, Revision: "r1"}}}
	for _, s := range []*gpu.Snapshot{nil, {}, {Driver: gpu.Driver{Loaded: true, Version: "550.1"}}} {
		require.Equal(t, map[string]string{"models.gpu-agent.dev/m": "r1"}, For(Input{Snapshot: s, Inventory: inv}))
	}
}

func TestAMixedNodeAlwaysShowsTheSameModel(t *testing.T) {
	t.Parallel()
	l40s := gpu.Device{Name: "NVIDIA L40S", Memory: 48 << 30, ComputeMajor: 8, ComputeMinor: 9, PCIClass: 0x030200}
	older := l40s
	older.Name = "NVIDIA L40"
	vga := t4()
	vga.PCIClass = 0x030000
	tests := map[string]struct {
		devices             []gpu.Device
		product, count, mem string
	}{
		"the most GPUs":     {[]gpu.Device{t4(), t4(), l40s}, "NVIDIA-T4", "2", "16384"},
		"then more memory":  {[]gpu.Device{t4(), t4(), l40s, l40s}, "NVIDIA-L40S", "2", "49152"},
		"then by name":      {[]gpu.Device{l40s, older}, "NVIDIA-L40", "1", "49152"},
		"nameless are left": {[]gpu.Device{{}, {}, {Name: "(?)"}, t4()}, "NVIDIA-T4", "1", "16384"},
		"memory unknown":    {[]gpu.Device{{Name: "NVIDIA T4"}, vga, l40s}, "NVIDIA-T4", "2", "16384"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(1, 2))
			var first map[string]string
			for range 50 {
				s := &gpu.Snapshot{Driver: gpu.Driver{Loaded: true}, Devices: tt.devices}
				rnd.Shuffle(len(s.Devices), func(i, j int) { s.Devices[i], s.Devices[j] = s.Devices[j], s.Devices[i] })
				got := For(Input{Snapshot: s})
				if first == nil {
					first = got
				}
				require.Equal(t, first, got)
			}
			require.Equal(t, tt.product, first["nvidia.com/gpu.product"])
			require.Equal(t, tt.count, first["nvidia.com/gpu.count"])
			require.Equal(t, tt.mem, first["nvidia.com/gpu.memory"])
		})
	}
	mixed := For(Input{Snapshot: &gpu.Snapshot{Devices: []gpu.Device{vga, vga, l40s}}})
	require.Equal(t, "2", mixed["gpu-agent.dev/product.nvidia-t4.count"])
	require.Equal(t, "1", mixed["gpu-agent.dev/product.nvidia-l40s.count"])
	require.Equal(t, "unknown", mixed["nvidia.com/gpu.mode"])
	require.Equal(t, "graphics", For(Input{Snapshot: node(2, vga)})["nvidia.com/gpu.mode"])
	require.Equal(t, "compute", For(Input{Snapshot: node(2, l40s)})["nvidia.com/gpu.mode"])
}

func TestShares(t *testing.T) {
	t.Parallel()
	s := node(2, t4())
	renamed := For(Input{Snapshot: s, Offers: offer("nvidia.com/gpu.shared", s, 3)})
	require.Equal(t, "NVIDIA-T4", renamed["nvidia.com/gpu.product"], "the resource's name tells already")
	require.Equal(t, "3", renamed["nvidia.com/gpu.replicas"])
	require.Equal(t, "time-slicing", renamed["nvidia.com/gpu.sharing-strategy"])

	split := t4()
	split.MIGEnabled = true
	require.Equal(t, "0", For(Input{Snapshot: node(2, split)})["nvidia.com/gpu.replicas"])
}

func TestACliqueIsShownOnlyIfThereIsOne(t *testing.T) {
	t.Parallel()
	s := gputest.Node(4)
	s.Devices[1].Fabric = nil
	require.Equal(t, "00000000-0000-0000-0000-000000000001.0", For(Input{Snapshot: s})["nvidia.com/gpu.clique"])
	s.Devices[2].Fabric = &gpu.Fabric{ClusterUUID: "00000000-0000-0000-0000-000000000001", CliqueID: 1}
	require.NotContains(t, For(Input{Snapshot: s}), "nvidia.com/gpu.clique")
}

func TestFamilies(t *testing.T) {
	t.Parallel()
	for cc, want := range map[[2]int]string{
		{1, 3}: "tesla", {2, 0}: "fermi", {3, 7}: "kepler", {4, 0}: "undefined", {5, 2}: "maxwell", {6, 1}: "pascal",
		{7, 0}: "volta", {7, 4}: "volta", {7, 5}: "turing", {8, 0}: "ampere", {8, 8}: "ampere", {8, 9}: "ada-lovelace",
		{9, 0}: "hopper", {10, 0}: "blackwell", {11, 0}: "undefined", {12, 0}: "blackwell", {13, 0}: "rubin", {14, 0}: "undefined",
	} {
		require.Equal(t, want, family(cc[0], cc[1]), cc)
	}
}

func TestVersions(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		driver gpu.Driver
		want   map[string]string
		absent []string
	}{
		"two parts": {gpu.Driver{Version: "610.43", CUDAVersion: 13110}, map[string]string{
			"nvidia.com/cuda.driver-version.full": "610.43", "nvidia.com/cuda.driver-version.revision": "",
			"nvidia.com/cuda.driver.rev": "", "nvidia.com/cuda.runtime-version.full": "13.11",
			"nvidia.com/cuda.runtime.minor": "11",
		}, nil},
		"unknown": {gpu.Driver{}, nil, []string{"nvidia.com/cuda.driver.major", "nvidia.com/cuda.runtime.major"}},
		"odd":     {gpu.Driver{Version: "tegra"}, nil, []string{"nvidia.com/cuda.driver-version.full"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := driverLabels(tt.driver)
			require.Subset(t, got, tt.want)
			for _, key := range tt.absent {
				require.NotContains(t, got, key)
			}
		})
	}
}

// The API server's rules: k8s.io/apimachinery/pkg/util/validation.
var (
	validName  = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	validValue = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)
)

func requireValid(t *testing.T, l map[string]string) {
	t.Helper()
	for key, value := range l {
		_, name, ok := strings.Cut(key, "/")
		require.True(t, ok, key)
		require.Regexp(t, validName, name)
		require.Regexp(t, validValue, value, key)
	}
}

func TestTheAPIServerAcceptsWhateverTheDriverSays(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("NVIDIA RTX PRO 6000 Blackwell ", 4)
	for _, name := range []string{
		long, long + "B", "-odd-", "NVIDIA\x00GPU\n", "GPU ™", "名前", strings.Repeat("a", 62) + ".bcd", strings.Repeat("-", 90), "_", "a",
	} {
		d := t4()
		d.Name = name
		s := node(2, d)
		s.Driver.Version = name
		requireValid(t, For(Input{Snapshot: s, Offers: offer("nvidia.com/gpu", s, 2), Machine: name}))
	}
	one, other := node(1, gpu.Device{Name: long + "A"}), node(1, gpu.Device{Name: long + "B"})
	p, q := For(Input{Snapshot: one})["nvidia.com/gpu.product"], For(Input{Snapshot: other})["nvidia.com/gpu.product"]
	require.Len(t, p, 63)
	require.NotEqual(t, p, q, "long names that begin alike stay two")
	require.Equal(t, p[:54], q[:54])
}

func FuzzSanitise(f *testing.F) {
	f.Add("NVIDIA H100 80GB HBM3", uint8(63))
	f.Add("..a. -b__", uint8(20))
	f.Fuzz(func(t *testing.T, s string, limit uint8) {
		n := 10 + int(limit)%54
		got := fit(sanitise(s), n)
		require.LessOrEqual(t, len(got), n)
		require.Regexp(t, validValue, got)
	})
}

func TestSanitise(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"NVIDIA H100 80GB HBM3":     "NVIDIA-H100-80GB-HBM3",
		"  NVIDIA   T4 ":            "NVIDIA-T4",
		"GRID V100D-8Q (shared)":    "GRID-V100D-8Q-shared",
		"Quadro\tRTX":               "QuadroRTX",
		"NVIDIA A100-SXM4-40GB.":    "NVIDIA-A100-SXM4-40GB",
		"ProLiant DL380a_Gen11/x,y": "ProLiant-DL380a_Gen11xy",
	} {
		require.Equal(t, want, sanitise(in))
	}
}
