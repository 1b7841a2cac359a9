package exporter

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

var bge = resource.Owner{Namespace: "serving", Pod: "bge-0", Container: "tei"}

// split has GPU 1 of two split, its first instance held by one pod and its second by none.
func split() *world {
	w := full()
	w.snapshot = gputest.Split(w.snapshot, 1)
	w.owners = owners{gputest.Instance(1, 0): {llama}}
	return w
}

func TestScrapeOfASplitGPUIsTheGoldenPage(t *testing.T) {
	golden(t, filepath.Join("testdata", "mig.prom"), scrape(t, collector(t, split(), Config{})))
}

func TestASplitGPUHasARowForEachGPUInstance(t *testing.T) {
	w := split()
	rate := uint64(1 << 20)
	w.snapshot.Devices[1].Stats.PCIeTransmitPerSec = &rate
	text := scrape(t, collector(t, w, Config{}))
	require.Empty(t, lines(text, "DCGM_FI_PROF_PCIE_TX_BYTES"), "GPM does not count PCIe by instance")
	const first, second = `GPU_I_ID="2"`, `GPU_I_ID="7"`
	require.Len(t, lines(text, "DCGM_FI_DEV_POWER_USAGE", `gpu="0"`), 1)
	require.Empty(t, lines(text, "DCGM_FI_DEV_POWER_USAGE", `gpu="0"`, "GPU_I_"))
	require.Len(t, lines(text, "DCGM_FI_DEV_POWER_USAGE", `gpu="1"`), 3)
	require.Len(t, lines(text, "DCGM_FI_DEV_POWER_USAGE", `gpu="1"`, "GPU_I_PROFILE"), 3, "no row for the GPU itself")
	require.Equal(t, "101", value(t, text, "DCGM_FI_DEV_POWER_USAGE", first, `GPU_I_PROFILE="3g.40gb"`, `pod="llama-0"`), "the board's, on each")
	require.Equal(t, "1024", value(t, text, "DCGM_FI_DEV_FB_USED", first))
	require.Equal(t, "2048", value(t, text, "DCGM_FI_DEV_FB_USED", second, `GPU_I_PROFILE="1g.10gb"`))
	require.Equal(t, "10240", value(t, text, "DCGM_FI_DEV_FB_TOTAL", second))
	require.Equal(t, "0.2", value(t, text, "DCGM_FI_PROF_GR_ENGINE_ACTIVE", second))
	require.Empty(t, lines(text, "DCGM_FI_DEV_FB_USED", second, "pod="))
	require.Empty(t, lines(text, "DCGM_FI_DEV_GPU_UTIL", `gpu="1"`))
	require.Contains(t, lines(text, "DCGM_FI_DEV_FB_USED", second)[0], `UUID="`+string(gputest.UUID(1))+`"`, "the GPU's, as dcgm-exporter has it")

	require.Equal(t, "2.147483648e+09", value(t, text, "gpu_memory_used_bytes", `gpu="1"`), "the GPU keeps its own families")
	require.Empty(t, lines(text, "gpu_memory_used_bytes", `gpu="1"`, "pod="), "a pod with one instance does not hold the GPU")
	require.Equal(t, "1.073741824e+09", value(t, text, "gpu_mig_memory_used_bytes", `gpu="1"`, `gpu_instance_id="2"`, `mig_profile="3g.40gb"`, `pod="llama-0"`))
	require.Equal(t, "1", value(t, text, "gpu_mig_info", `gpu_instance_id="7"`, `mig_uuid="`+string(gputest.Instance(1, 1))+`"`))
	require.Equal(t, "60", value(t, text, "gpu_mig_multiprocessors", `gpu_instance_id="2"`))
	require.Empty(t, lines(text, "gpu_mig_info", `gpu="0"`))
}

func TestComputeInstancesOfOneGPUInstanceAreOneRow(t *testing.T) {
	w := split()
	in := w.snapshot.Devices[1].Instances
	in[0].Profile, in[0].CI = "1c.3g.40gb", 0
	in[1].Profile, in[1].CI, in[1].GI, in[1].Stats = "2c.3g.40gb", 1, 2, in[0].Stats
	for _, step := range []struct {
		name   string
		second []resource.Owner
		pod    bool
	}{
		{"one pod has one of them", nil, true},
		{"one pod has both", []resource.Owner{llama}, true},
		{"two pods have them", []resource.Owner{bge}, false},
	} {
		w.owners = owners{gputest.Instance(1, 0): {llama}, gputest.Instance(1, 1): step.second}
		text := scrape(t, collector(t, w, Config{}))
		require.Equal(t, "1024", value(t, text, "DCGM_FI_DEV_FB_USED", `GPU_I_ID="2"`, `GPU_I_PROFILE="3g.40gb"`), step.name)
		require.Equal(t, step.pod, len(lines(text, "DCGM_FI_DEV_FB_USED", `GPU_I_ID="2"`, `pod="llama-0"`)) == 1, step.name)
		require.Len(t, lines(text, "gpu_mig_memory_used_bytes", `gpu_instance_id="2"`), 2, step.name)
		require.Equal(t, "1", value(t, text, "gpu_mig_allocated", `gpu_instance_id="2"`, `compute_instance_id="0"`, `mig_profile="1c.3g.40gb"`), step.name)
		require.Equal(t, oneIf(step.second != nil), map[string]float64{"0": 0, "1": 1}[value(t, text, "gpu_mig_allocated", `gpu_instance_id="2"`, `compute_instance_id="1"`)], step.name)
	}
}

func TestASickSplitGPUHasNoReadings(t *testing.T) {
	w := split()
	w.snapshot = gputest.Sick(w.snapshot, 1, gpu.Unreadable)
	text := scrape(t, collector(t, w, Config{}))
	for _, f := range dcgmFamilies() {
		want := 0
		if f.name == "DCGM_FI_DEV_XID_ERRORS" {
			want = 3
		}
		require.Len(t, lines(text, f.name, `gpu="1"`), want, f.name)
	}
	require.Empty(t, lines(text, "gpu_mig_memory_used_bytes"))
	require.Len(t, lines(text, "gpu_mig_info"), 3, "what is known of it persists")
	require.Equal(t, "1", value(t, text, "gpu_health_reason", `gpu="1"`, `reason="Unreadable"`, `needs="ResetGPU"`))
	require.Equal(t, "1.767323045e+09", value(t, text, "gpu_unhealthy_since_timestamp_seconds"))
}

func TestASplitGPUWithoutInstancesIsOneRow(t *testing.T) {
	w := split()
	w.snapshot.Devices[1].Instances = nil
	text := scrape(t, collector(t, w, Config{}))
	require.Len(t, lines(text, "DCGM_FI_DEV_POWER_USAGE", `gpu="1"`), 1)
	require.NotContains(t, text, "GPU_I_")
}

func TestEveryHolderIsNamed(t *testing.T) {
	w := split()
	w.owners = owners{gputest.UUID(0): {bge, llama, bge}, gputest.Instance(1, 0): {llama}, gputest.Instance(1, 2): {llama, bge}}
	text := scrape(t, collector(t, w, Config{}))
	require.Len(t, lines(text, "gpu_allocation_info", `gpu="0"`), 2, "a shared GPU")
	require.Len(t, lines(text, "gpu_allocation_info", `gpu="1"`), 2, "a split GPU")
	require.Equal(t, "2", value(t, text, "gpu_allocations", `gpu="0"`))
	require.Equal(t, "2", value(t, text, "gpu_allocations", `gpu="1"`))
	require.Equal(t, "1", value(t, text, "gpu_mig_allocation_info", `gpu_instance_id="2"`, `pod="llama-0"`))
	require.Len(t, lines(text, "gpu_mig_allocation_info", `gpu_instance_id="8"`), 2)
	require.Equal(t, "2", value(t, text, "gpu_mig_allocations", `gpu_instance_id="8"`))
	require.Empty(t, lines(text, "gpu_mig_memory_used_bytes", `gpu_instance_id="8"`, "pod="), "a shared instance")

	w.owners, w.up = nil, false
	text = scrape(t, collector(t, w, Config{}))
	for _, name := range []string{"gpu_allocation_info", "gpu_mig_allocated", "gpu_mig_allocations", "gpu_mig_allocation_info"} {
		require.Empty(t, lines(text, name), "nothing is known")
	}
}

func TestNoticesAndLinksAreShown(t *testing.T) {
	w := full()
	d := &w.snapshot.Devices[0]
	d.NVLinks = []gpu.NVLink{{Count: 18}, {Remote: "00000000:0C:00.0", Count: 4}}
	d.Notices = []gpu.Notice{
		{Code: gpu.XIDNotice, Text: "XID 13", Since: gputest.Time}, {Code: gpu.XIDNotice, Text: "XID 31", Since: gputest.Time.Add(time.Second)},
		{Code: gpu.RowRemapPending, Needs: gpu.ResetGPU},
	}
	text := scrape(t, collector(t, w, Config{}))
	require.Len(t, lines(text, "gpu_notice"), 2)
	require.Equal(t, "1", value(t, text, "gpu_notice", `code="RowRemapPending"`, `needs="ResetGPU"`))
	require.Equal(t, "18", value(t, text, "gpu_nvlinks", `remote="nvswitch"`))
	require.Equal(t, "4", value(t, text, "gpu_nvlinks", `remote="00000000:0C:00.0"`))
	require.Empty(t, lines(text, "gpu_unhealthy_since_timestamp_seconds"))
	require.Equal(t, "0", value(t, text, "gpu_agent_unidentified_gpus"))
	require.Equal(t, "0", value(t, text, "gpu_agent_health_state_error"))

	w.snapshot.Unidentified, w.snapshot.StateError = make([]gpu.Unidentified, 2), "no space left on device"
	text = scrape(t, collector(t, w, Config{}))
	require.Equal(t, "2", value(t, text, "gpu_agent_unidentified_gpus"))
	require.Equal(t, "1", value(t, text, "gpu_agent_health_state_error"))
}
