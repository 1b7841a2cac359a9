package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// driver is test/fakenvml in a folder of the host that the agent's pod mounts: the library, and the
// file that says what it answers.
type driver struct {
	dir  string
	id   string // eight hexadecimal digits in the UUIDs of its GPUs
	gpus int
	lost map[int]bool
	mig  map[int][]string // by GPU in MIG mode, the profiles of its instances
	seq  int              // of the last event
	told []string         // lines of the file: events
}

func newDriver(t *testing.T, gpus int) *driver {
	t.Helper()
	d := &driver{dir: t.TempDir(), id: fmt.Sprintf("%08x", rand.Uint32()), gpus: gpus, lost: map[int]bool{}, mig: map[int][]string{}}
	out, err := exec.Command("../fakenvml/build.sh", filepath.Join(d.dir, "libnvidia-ml.so.1")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	d.write(t)
	return d
}

// uuids are of our own making, so that what a pod sees cannot be a default of some library, and new each
// time: the agent remembers which GPUs of the node were unhealthy.
func (d *driver) uuids() []string {
	var all []string
	for i := range d.gpus {
		all = append(all, fmt.Sprintf("GPU-%s-0000-4000-8000-%012x", d.id, i))
	}
	return all
}

// lose makes a GPU fall off the bus, or come back.
func (d *driver) lose(t *testing.T, gpu int, lost bool) {
	t.Helper()
	d.lost[gpu] = lost
	d.write(t)
}

// xid has the driver report an error of a GPU, once.
func (d *driver) xid(t *testing.T, gpu, code int) {
	t.Helper()
	d.event(t, "xid %d %d", gpu, code)
}

// event has the driver tell of something, once, together with what has changed.
func (d *driver) event(t *testing.T, format string, args ...any) {
	t.Helper()
	d.seq++
	d.told = append(d.told, fmt.Sprintf(format, args...)+fmt.Sprintf(" seq=%d\n", d.seq))
	d.write(t)
}

// profiles are what fakenvml must be told of the profiles that these tests use.
var profiles = map[string]string{
	"1g.10gb": "",
	"3g.40gb": "sms=60 gi_slices=3 ci_slices=3 memory_total=40448 copy=3 decoder=3 jpeg=3",
}

// split puts a GPU into MIG mode with instances of these profiles, as nvidia-smi mig would. An instance that stays
// in its place stays the same.
func (d *driver) split(t *testing.T, gpu int, profiles ...string) {
	t.Helper()
	d.mig[gpu] = profiles
	d.event(t, "migchange %d", gpu)
}

// instance is the UUID of the i-th instance of a GPU.
func (d *driver) instance(gpu, i int) string {
	return fmt.Sprintf("MIG-%s-0000-4000-8000-%06x%06x", d.id, gpu, i)
}

func (d *driver) write(t *testing.T) {
	t.Helper()
	b := &strings.Builder{}
	fmt.Fprintf(b, "gpus %d\n", d.gpus)
	for i, uuid := range d.uuids() {
		fmt.Fprintf(b, "gpu %d uuid=%s\n", i, uuid)
		if d.lost[i] {
			fmt.Fprintf(b, "gpu %d lost=1\n", i)
		}
	}
	for gpu, list := range d.mig {
		fmt.Fprintf(b, "gpu %d mig=1\n", gpu)
		for i, profile := range list {
			fmt.Fprintf(b, "mig %d %s gi=%d uuid=%s %s\n", gpu, profile, i+1, d.instance(gpu, i), profiles[profile])
		}
	}
	b.WriteString(strings.Join(d.told, ""))
	file := filepath.Join(d.dir, "state")
	require.NoError(t, os.WriteFile(file+".new", []byte(b.String()), 0o644))
	require.NoError(t, os.Rename(file+".new", file))
}

// labels are those that GPU feature discovery gave a real node with these GPUs, but for the
// machine's own name.
func (d *driver) labels(t *testing.T) map[string]string {
	t.Helper()
	real, err := os.ReadFile("../../pkg/labels/testdata/h100.labels")
	require.NoError(t, err)
	all := map[string]string{}
	for line := range strings.Lines(string(real)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			all[k] = v
		}
	}
	maps.DeleteFunc(all, func(k, _ string) bool { return k == "nvidia.com/gpu.machine" || k == "nvidia.com/gfd.timestamp" })
	return all
}
