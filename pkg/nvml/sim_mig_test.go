package nvml

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// shared is the number of steps that two GPUs have in common.
func shared(a, b gpu.Device) int {
	n := 0
	for n < len(a.PCIPath) && n < len(b.PCIPath) && a.PCIPath[n] == b.PCIPath[n] {
		n++
	}
	return n
}

func TestSimulatedTopologyIsThatOfRealNodes(t *testing.T) {
	for _, tc := range []struct {
		gpu       string
		perSwitch int
		links     []gpu.NVLink
	}{
		{"A100", 2, []gpu.NVLink{{Count: 12}}},
		{"H100", 1, []gpu.NVLink{{Count: 18}}},
		{"B200", 1, []gpu.NVLink{{Count: 18}}},
		{"L40S", 2, nil},
		{"T4", 1, nil},
	} {
		for count := 1; count <= maxSimulated; count++ {
			t.Run(fmt.Sprintf("%d %s", count, tc.gpu), func(t *testing.T) {
				simulate(t, Simulation{GPU: tc.gpu, Count: count}, func(t *testing.T, m *Monitor) {
					devices := m.Get().Devices
					nodes := map[string]string{} // who sits at a PCI address
					for i, a := range devices {
						require.Equal(t, tc.links, a.NVLinks)
						require.Len(t, a.PCIPath, 5)
						require.Equal(t, sysfsBusID(a.PCIBusID), a.PCIPath[4])
						require.True(t, i == 0 || devices[i-1].PCIBusID < a.PCIBusID, "drivers count in the order of buses")
						for depth, node := range a.PCIPath {
							way := strings.Join(a.PCIPath[:depth+1], "/")
							require.True(t, nodes[node] == "" || nodes[node] == way, "%s is in two places: %s", node, way)
							nodes[node] = way
						}
						below := 0
						for _, b := range devices {
							if shared(a, b) >= 3 {
								below++
								require.Equal(t, a.NUMANode, b.NUMANode, "GPUs of one switch sit at one socket")
							}
						}
						require.LessOrEqual(t, below, max(tc.perSwitch, (count+7)/8))
					}
					if count == 8 || count == 16 {
						require.Equal(t, max(tc.perSwitch, count/8), len(slices.DeleteFunc(slices.Clone(devices), func(d gpu.Device) bool {
							return shared(devices[0], d) < 3
						})))
					}
				})
			})
		}
	}
}

func TestSimulatedMIGIsWhatTheBoardCanDo(t *testing.T) {
	simulate(t, Simulation{GPU: "H100", Count: 3, MIG: []SimulatedMIG{
		{GPUs: []int{0}, Profiles: []string{"1g.10gb", "3g.40gb", "1g.10gb+me", "2g.20gb"}}, {GPUs: []int{2}},
	}}, func(t *testing.T, m *Monitor) {
		s := m.Get()
		require.Equal(t, []bool{true, false, true}, []bool{s.Devices[0].MIGEnabled, s.Devices[1].MIGEnabled, s.Devices[2].MIGEnabled})
		require.Empty(t, s.Devices[2].Instances)
		require.Nil(t, s.Devices[0].Stats.Utilization)
		require.Nil(t, s.Devices[0].Stats.EncoderUtilization)
		require.NotNil(t, s.Devices[1].Stats.Utilization)
		in := slices.Clone(s.Devices[0].Instances)
		require.Len(t, in, 4)
		used := uint64(0)
		for i := range in {
			require.NotNil(t, in[i].Stats.SMActive)
			require.Equal(t, in[i].Memory, *in[i].Stats.MemoryTotal)
			require.Equal(t, in[i].Memory, *in[i].Stats.MemoryUsed+*in[i].Stats.MemoryFree+*in[i].Stats.MemoryReserved)
			used += *in[i].Stats.MemoryUsed
			in[i].Stats = nil
		}
		require.Equal(t, used, *s.Devices[0].Stats.MemoryUsed)
		require.Equal(t, gpu.Instance{
			UUID: "MIG-23300000-5140-4000-8000-000000010004", GI: 1, Profile: "3g.40gb", Memory: 40448 << 20, GIMinor: 12, CIMinor: 13,
			Multiprocessors: 60, GISlices: 3, CISlices: 3, Engines: gpu.Engines{Copy: 3, Decoder: 3, JPEG: 3},
		}, in[0])
		var ids []string
		for _, i := range in {
			ids = append(ids, fmt.Sprintf("%d %d %s", i.Index, i.GI, i.Profile))
		}
		require.Equal(t, []string{"0 1 3g.40gb", "1 5 2g.20gb", "2 13 1g.10gb+me", "3 14 1g.10gb"}, ids)
	})
}

func TestSimulatedMIGIsRefusedWhenImpossible(t *testing.T) {
	for _, tc := range []struct {
		gpu  string
		mig  []SimulatedMIG
		want string
	}{
		{"T4", []SimulatedMIG{{}}, "entry 0: a real T4 cannot be split: remove mig, or simulate another GPU"},
		{"H100", []SimulatedMIG{{GPUs: []int{8}}}, "entry 0: GPU 8: there are 0 to 7"},
		{"H100", []SimulatedMIG{{GPUs: []int{1, 2}}, {GPUs: []int{3, 2}}}, "entry 1: GPU 2 is in entry 0 too: name it once"},
		{"H100", []SimulatedMIG{{GPUs: []int{1, 2}}, {}}, "entry 1: names GPUs that entry 0 has named: without gpus, an entry is for all"},
		{"A100", []SimulatedMIG{{Profiles: []string{"1g.10gb", "1g.18gb"}}},
			`entry 0: profile "1g.18gb": want one of 1g.5gb, 1g.5gb+me, 1g.10gb, 2g.10gb, 3g.20gb, 4g.20gb, 7g.40gb`},
		{"H200", []SimulatedMIG{{Profiles: []string{"1g.18gb+me", "1g.18gb+me"}}}, "entry 0: profile 1g.18gb+me: a GPU has the media extensions once"},
		{"B200", []SimulatedMIG{{Profiles: []string{"3g.90gb", "3g.90gb", "1g.23gb"}}}, "entry 0: profiles 3g.90gb, 3g.90gb, 1g.23gb do not fit into one GPU together"},
	} {
		_, err := New(Config{Simulate: &Simulation{GPU: tc.gpu, Count: 8, MIG: tc.mig}})
		require.EqualError(t, err, "nvml simulate mig "+tc.want)
	}
	for _, fits := range [][]string{
		{"1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb"},
		{"1g.20gb", "1g.20gb", "1g.20gb", "1g.20gb"}, {"2g.20gb", "2g.20gb", "2g.20gb", "1g.20gb"},
		{"3g.40gb", "4g.40gb"}, {"3g.40gb", "3g.40gb"}, {"7g.80gb"},
		{"1g.10gb", "2g.20gb", "4g.40gb"}, {"1g.10gb", "1g.20gb", "3g.40gb"},
	} {
		_, err := h100MIG.layout(fits)
		require.NoError(t, err)
	}
	for _, not := range [][]string{
		{"7g.80gb", "1g.10gb"}, {"4g.40gb", "4g.40gb"}, {"4g.40gb", "3g.40gb", "1g.10gb"}, {"2g.20gb", "2g.20gb", "2g.20gb", "2g.20gb"},
		{"1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb"},
	} {
		_, err := h100MIG.layout(not)
		require.Error(t, err)
	}
}
