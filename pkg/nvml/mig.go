package nvml

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// migProfile is the profile in a MIG device's name, such as "NVIDIA H100 80GB HBM3 MIG 1g.10gb+me"; empty when
// the name has none: sizes that look alike are no proof of a profile.
func migProfile(name string) string {
	const mark = " MIG "
	i := strings.LastIndex(name, mark)
	if i < 0 {
		return ""
	}
	return name[i+len(mark):]
}

// readCapMinors reads the minors of one GPU's /dev/nvidia-caps nodes, by their names below "gpu<minor>/". The
// file lists every instance that could be, so that one reading lasts as long as the driver: lines such as
// "gpu0/gi1/access 12" and "gpu0/gi1/ci0/access 13". It returns nil when there is no file.
func readCapMinors(procfs string, minor int) map[string]int {
	f, err := os.Open(filepath.Join(procfs, "driver/nvidia-caps/mig-minors"))
	if err != nil {
		return nil
	}
	defer f.Close()
	minors := map[string]int{}
	prefix := fmt.Sprintf("gpu%d/", minor)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		name, ours := strings.CutPrefix(name, prefix)
		if n, err := strconv.Atoi(value); ours && err == nil {
			minors[name] = n
		}
	}
	return minors
}

// nameCapabilities fills in the minors of the instances' capability nodes; -1 for those that are not listed.
func nameCapabilities(instances []gpu.Instance, minors map[string]int) {
	find := func(format string, args ...any) int {
		if n, ok := minors[fmt.Sprintf(format, args...)]; ok {
			return n
		}
		return -1
	}
	for i := range instances {
		in := &instances[i]
		in.GIMinor, in.CIMinor = find("gi%d/access", in.GI), find("gi%d/ci%d/access", in.GI, in.CI)
	}
}

func sameInstance(a, b gpu.Instance) bool { return a.UUID == b.UUID && a.Profile == b.Profile }

// sameMIG reports whether a GPU is split as it was.
func sameMIG(a, b gpu.Device) bool {
	return a.MIGEnabled == b.MIGEnabled && a.MIGPending == b.MIGPending && slices.EqualFunc(a.Instances, b.Instances, sameInstance)
}

// describeMIG is how a GPU is split, for people: "off", "on: 3g.40gb 1g.10gb", with a change that waits.
func describeMIG(d gpu.Device) string {
	text := "off"
	if d.MIGEnabled {
		text = "on, no instance"
	}
	for i, in := range d.Instances {
		if i == 0 {
			text = "on:"
		}
		text += " " + in.Profile
	}
	if d.MIGPending {
		text += "; a change of the mode waits for a reset"
	}
	return text
}
