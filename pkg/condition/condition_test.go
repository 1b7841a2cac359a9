package condition

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
)

func TestTheConditionSaysWhatTheSnapshotDoes(t *testing.T) {
	t.Parallel()
	unidentified := gputest.Node(7)
	unidentified.Unidentified = []gpu.Unidentified{{Index: 3, Why: "ERROR_UNKNOWN"}}
	away := gputest.Sick(gputest.Node(1), 0, gpu.Released)
	away.Driver = gpu.Driver{Error: "released by an operator"}
	tests := map[string]struct {
		s    *gpu.Snapshot
		want verdict
	}{
		"nothing asked": {nil, verdict{"Unknown", "DriverNotLoaded", "the driver was not asked yet"}},
		"no driver": {
			&gpu.Snapshot{Driver: gpu.Driver{Error: "libnvidia-ml.so.1 not found"}},
			verdict{"Unknown", "DriverNotLoaded", "the driver is not loaded: libnvidia-ml.so.1 not found"},
		},
		"released": {away, verdict{
			"False", "Released",
			"0 of 1 GPUs are healthy; GPU 0 (GPU-00000000-0000-0000-0000-000000000000): Released: GPU is Released, needs ResetGPU",
		}},
		"no GPU":      {gputest.Node(0), verdict{"Unknown", "NoGPUs", "the driver is loaded and names no GPU"}},
		"all healthy": {gputest.Node(8), verdict{"True", "AllHealthy", "8 of 8 GPUs are healthy"}},
		"one sick": {gputest.Sick(gputest.Node(8), 3, gpu.XID), verdict{
			"False", "XID",
			"7 of 8 GPUs are healthy; GPU 3 (GPU-00000000-0000-0000-0000-000000000003): XID: GPU is XID, needs ResetGPU",
		}},
		"one reason twice": {gputest.Sick(gputest.Sick(gputest.Node(2), 0, gpu.Lost), 1, gpu.Lost), verdict{
			"False", "Lost",
			"0 of 2 GPUs are healthy; GPU 0 (GPU-00000000-0000-0000-0000-000000000000): Lost: GPU is Lost, needs ResetGPU; " +
				"GPU 1 (GPU-00000000-0000-0000-0000-000000000001): Lost: GPU is Lost, needs ResetGPU",
		}},
		"never said who it is": {unidentified, verdict{"False", "Unreadable", "7 of 8 GPUs are healthy; GPU 3 never said who it is: ERROR_UNKNOWN"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, judge(tt.s))
		})
	}
	mixed := judge(gputest.Sick(gputest.Sick(gputest.Node(8), 0, gpu.Lost), 1, gpu.XID))
	require.Equal(t, "SeveralReasons", mixed.reason)
}

func TestAMessageIsBounded(t *testing.T) {
	t.Parallel()
	s := gputest.Node(16)
	for i := range s.Devices {
		s = gputest.Sick(s, i, gpu.Hung)
		s.Devices[i].Health.Text = strings.Repeat("§", 100+i)
	}
	got := judge(s).message
	require.LessOrEqual(t, len(got), maxMessage)
	require.True(t, utf8.ValidString(got))
	require.True(t, strings.HasSuffix(got, " …"))
}
