package nvml

import (
	"encoding/csv"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// TestThePolicyIsTheCatalogs compares the table with testdata/xid-policy.csv: NVIDIA's XID catalog of 2025-10-29
// with the policy that we derive from each row.
func TestThePolicyIsTheCatalogs(t *testing.T) {
	actions := map[string]action{
		"healthy_count_only": countOnly,
		"healthy_unless_recovery_action (solo burst: flag fabric manager)": askOrCount,
		"trigger_recovery_action_query_only":                               askOrCount,
		"healthy_warn":                                                     noticeOnly,
		"healthy_warn (power connector)":                                   noticeOnly,
		"healthy_warn (vgpu software mismatch)":                            noticeOnly,
		"healthy (reset pending fact)":                                     noticeReset,
		"ask_recovery_action_else_drain_until_reset":                       askOrReset,
		"ask_recovery_action_else_unhealthy_sticky":                        askOrSupport,
		"drain_until_reset":                                                untilReset,
		"healthy_if_paired_with_63_or_94_else_drain_until_reset":           untilContained,
		"as_48":                            untilContained,
		"unhealthy_until_reboot_or_rescan": untilRescan,
		"unhealthy_until_reboot":           untilReboot,
	}
	f, err := os.Open("testdata/xid-policy.csv")
	require.NoError(t, err)
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows[1:], 172)
	require.Len(t, xidCatalog, 172)
	for _, row := range rows[1:] {
		xid, err := strconv.ParseUint(row[0], 10, 64)
		require.NoError(t, err)
		want, known := actions[row[2]]
		require.True(t, known, "XID %d: %s", xid, row[2])
		require.Equal(t, xidEntry{row[1], want}, xidCatalog[xid], "XID %d", xid)
	}
	act, text := xidRules{}.judge(999)
	require.Equal(t, askOrSupport, act)
	require.Equal(t, "XID 999 (not in NVIDIA's XID catalog)", text)
}

func TestAnOperatorsPolicyComesBeforeTheCatalog(t *testing.T) {
	judge := func(r xidRules, xid uint64) action { a, _ := r.judge(xid); return a }
	r := xidRules{policies: map[uint64]XIDPolicy{109: XIDIgnore, 94: XIDReset, 79: XIDCatalog}, rest: XIDNotice}
	require.Equal(t, countOnly, judge(r, 109))
	require.Equal(t, untilReset, judge(r, 94))
	require.Equal(t, untilRescan, judge(r, 79))
	require.Equal(t, noticeOnly, judge(r, 119))
	require.Equal(t, []string{"ignore", "notice", "operator", "reboot", "reset"}, XIDPolicies())
}

func TestTheVariablesOfNVIDIAsPluginAreHonoured(t *testing.T) {
	for name, tc := range map[string]struct {
		disable, enable string
		want            map[uint64]action // of these codes
		ignore          []gpu.Reason
		skipped         []string
	}{
		"nothing":           {"", "", map[uint64]action{79: untilRescan, 13: countOnly, 109: untilReset, 48: untilContained}, nil, nil},
		"a list":            {"79, 48,x", "", map[uint64]action{79: countOnly, 48: countOnly, 119: untilReset}, nil, []string{"x"}},
		"xids":              {"XIDS", "", map[uint64]action{79: countOnly, 119: countOnly, 999: countOnly}, nil, nil},
		"all":               {"all", "", map[uint64]action{79: countOnly}, conditionReasons(), nil},
		"all but one":       {"all", "79,-1", map[uint64]action{79: untilRescan, 119: countOnly}, conditionReasons(), []string{"-1"}},
		"an ignored code":   {"", "13", map[uint64]action{13: untilReset, 31: countOnly}, nil, nil},
		"enabled wins":      {"79", "79", map[uint64]action{79: untilRescan}, nil, nil},
		"everything is bad": {"13", "all", map[uint64]action{13: untilReset, 45: untilReset, 79: untilRescan, 74: askOrReset}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := Health{XIDs: map[uint64]XIDPolicy{7: XIDNotice}}
			require.Equal(t, tc.skipped, h.HealthChecks(tc.disable, tc.enable))
			for xid, want := range tc.want {
				got, _ := xidRules{h.XIDs, h.OtherXIDs}.judge(xid)
				require.Equal(t, want, got, "XID %d", xid)
			}
			require.Equal(t, tc.ignore, h.Ignore)
		})
	}
}
