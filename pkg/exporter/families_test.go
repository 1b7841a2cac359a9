package exporter

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
)

// everything is the GPU with a value in every reading and every counter.
func everything(d gpu.Device) gpu.Device {
	s := &gpu.Stats{}
	fields := reflect.ValueOf(s).Elem()
	for i := range fields.NumField() {
		set(fields.Field(i))
	}
	used, total := uint64(3<<30), uint64(80<<30)
	s.MemoryUsed, s.MemoryTotal = &used, &total
	d.Stats = s
	d.XIDs = []gpu.XIDCount{{Code: 13, Count: 1, Last: gputest.Time}}
	d.NVLinks = []gpu.NVLink{{Count: 18}, {Remote: "00000000:0C:00.0", Count: 4}}
	d.Notices = []gpu.Notice{{Code: gpu.Contained, Needs: gpu.ResetGPU}}
	d.ReadErrors = []gpu.ReadError{{Op: "power", Return: "ERROR_TIMEOUT", Count: 1}}
	return d
}

// set points a field at a new value that is not zero.
func set(field reflect.Value) {
	v := reflect.New(field.Type().Elem())
	switch p := v.Interface().(type) {
	case *float64:
		*p = 0.5
	case *uint64:
		*p = 1
	case *bool:
		*p = true
	}
	field.Set(v)
}

func TestEveryReadingIsShown(t *testing.T) {
	readings := reflect.TypeFor[gpu.Stats]()
	for i := range readings.NumField() {
		s := &gpu.Stats{}
		set(reflect.ValueOf(s).Elem().Field(i))
		d := &device{Device: &gpu.Device{Stats: s}}
		shown := 0
		for _, f := range slices.Concat(dcgmFamilies(), readingFamilies()) {
			if f.name != "DCGM_FI_DEV_XID_ERRORS" {
				f.read(d, func(float64, ...string) { shown++ })
			}
		}
		require.NotZero(t, shown, "gpu.Stats.%s has no row in a table", readings.Field(i).Name)
	}
}

func TestUnits(t *testing.T) {
	f := func(v float64) *float64 { return &v }
	u := func(v uint64) *uint64 { return &v }
	b := func(v bool) *bool { return &v }
	d := &device{Device: &gpu.Device{Stats: &gpu.Stats{
		SMClock: f(1.98e9), MemoryClock: f(2.619e9), Temperature: f(41), SlowdownTemperature: f(90),
		Power: f(123.456), Energy: f(1000.5),
		Utilization: f(0.07), MemoryControllerUtilization: f(0.29), EncoderUtilization: f(1), DecoderUtilization: f(0),
		MemoryTotal: u(80<<30 + 1), MemoryUsed: u(1<<20 - 1), MemoryFree: u(79 << 30), MemoryReserved: u(1<<30 + 1),
		NVLinkBytesPerSecond: f(1024e6), NVLinkTransmit: u(4096),
		ThrottlePower: f(1.5), ThrottleThermal: f(2e-9),
		ECCCorrectedVolatile: u(1), ECCUncorrectedVolatile: u(2), ECCCorrectedAggregate: u(3), ECCUncorrectedAggregate: u(4),
		RemappedRowsCorrectable: u(5), RemappedRowsUncorrectable: u(6), RowRemapFailed: b(true), VGPULicensed: b(false),
		SMActive: f(0.125), SMOccupancy: f(0.25), PCIeTransmitPerSec: u(7), PCIeReceivePerSec: u(8),
		ClockReasons: u(4 | 128),
	}}}
	got := map[string]float64{}
	for _, f := range slices.Concat(dcgmFamilies(), readingFamilies()) {
		f.read(d, func(v float64, labels ...string) {
			got[strings.Join(append([]string{f.name}, labels...), " ")] = v
		})
	}
	for name, want := range map[string]float64{
		"DCGM_FI_DEV_SM_CLOCK":                       1980,
		"DCGM_FI_DEV_MEM_CLOCK":                      2619,
		"DCGM_FI_DEV_GPU_TEMP":                       41,
		"DCGM_FI_DEV_POWER_USAGE":                    123.456,
		"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION":       1000500,
		"DCGM_FI_DEV_GPU_UTIL":                       7,
		"DCGM_FI_DEV_MEM_COPY_UTIL":                  29,
		"DCGM_FI_DEV_ENC_UTIL":                       100,
		"DCGM_FI_DEV_DEC_UTIL":                       0,
		"DCGM_FI_DEV_FB_TOTAL":                       81920,
		"DCGM_FI_DEV_FB_USED":                        0,
		"DCGM_FI_DEV_FB_FREE":                        80896,
		"DCGM_FI_DEV_FB_RESERVED":                    1024,
		"DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL":         1000,
		"DCGM_FI_DEV_POWER_VIOLATION":                1.5e9,
		"DCGM_FI_DEV_THERMAL_VIOLATION":              2,
		"DCGM_FI_DEV_ECC_SBE_VOL_TOTAL":              1,
		"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL":              2,
		"DCGM_FI_DEV_ECC_SBE_AGG_TOTAL":              3,
		"DCGM_FI_DEV_ECC_DBE_AGG_TOTAL":              4,
		"DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS":      5,
		"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS":    6,
		"DCGM_FI_DEV_ROW_REMAP_FAILURE":              1,
		"DCGM_FI_DEV_VGPU_LICENSE_STATUS":            0,
		"DCGM_FI_PROF_SM_ACTIVE":                     0.125,
		"DCGM_FI_PROF_SM_OCCUPANCY":                  0.25,
		"DCGM_FI_PROF_PCIE_TX_BYTES":                 7,
		"DCGM_FI_PROF_PCIE_RX_BYTES":                 8,
		"gpu_sm_clock_hertz":                         1.98e9,
		"gpu_utilization_ratio":                      0.07,
		"gpu_energy_joules_total":                    1000.5,
		"gpu_memory_total_bytes":                     80<<30 + 1,
		"gpu_memory_used_ratio":                      float64(1<<20-1) / (79 << 30),
		"gpu_temperature_slowdown_margin_celsius":    49,
		"gpu_nvlink_transmit_bytes_total":            4096,
		"gpu_throttle_seconds_total power":           1.5,
		"gpu_throttle_seconds_total thermal":         2e-9,
		"gpu_ecc_errors_total corrected volatile":    1,
		"gpu_ecc_errors_total uncorrected volatile":  2,
		"gpu_ecc_errors_total corrected aggregate":   3,
		"gpu_ecc_errors_total uncorrected aggregate": 4,
		"gpu_remapped_rows correctable":              5,
		"gpu_remapped_rows uncorrectable":            6,
		"gpu_clocks_event_reason idle":               0,
		"gpu_clocks_event_reason sw_power_cap":       1,
		"gpu_clocks_event_reason hw_power_brake":     1,
		"gpu_clocks_event_reason reliability":        0,
	} {
		v, ok := got[name]
		require.True(t, ok, "%s is absent", name)
		require.Equal(t, want, v, name)
	}
	for _, absent := range []string{"DCGM_FI_DEV_MEMORY_TEMP", "gpu_memory_temperature_celsius", "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "gpu_nvlink_receive_bytes_total"} {
		require.NotContains(t, got, absent)
	}
}

func TestTablesAreComplete(t *testing.T) {
	dcgm := map[string]bool{}
	for _, f := range dcgmFamilies() {
		require.False(t, dcgm[f.name], "%s has two rows", f.name)
		dcgm[f.name] = true
		require.True(t, strings.HasPrefix(f.name, "DCGM_FI_"), f.name)
	}
	seen := map[string]bool{}
	twins := map[string]string{}
	for _, f := range nativeFamilies() {
		require.False(t, seen[f.name], "%s has two rows", f.name)
		seen[f.name], twins[f.name] = true, f.dcgm
	}
	for _, f := range migFamilies() {
		require.False(t, seen[f.name], "%s has two rows", f.name)
		require.True(t, strings.HasPrefix(f.name, "gpu_mig_"), f.name)
		seen[f.name], twins[f.name] = true, f.dcgm
	}
	for name, all := range twins {
		for twin := range strings.SplitSeq(all, ", ") {
			if strings.HasPrefix(twin, "DCGM_FI_") && !strings.Contains(twin, "*") {
				require.True(t, dcgm[twin], "%s names %s, which has no row", name, twin)
			}
		}
	}
}
