package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/supervise"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

func TestThePageShowsWhatThereIs(t *testing.T) {
	snapshot := gputest.Sick(gputest.Node(2), 1, gpu.Lost)
	s := &state{
		Node: "node-1", Snapshot: snapshot, Plugin: &pluginState{Error: "kubelet is not there"},
		Owners: map[gpu.UUID][]resource.Owner{gputest.UUID(0): {{Namespace: "ns", Pod: "pod"}}},
		Tasks:  map[string]supervise.Task{"cache": {Error: "disk is full"}},
		Cache:  &model.Inventory{Models: []model.Status{{Name: "llama", State: model.Pulling, Size: 2048, Done: 1024}}},
		Labels: map[string]string{"nvidia.com/gpu.count": "2"},
	}
	var out strings.Builder
	require.NoError(t, writePage(&out, s))
	for _, want := range []string{
		"gpu-agent on node-1", "(driver 550.163.01)", "NVIDIA H100 80GB HBM3", "ns/pod", "GPU is Lost", "needs ResetGPU",
		"1.0 KiB of 2.0 KiB", "disk is full", "kubelet is not there", "nvidia.com/gpu.count",
	} {
		require.Contains(t, out.String(), want)
	}
	require.Equal(t, strings.Count(out.String(), "<tr>"), strings.Count(out.String(), "</tr>"))

	require.NoError(t, writePage(&out, &state{Snapshot: &gpu.Snapshot{}, Allocation: "none"}))
	require.Contains(t, out.String(), "<tr><td>none</td></tr>")
	require.Contains(t, out.String(), "Allocation is none")
}

// A model that is there is not broken while its update waits or fails, and yet both say why.
func TestWhyAnUpdateDoesNotComeIsShown(t *testing.T) {
	for _, tc := range []struct{ reason, state, why string }{
		{"Paused", "Ready, update waits (Paused)", "what was pulled is here; its update waits: because"},
		{"Throttled", "Ready, update waits (Throttled)", "what was pulled is here; its update waits: because"},
		{"NotFound", "Ready, update failed (NotFound)", "what was pulled is here; the last look for a newer revision failed: because"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			m := model.Status{Name: "llama", State: model.Ready, Size: 2048, Done: 2048,
				Update: &model.Update{Size: 4096, Done: 1024, Reason: tc.reason, Message: "because"}}
			if tc.reason == "NotFound" {
				m.Reason, m.Message = tc.reason, "because"
			}
			s := &state{Snapshot: gputest.Node(1), Cache: &model.Inventory{Models: []model.Status{m}}}
			var page, status, ls, explain strings.Builder
			require.NoError(t, writePage(&page, s))
			require.NoError(t, s.print(&status))
			require.NoError(t, printModels(&ls, s.Cache))
			require.NoError(t, printExplanation(&explain, model.Explanation{Status: m}))
			require.Contains(t, page.String(), "<td>"+tc.state+"</td><td>2.0 KiB</td>")
			require.Contains(t, page.String(), "<td>because</td>")
			row := `(?m)^llama +` + regexp.QuoteMeta(tc.state) + ` .*because$`
			require.Regexp(t, row, status.String())
			require.Regexp(t, row, ls.String())
			require.Regexp(t, `(?m)^STATE +`+regexp.QuoteMeta(tc.state)+`$`, explain.String())
			require.Regexp(t, `(?m)^WHY +`+regexp.QuoteMeta(tc.why)+`$`, explain.String())
		})
	}
}

// Names, errors and labels come from boards, origins and other people's manifests.
func TestNothingOnThePageIsMarkupOfOthers(t *testing.T) {
	const evil = `<script>"'&`
	snapshot := gputest.Sick(gputest.Node(1), 0, evil)
	d := &snapshot.Devices[0]
	d.Name, d.UUID, d.Health.Text = evil, evil, evil
	d.Instances = []gpu.Instance{{UUID: evil, Profile: evil}}
	snapshot.Devices = append(snapshot.Devices, gpu.Device{Notices: []gpu.Notice{{Code: evil, Text: evil}}})
	snapshot.Driver = gpu.Driver{Version: evil, Error: evil}
	snapshot.Unidentified, snapshot.StateError = []gpu.Unidentified{{Why: evil}}, evil
	s := &state{
		Node: evil, Version: evil, Snapshot: snapshot, Problems: []string{evil}, Allocation: evil, Config: configState{Error: evil},
		Owners: map[gpu.UUID][]resource.Owner{evil: {{Namespace: evil, Pod: evil}}},
		Tasks:  map[string]supervise.Task{evil: {Error: errors.New(evil).Error()}},
		Cache: &model.Inventory{Root: evil, Models: []model.Status{{Name: evil, State: evil, Source: evil, Message: evil}, {Name: evil, State: evil, Update: &model.Update{Reason: evil, Message: evil}}},
			Problems: []model.Problem{{Message: evil}}},
		Labels: map[string]string{evil: evil},
	}
	for _, plugin := range []*pluginState{nil, {Error: evil}} {
		s.Plugin = plugin
		var out strings.Builder
		require.NoError(t, writePage(&out, s))
		require.NotContains(t, out.String(), "<script>")
		require.NotContains(t, strings.ReplaceAll(out.String(), pageStyle, ""), `"'&`)
	}
}

func TestAGPUThatDoesNotSayWhoItIsIsNamedByItsIndex(t *testing.T) {
	s := &state{Snapshot: gputest.Node(1)}
	s.Snapshot.Unidentified = []gpu.Unidentified{{Index: 3, Why: "ERROR_UNKNOWN"}, {Index: 7, Why: "no answer in time"}}
	var page, status strings.Builder
	require.NoError(t, writePage(&page, s))
	require.NoError(t, s.print(&status))
	ready := httptest.NewRecorder()
	writeReady(ready, s, nil)
	require.Equal(t, http.StatusOK, ready.Code, "the others are served")
	for _, shown := range []string{page.String(), status.String(), ready.Body.String()} {
		require.Regexp(t, `\b3\b.*does not say who it is, and is in no list: ERROR_UNKNOWN`, shown)
		require.Regexp(t, `\b7\b.*does not say who it is, and is in no list: no answer in time`, shown)
	}
}

func TestWhatIsAmissIsSaidUnderTheNameOfItsPart(t *testing.T) {
	s := &state{Snapshot: gputest.Node(1), Problems: []string{"no such resource"},
		Cache: &model.Inventory{Problems: []model.Problem{{Reason: "DiskGone", Message: "disk b is gone"}}}}
	s.Snapshot.StateError = "the folder is full"
	var page, status strings.Builder
	require.NoError(t, writePage(&page, s))
	require.NoError(t, s.print(&status))
	for _, row := range []string{`(?m)^config +no such resource$`, `(?m)^health +the folder is full$`, `(?m)^cache +disk b is gone$`} {
		require.Regexp(t, row, status.String())
	}
	for _, note := range []string{">Not as configured: no such resource<", ">Health: the folder is full<", ">Model cache: disk b is gone<"} {
		require.Contains(t, page.String(), note)
	}
}
