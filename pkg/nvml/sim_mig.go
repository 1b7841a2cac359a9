package nvml

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// SimulatedMIG splits made-up GPUs into MIG instances.
type SimulatedMIG struct {
	GPUs     []int    // indexes; none means all
	Profiles []string // of the instances of each, such as "1g.10gb"; none: MIG is on, and nothing was made yet
}

// simMIG is how a model can be split. Each array has a value for each row of simProfiles, but gb and mib, which
// have one for 1, 2, 4 and 8 of the GPU's eight memory slices.
type simMIG struct {
	gb       [4]int // in the profile's name
	mib      [4]uint64
	sms      [7]int
	decoders [7]int
	jpeg     [7]int
	copies   [7]int
}

// simProfiles are the kinds of GPU instance that every model with MIG has. A table, never written to.
var simProfiles = [7]struct {
	slices  int    // of seven compute slices
	size    int    // index of simMIG.gb: 1<<size memory slices
	media   string // the suffix of the one instance that has the media extensions
	starts  []int  // first memory slice of each possible placement
	engines int    // optical flow accelerators
}{
	{slices: 1, size: 0, starts: []int{0, 1, 2, 3, 4, 5, 6}},
	{slices: 1, size: 0, media: "+me", starts: []int{0, 1, 2, 3, 4, 5, 6}, engines: 1},
	{slices: 1, size: 1, starts: []int{0, 2, 4, 6}},
	{slices: 2, size: 1, starts: []int{0, 2, 4}},
	{slices: 3, size: 2, starts: []int{0, 4}},
	{slices: 4, size: 2, starts: []int{0}},
	{slices: 7, size: 3, starts: []int{0}, engines: 1},
}

// Profiles, sizes and engines as "nvidia-smi mig -lgip" prints them; memory of H200 and B200 in eighths. Tables,
// never written to.
var (
	a100MIG = simMIG{gb: [4]int{5, 10, 20, 40}, mib: [4]uint64{4864, 9856, 19968, 40192},
		sms: [7]int{14, 14, 14, 28, 42, 56, 98}, decoders: [7]int{0, 1, 1, 1, 2, 2, 5},
		jpeg: [7]int{0, 1, 0, 0, 0, 0, 1}, copies: [7]int{1, 1, 1, 2, 3, 4, 7}}
	h100MIG = simMIG{gb: [4]int{10, 20, 40, 80}, mib: [4]uint64{9984, 20096, 40448, 81152},
		sms: hopperSMs, decoders: mediaSlices, jpeg: mediaSlices, copies: hopperCopies}
	h200MIG = simMIG{gb: [4]int{18, 35, 71, 141}, mib: [4]uint64{17920, 35840, 71808, 143616},
		sms: hopperSMs, decoders: mediaSlices, jpeg: mediaSlices, copies: hopperCopies}
	b200MIG = simMIG{gb: [4]int{23, 45, 90, 180}, mib: [4]uint64{22912, 45824, 91648, 183296},
		sms: [7]int{18, 18, 18, 36, 54, 72, 126}, decoders: mediaSlices, jpeg: mediaSlices, copies: hopperCopies}

	hopperSMs    = [7]int{16, 16, 26, 32, 60, 64, 132}
	hopperCopies = [7]int{1, 1, 1, 2, 3, 4, 8}
	mediaSlices  = [7]int{1, 1, 1, 2, 3, 4, 7}
)

// profile is the name of a row of simProfiles.
func (m simMIG) profile(row int) string {
	p := simProfiles[row]
	return fmt.Sprintf("%dg.%dgb%s", p.slices, m.gb[p.size], p.media)
}

func (m simMIG) profiles() []string {
	names := make([]string, len(simProfiles))
	for row := range simProfiles {
		names[row] = m.profile(row)
	}
	return names
}

// placed is a profile at a place in the GPU's memory.
type placed struct{ row, start int }

// layout finds a place for every profile, as the driver would if they were created largest first.
func (m simMIG) layout(profiles []string) ([]placed, error) {
	var rows []int
	for _, name := range profiles {
		row := slices.Index(m.profiles(), name)
		if row < 0 {
			return nil, fmt.Errorf("profile %q: want one of %s", name, strings.Join(m.profiles(), ", "))
		}
		if simProfiles[row].media != "" && slices.Contains(rows, row) {
			return nil, fmt.Errorf("profile %s: a GPU has the media extensions once", name)
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b int) int { return cmp.Compare(b, a) })
	if found, ok := place(rows, 0); ok {
		return found, nil
	}
	return nil, fmt.Errorf("profiles %s do not fit into one GPU together", strings.Join(profiles, ", "))
}

// place tries every place for the first profile, and the rest around it; used has a bit for each memory
// slice that is taken.
func place(rows []int, used uint) ([]placed, bool) {
	if len(rows) == 0 {
		return nil, true
	}
	p := simProfiles[rows[0]]
	for _, start := range p.starts {
		mask := (uint(1)<<(1<<p.size) - 1) << start
		if used&mask != 0 {
			continue
		}
		if rest, ok := place(rows[1:], used|mask); ok {
			return append(rest, placed{rows[0], start}), true
		}
	}
	return nil, false
}

// instances are the MIG devices of a layout on one GPU: one compute instance in each GPU instance.
func (m simMIG) instances(device uint32, index int, layout []placed) []gpu.Instance {
	var all []gpu.Instance
	for _, at := range layout {
		p := simProfiles[at.row]
		// The driver numbers GPU instances by their part of the memory, the upper half first: 0 the whole, 1 and
		// 2 the halves, 3 to 6 the quarters, 7 to 14 the eighths (nvidia-smi mig -lgi).
		gi := 1<<(3-p.size) - 1 + (at.start+4)%8>>p.size
		// It gives each GPU 15 GPU instances, each with a node and one for each of 8 compute instances,
		// after the two nodes of the whole.
		minor := 3 + index*15*9 + gi*9
		all = append(all, gpu.Instance{
			UUID: gpu.UUID(fmt.Sprintf("MIG-%08x-5140-4000-8000-%04x%04x%04x", device<<16|uint32(index), index, gi, at.row)),
			GI:   gi, Profile: m.profile(at.row), Memory: m.mib[p.size] << 20, GIMinor: minor, CIMinor: minor + 1,
			Multiprocessors: m.sms[at.row], GISlices: p.slices, CISlices: p.slices,
			Engines: gpu.Engines{Copy: m.copies[at.row], Decoder: m.decoders[at.row], JPEG: m.jpeg[at.row], OFA: p.engines},
		})
	}
	slices.SortFunc(all, func(a, b gpu.Instance) int { return cmp.Compare(a.GI, b.GI) })
	for i := range all {
		all[i].Index = i
	}
	return all
}

// CheckMIG says what is wrong with one entry of MIG; the rest of s must be right.
func (s Simulation) CheckMIG(entry int) error {
	_, err := s.split(entry)
	return err
}

// split is the instances of each GPU that one entry names.
func (s Simulation) split(entry int) (map[int][]gpu.Instance, error) {
	model, e := simModelNamed(s.GPU), s.MIG[entry]
	if model.mig == nil {
		return nil, fmt.Errorf("a real %s cannot be split: remove mig, or simulate another GPU", s.GPU)
	}
	for i, other := range s.MIG[:entry] {
		if len(other.GPUs) == 0 || len(e.GPUs) == 0 {
			return nil, fmt.Errorf("names GPUs that entry %d has named: without gpus, an entry is for all", i)
		}
		for _, index := range e.GPUs {
			if slices.Contains(other.GPUs, index) {
				return nil, fmt.Errorf("GPU %d is in entry %d too: name it once", index, i)
			}
		}
	}
	layout, err := model.mig.layout(e.Profiles)
	if err != nil {
		return nil, err
	}
	split := map[int][]gpu.Instance{}
	for index := range s.Count {
		if len(e.GPUs) == 0 || slices.Contains(e.GPUs, index) {
			split[index] = model.mig.instances(model.device, index, layout)
		}
	}
	for _, index := range e.GPUs {
		if index < 0 || index >= s.Count {
			return nil, fmt.Errorf("GPU %d: there are 0 to %d", index, s.Count-1)
		}
	}
	return split, nil
}
