package exporter

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

const docsHead = `# Metrics

Served at ` + "`:9400/metrics`" + `. This page is generated from the tables in ` + "`pkg/exporter`" + `:
` + "`go test ./pkg/exporter -update`" + `.

What is not known is an absent series, never 0 and never the last value: a GPU that cannot be read loses its readings and
keeps ` + "`gpu_up 0`" + `, its health and its counts. Alert on ` + "`gpu_up`" + ` and ` + "`gpu_health`" + `.

The GPU families come in two schemas, both by default (` + "`exporter.schemas`" + ` in the config):

* **native**: ` + "`gpu_*`" + ` in base units. Labels ` + "`gpu`" + ` (index) and ` + "`uuid`" + `; the rest is on ` + "`gpu_info`" + `, to be joined by ` + "`uuid`" + `.
* **dcgm**: dcgm-exporter's names, units, types and labels as they were before its 4.9, so that dashboards and alerts work
  unchanged. Labels ` + "`gpu`, `UUID`, `pci_bus_id`, `device`, `modelName`, `Hostname` and `hostname`, `DCGM_FI_DRIVER_VERSION`" + `.
  While this schema is on, the page is in Prometheus' text format: OpenMetrics would rename its counters.

` + "`namespace`, `pod` and `container`" + ` are added while exactly one container holds the GPU. A GPU that is free or shared has none of
them, so that a sum over devices counts each once; ` + "`gpu_allocation_info`" + ` names each holder, to be joined by ` + "`uuid`" + `. Families marked † are true of the board whoever holds it and never have them.
Prometheus keeps its own ` + "`pod`" + ` of the scrape target and renames these to ` + "`exported_pod`" + ` unless ` + "`honorLabels: true`" + ` is set.
`

// page writes one table of the documentation.
func page[T any](b *strings.Builder, title, text string, families []family[T], twins bool) {
	fmt.Fprintf(b, "\n## %s\n\n%s\n\n", title, text)
	if twins {
		b.WriteString("| family | type | unit | more labels | meaning | in dcgm-exporter |\n|---|---|---|---|---|---|\n")
	} else {
		b.WriteString("| family | type | unit | more labels | meaning |\n|---|---|---|---|---|\n")
	}
	for _, f := range families {
		kind := "gauge"
		if f.kind == prometheus.CounterValue {
			kind = "counter"
		}
		mark := ""
		if f.board {
			mark = " †"
		}
		fmt.Fprintf(b, "| `%s`%s | %s | %s | %s | %s |", f.name, mark, kind, f.unit, cmp.Or(quoted(f.labels), "–"), f.help)
		if twins {
			twin := "–"
			if f.dcgm != "" {
				twin = quoted(strings.Split(f.dcgm, ", "))
			}
			fmt.Fprintf(b, " %s |", twin)
		}
		b.WriteString("\n")
	}
}

func quoted(names []string) string {
	var out []string
	for _, n := range names {
		out = append(out, "`"+n+"`")
	}
	return strings.Join(out, ", ")
}

func TestDocsAreTheTables(t *testing.T) {
	var b strings.Builder
	b.WriteString(docsHead)
	page(&b, "GPUs, native", "What is known of the board, readable or not.", boardFamilies(), true)
	page(&b, "GPU readings, native", "Each is absent where the GPU or its driver does not report it.", readingFamilies(), true)
	page(&b, "MIG instances, native", "Labels `gpu` and `uuid` of the GPU, `gpu_instance_id`, `compute_instance_id` and `mig_profile`; `gpu_mig_info` has the instance's "+
		"own UUID. The GPU keeps its families, but for what NVML does not read while MIG is on: use, and the video engines. NVML reads by GPU instance: where several compute "+
		"instances share one, each shows the same. The pod labels are those of the instance's only holder.", migFamilies(), true)
	page(&b, "GPUs, dcgm", "A GPU that is split by MIG has a row for each GPU instance instead, with `GPU_I_PROFILE` and `GPU_I_ID`: memory and "+
		"`DCGM_FI_PROF_*` are the instance's, and what is the whole board's is repeated on each, so that a sum over rows counts power and energy too often, as in dcgm-exporter. `DCGM_FI_DEV_XID_ERRORS` is 0 before the first XID and falls back to 0 when none came for an hour (`exporter.xidHold`); "+
		"`gpu_xid_errors_total` keeps the count. `DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL` is a rate, typed counter as DCGM has it. "+
		"The `DCGM_FI_PROF_*` ratios are there on Hopper and newer: NVML has no equivalent below.", dcgmFamilies(), false)
	page(&b, "The agent", "In every schema. `go_*`, `process_*` and `promhttp_*` are beside them.", agentFamilies(), false)
	page(&b, "The model cache", "In every schema.", cacheFamilies(), false)
	golden(t, filepath.Join("..", "..", "docs", "METRICS.md"), b.String())
}
