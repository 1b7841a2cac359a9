package exporter

import (
	"bytes"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

var update = flag.Bool("update", false, "write the golden files and docs/METRICS.md anew")

var llama = resource.Owner{Namespace: "serving", Pod: "llama-0", Container: "vllm"}

type owners = map[gpu.UUID][]resource.Owner

// world is what the owners published, changed by tests between scrapes.
type world struct {
	snapshot  *gpu.Snapshot
	inventory *model.Inventory
	owners    owners
	up        bool
}

func (w *world) sources() Sources {
	return Sources{
		Snapshot:  func() *gpu.Snapshot { return w.snapshot },
		Inventory: func() *model.Inventory { return w.inventory },
		Owners:    func() (owners, bool) { return w.owners, w.up },
		Tasks:     func() map[string]bool { return map[string]bool{"nvml": true, "cache": false} },
		Plugin: func() PluginStatus {
			return PluginStatus{Allocations: 7, ModelsMounts: 5, Resources: []ResourceStatus{
				{Resource: "nvidia.com/gpu", Registered: true, Devices: 2, Healthy: 2},
				{Resource: "nvidia.com/mig-1g.10gb", Devices: 7, Healthy: 6},
			}}
		},
	}
}

func full() *world {
	return &world{
		snapshot: gputest.Node(2),
		owners:   owners{gputest.UUID(1): {llama}},
		up:       true,
		inventory: &model.Inventory{
			Limit: 1000, Used: 300, Reserved: 200, Fetched: 350, ReadAhead: 90, Evicted: 2, Failures: map[string]int64{"Forbidden": 3},
			Models: []model.Status{
				{Name: "bge", State: model.Ready, Size: 100, Done: 100, Resident: new(int64(80))},
				{Name: "llama", State: model.Pulling, Size: 400, Done: 200},
				{Name: "qwen", State: model.Pending},
			},
		},
	}
}

func collector(t *testing.T, w *world, c Config) *Collector {
	t.Helper()
	if c.Hostname == "" {
		c.Hostname = "node-a"
	}
	c.Version = "v1.2.3"
	e, err := New(c, w.sources())
	require.NoError(t, err)
	return e
}

func registry(t *testing.T, e *Collector) *prometheus.Registry {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(e))
	return r
}

// scrape returns the text that Prometheus would read.
func scrape(t *testing.T, e *Collector) string {
	t.Helper()
	families, err := registry(t, e).Gather()
	require.NoError(t, err)
	var out bytes.Buffer
	for _, f := range families {
		_, err := expfmt.MetricFamilyToText(&out, f)
		require.NoError(t, err)
	}
	return out.String()
}

// lines returns the samples whose line starts with name and contains every part.
func lines(text, name string, parts ...string) []string {
	var out []string
next:
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") {
			continue
		}
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue next
			}
		}
		out = append(out, strings.TrimSuffix(line, "\n"))
	}
	return out
}

// value returns the value of the only sample that lines finds.
func value(t *testing.T, text, name string, parts ...string) string {
	t.Helper()
	found := lines(text, name, parts...)
	require.Len(t, found, 1, "samples of %s %q", name, parts)
	return found[0][strings.LastIndexByte(found[0], ' ')+1:]
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "%s is stale: go test ./pkg/exporter -update, and read the diff", path)
}

func TestScrapeIsTheGoldenPage(t *testing.T) {
	golden(t, filepath.Join("testdata", "metrics.prom"), scrape(t, collector(t, full(), Config{})))
}

func TestEachSchemaAloneHasNothingOfTheOther(t *testing.T) {
	dcgm := scrape(t, collector(t, full(), Config{Schemas: []string{DCGM}}))
	require.Contains(t, dcgm, "\nDCGM_FI_DEV_GPU_UTIL{")
	require.NotContains(t, dcgm, "\ngpu_utilization_ratio{")
	native := scrape(t, collector(t, full(), Config{Schemas: []string{Native}}))
	require.NotContains(t, native, "DCGM_")
	require.Contains(t, native, "\ngpu_utilization_ratio{")
	for _, text := range []string{dcgm, native} {
		require.Contains(t, text, "\ngpu_agent_build_info{version=\"v1.2.3\"} 1\n")
		require.Contains(t, text, "\nmodel_cache_limit_bytes 1000\n")
	}
}

func TestDisksHaveSeriesWhereThereAreSeveral(t *testing.T) {
	w := full()
	w.inventory.Disks = []model.Disk{{Name: "root", Limit: 10, Used: 4, Reserved: 1}, {Name: "nvme1", Error: "gone"}}
	w.inventory.Problems = []model.Problem{{Reason: "DiskGone"}}
	text := scrape(t, collector(t, w, Config{Schemas: []string{Native}}))
	for _, line := range []string{`model_cache_disk_up{disk="root"} 1`, `model_cache_disk_up{disk="nvme1"} 0`, `model_cache_disk_limit_bytes{disk="root"} 10`,
		`model_cache_disk_used_bytes{disk="root"} 4`, `model_cache_disk_reserved_bytes{disk="root"} 1`, `model_cache_problem{reason="DiskGone"} 1`} {
		require.Contains(t, text, "\n"+line+"\n")
	}
	require.NotContains(t, text, `bytes{disk="nvme1"}`)
}

func TestNativeFamiliesPassPromlint(t *testing.T) {
	w := full()
	w.snapshot.Devices[0] = everything(w.snapshot.Devices[0])
	w.snapshot = gputest.Split(gputest.Sick(w.snapshot, 1, gpu.Hung), 1)
	w.snapshot.Devices[1].Instances[0].Stats = w.snapshot.Devices[0].Stats
	w.owners[gputest.Instance(1, 0)] = []resource.Owner{llama}
	r := registry(t, collector(t, w, Config{Schemas: []string{Native}}))
	problems, err := testutil.GatherAndLint(r)
	require.NoError(t, err)
	require.Empty(t, problems)

	families, err := r.Gather()
	require.NoError(t, err)
	var missing []string
	shown := map[string]bool{}
	for _, f := range families {
		shown[f.GetName()] = true
	}
	for _, f := range nativeFamilies() {
		if !shown[f.name] {
			missing = append(missing, f.name)
		}
	}
	for _, f := range migFamilies() {
		if !shown[f.name] {
			missing = append(missing, f.name)
		}
	}
	require.Empty(t, missing, "families that the linter did not see")
}

func TestPromtoolAcceptsTheNativePage(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not on PATH: install Prometheus to check the page with it")
	}
	w := full()
	w.snapshot.Devices[0] = everything(w.snapshot.Devices[0])
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(scrape(t, collector(t, w, Config{Schemas: []string{Native}})))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
}

func TestSickGPUHasNoReadingsAndTheOthersHave(t *testing.T) {
	w := full()
	w.snapshot = gputest.Sick(w.snapshot, 0, gpu.XID)
	w.snapshot.Devices[0].XIDs = []gpu.XIDCount{{Code: 79, Count: 2, Last: gputest.Time}}
	w.snapshot.Devices[0].ReadErrors = []gpu.ReadError{{Op: "memory", Return: "ERROR_GPU_IS_LOST", Count: 5}}
	text := scrape(t, collector(t, w, Config{}))

	for _, f := range readingFamilies() {
		require.Empty(t, lines(text, f.name, `gpu="0"`))
	}
	for _, f := range dcgmFamilies() {
		want := 0
		if f.name == "DCGM_FI_DEV_XID_ERRORS" { // an event, not a reading: what the lost GPU said last
			want = 1
		}
		require.Len(t, lines(text, f.name, `gpu="0"`), want, f.name)
	}
	require.Equal(t, "0", value(t, text, "gpu_up", `gpu="0"`))
	require.Equal(t, "1", value(t, text, "gpu_up", `gpu="1"`))
	require.Equal(t, "0", value(t, text, "gpu_health", `gpu="0"`))
	require.Equal(t, "1", value(t, text, "gpu_health", `gpu="1"`))
	require.Equal(t, "1", value(t, text, "gpu_health_reason", `gpu="0"`, `reason="XID"`, `needs="ResetGPU"`))
	require.Empty(t, lines(text, "gpu_health_reason", `gpu="1"`))
	require.Equal(t, "1.767323045e+09", value(t, text, "gpu_last_collect_timestamp_seconds", `gpu="0"`))
	require.Equal(t, "5", value(t, text, "gpu_collect_errors_total", `gpu="0"`, `op="memory"`, `nvml_return="ERROR_GPU_IS_LOST"`))
	require.Equal(t, "2", value(t, text, "gpu_xid_errors_total", `gpu="0"`, `xid="79"`))
	require.Equal(t, "1.767323045e+09", value(t, text, "gpu_xid_last_timestamp_seconds", `gpu="0"`, `xid="79"`))
	require.Equal(t, "79", value(t, text, "DCGM_FI_DEV_XID_ERRORS", `gpu="0"`))
	require.Equal(t, "31", value(t, text, "gpu_temperature_celsius", `gpu="1"`))
	require.Equal(t, "31", value(t, text, "DCGM_FI_DEV_GPU_TEMP", `gpu="1"`))
}

func TestPodLabelsFollowTheOnlyHolder(t *testing.T) {
	const pod = `pod="llama-0"`
	other := resource.Owner{Namespace: "serving", Pod: "bge-0", Container: "tei"}
	w := full()
	e := collector(t, w, Config{})

	for _, step := range []struct {
		name               string
		owners             owners
		up                 bool
		labelled           bool
		allocated, holders string // "" is absent
	}{
		{"one container holds it", owners{gputest.UUID(1): {llama}}, true, true, "1", "1"},
		{"one container holds two replicas of it", owners{gputest.UUID(1): {llama, llama}}, true, true, "1", "1"},
		{"two containers share it", owners{gputest.UUID(1): {llama, other}}, true, false, "1", "2"},
		{"another GPU is held", owners{gputest.UUID(0): {other}}, true, false, "0", "0"},
		{"the pod is gone", owners{}, true, false, "0", "0"},
		{"the kubelet says that nobody holds any", nil, true, false, "0", "0"},
		{"the kubelet is silent and the last answer still counts", owners{gputest.UUID(1): {llama}}, false, true, "1", "1"},
		{"the kubelet is silent and nothing is known", nil, false, false, "", ""},
	} {
		w.owners, w.up = step.owners, step.up
		text := scrape(t, e)
		for _, name := range []string{"DCGM_FI_DEV_GPU_UTIL", "gpu_utilization_ratio", "gpu_temperature_celsius", "DCGM_FI_DEV_FB_USED"} {
			require.Len(t, lines(text, name, `gpu="1"`), 1, step.name)
			labelled := lines(text, name, `gpu="1"`, `container="vllm"`, `namespace="serving"`, pod)
			require.Equal(t, step.labelled, len(labelled) == 1, "%s: %s", step.name, lines(text, name, `gpu="1"`))
			if !step.labelled {
				for _, label := range []string{"pod=", "namespace=", "container="} {
					require.Empty(t, lines(text, name, `gpu="1"`, label), step.name)
				}
			}
			require.Empty(t, lines(text, name, `gpu="0"`, pod), step.name)
		}
		require.Empty(t, lines(text, "gpu_info", "pod="), "what is true of the board is nobody's")
		require.Empty(t, lines(text, "gpu_up", "pod="))
		if step.allocated == "" {
			require.NotContains(t, text, "gpu_allocated")
			require.NotContains(t, text, "gpu_allocations")
		} else {
			require.Equal(t, step.allocated, value(t, text, "gpu_allocated", `gpu="1"`), step.name)
			require.Equal(t, step.holders, value(t, text, "gpu_allocations", `gpu="1"`), step.name)
		}
		require.Equal(t, oneIf(step.up) == 1, value(t, text, "gpu_agent_podresources_up") == "1", step.name)
	}
}

func TestXIDIsHeldForAWhileAndCountedForGood(t *testing.T) {
	for _, c := range []struct {
		name  string
		hold  time.Duration
		after time.Duration
		want  string
	}{
		{"within the hold", time.Hour, time.Hour, "48"},
		{"after the hold", time.Hour, time.Hour + time.Second, "0"},
		{"without an end", 0, 1000 * time.Hour, "48"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := full()
				e := collector(t, w, Config{XIDHold: c.hold})
				require.Equal(t, "0", value(t, scrape(t, e), "DCGM_FI_DEV_XID_ERRORS", `gpu="0"`), "before any XID")
				require.Empty(t, lines(scrape(t, e), "gpu_xid_errors_total"))

				now := time.Now()
				w.snapshot.Devices[0].XIDs = []gpu.XIDCount{ // sorted by code: the newest is in the middle
					{Code: 13, Count: 4, Last: now.Add(-time.Minute)}, {Code: 48, Count: 1, Last: now}, {Code: 79, Count: 1, Last: now.Add(-time.Hour)},
				}
				require.Equal(t, "48", value(t, scrape(t, e), "DCGM_FI_DEV_XID_ERRORS", `gpu="0"`))
				time.Sleep(c.after)
				text := scrape(t, e)
				require.Equal(t, c.want, value(t, text, "DCGM_FI_DEV_XID_ERRORS", `gpu="0"`))
				require.Equal(t, "0", value(t, text, "DCGM_FI_DEV_XID_ERRORS", `gpu="1"`))
				require.Equal(t, "4", value(t, text, "gpu_xid_errors_total", `xid="13"`))
				require.Equal(t, "1", value(t, text, "gpu_xid_errors_total", `xid="48"`))
			})
		})
	}
}

func TestWhatIsNotKnownIsAbsent(t *testing.T) {
	nothing, err := New(Config{Version: "v1.2.3"}, Sources{Snapshot: func() *gpu.Snapshot { return nil }})
	require.NoError(t, err)
	require.Equal(t, "# HELP gpu_agent_build_info Always 1: the agent's version.\n# TYPE gpu_agent_build_info gauge\n"+
		"gpu_agent_build_info{version=\"v1.2.3\"} 1\n", scrape(t, nothing))

	w := &world{snapshot: &gpu.Snapshot{Time: gputest.Time, Driver: gpu.Driver{Error: "libnvidia-ml.so.1 not found"}}}
	text := scrape(t, collector(t, w, Config{}))
	require.Equal(t, "0", value(t, text, "gpu_agent_driver_loaded"))
	require.Empty(t, lines(text, "gpu_agent_unidentified_gpus"), "without a driver nobody counts them")
	require.Equal(t, "0", value(t, text, "gpu_agent_simulated"))
	require.Equal(t, "0", value(t, text, "gpu_agent_podresources_up"))
	require.Equal(t, "0", value(t, text, "gpu_agent_task_up", `task="cache"`))
	require.Equal(t, "1", value(t, text, "gpu_agent_task_up", `task="nvml"`))
	require.NotContains(t, text, "DCGM_")
	require.NotContains(t, text, "gpu_up")
	require.NotContains(t, text, "model_cache_")
}

func TestNewRefusesWhatItCannotShow(t *testing.T) {
	s := full().sources()
	for _, c := range []struct {
		name    string
		config  Config
		sources Sources
		want    string
	}{
		{"unknown schema", Config{Schemas: []string{"dcgm", "dcgm49"}}, s, `metrics schema "dcgm49" is unknown: want dcgm or native`},
		{"schema twice", Config{Schemas: []string{"dcgm", "dcgm"}}, s, `metrics schema "dcgm" is named twice: name it once`},
		{"negative hold", Config{XIDHold: -time.Second}, s, "xid hold -1s is negative: want a duration such as 1h, or 0 to hold a code forever"},
		{"no snapshots", Config{}, Sources{}, "exporter has no source of snapshots: set Sources.Snapshot"},
	} {
		_, err := New(c.config, c.sources)
		require.EqualError(t, err, c.want, c.name)
	}
}

func get(t *testing.T, e *Collector, accept string) (string, http.Header) {
	t.Helper()
	server := httptest.NewServer(e.Handler())
	defer server.Close()
	req, err := http.NewRequest(http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	req.Header.Set("Accept", accept)
	resp, err := server.Client().Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s", body)
	return string(body), resp.Header
}

func TestHandlerKeepsDCGMNamesWhateverFormatIsPreferred(t *testing.T) {
	const openMetrics = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.3"
	body, header := get(t, collector(t, full(), Config{}), openMetrics)
	require.Contains(t, header.Get("Content-Type"), "text/plain")
	require.Len(t, lines(body, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"), 2)
	require.NotContains(t, body, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION_total")
	require.Len(t, lines(body, "go_goroutines"), 1)

	body, header = get(t, collector(t, full(), Config{Schemas: []string{Native}}), openMetrics)
	require.Contains(t, header.Get("Content-Type"), "openmetrics")
	require.Len(t, lines(body, "gpu_energy_joules_total"), 2)
}

func TestHandlerServesTheRestWhenOneSeriesIsImpossible(t *testing.T) {
	w := full()
	w.snapshot.Devices[0].Name = "NVIDIA \xff" // not UTF-8
	twin := w.snapshot.Devices[1]
	w.snapshot.Devices = append(w.snapshot.Devices, twin) // the same series twice
	body, _ := get(t, collector(t, w, Config{}), "text/plain")
	require.Len(t, lines(body, "DCGM_FI_DEV_GPU_TEMP", "modelName=\"NVIDIA \uFFFD\""), 1)
	require.Len(t, lines(body, "DCGM_FI_DEV_GPU_TEMP", `gpu="1"`), 1)
}

func TestScrapesRunAtTheSameTime(t *testing.T) {
	e := collector(t, full(), Config{})
	want := scrape(t, e)
	r := registry(t, e)
	var scrapes sync.WaitGroup
	for range maxScrapes {
		scrapes.Go(func() {
			families, err := r.Gather()
			if err != nil || len(families) != strings.Count(want, "# TYPE ") {
				t.Errorf("%d families, error %v", len(families), err)
			}
		})
	}
	scrapes.Wait()
}

func TestSnapshotIsNotChangedByAScrape(t *testing.T) {
	w := full()
	scrape(t, collector(t, w, Config{}))
	require.Equal(t, full(), w)
}
