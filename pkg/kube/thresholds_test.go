package kube

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheKubeletsThresholdsAreThoseOfItsFilesAndItsDefaults(t *testing.T) {
	const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 50\n"
	defaults := []string{"imagefs.available<15%", "imagefs.inodesFree<5%", "nodefs.available<10%", "nodefs.inodesFree<5%", "imageGCHighThresholdPercent 85"}
	for name, tc := range map[string]struct {
		file    string
		dropIns map[string]string
		want    []string
		problem string
	}{
		"no file":             {want: defaults, problem: "no such file"},
		"nothing of disks":    {file: head, want: defaults},
		"not yaml":            {file: "a: [", want: defaults, problem: "config.yaml is not a KubeletConfiguration"},
		"of another kind":     {file: "evictionHard: 5", want: defaults, problem: "config.yaml is not a KubeletConfiguration"},
		"some, and no others": {file: head + "evictionHard: {memory.available: 1Gi, nodefs.available: 20Gi}\n", want: []string{"nodefs.available<20Gi", "imageGCHighThresholdPercent 85"}},
		"some, and the defaults": {file: head + "mergeDefaultEvictionSettings: true\nevictionHard: {imagefs.available: 25.5%}\n",
			want: []string{"imagefs.available<25.5%", "imagefs.inodesFree<5%", "nodefs.available<10%", "nodefs.inodesFree<5%", "imageGCHighThresholdPercent 85"}},
		"none": {file: `{"evictionHard": {"nodefs.available": "0%", "imagefs.available": "100%"}, "imageGCHighThresholdPercent": 100}`},
		"soft ones": {file: head + "evictionSoft: {nodefs.available: 20%, memory.available: 1Gi}\nevictionSoftGracePeriod: {nodefs.available: 1m}\nimageGCHighThresholdPercent: 70\n",
			want: []string{"imagefs.available<15%", "imagefs.inodesFree<5%", "nodefs.available<10%", "nodefs.inodesFree<5%", "nodefs.available<20%", "imageGCHighThresholdPercent 70"}},
		"drop-ins in their order, over the defaults": {file: head, dropIns: map[string]string{
			"20.conf": "evictionHard: {nodefs.available: 7%}\n", "10.conf": "evictionHard: {nodefs.available: 6%, imagefs.available: 8%}\nimageGCHighThresholdPercent: 90\n",
			"30.yaml": "evictionHard: {nodefs.available: 99%}\n"},
			want: []string{"imagefs.available<8%", "imagefs.inodesFree<5%", "nodefs.available<7%", "nodefs.inodesFree<5%", "imageGCHighThresholdPercent 90"}},
		"a value that is none": {file: head + "evictionHard: {nodefs.available: 10, imagefs.available: -5%, nodefs.inodesFree: x}\n",
			want: []string{"nodefs.available<10", "imageGCHighThresholdPercent 85"}, problem: "imagefs.available<-5%: want 0% to 100%"},
	} {
		t.Run(name, func(t *testing.T) {
			file, dir := filepath.Join(t.TempDir(), "config.yaml"), ""
			if tc.file != "" {
				require.NoError(t, os.WriteFile(file, []byte(tc.file), 0o600))
			}
			if tc.dropIns != nil {
				dir = t.TempDir()
			}
			for name, text := range tc.dropIns {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
			}
			got, err := DiskThresholds(file, dir)
			var what []string
			for _, th := range got {
				what = append(what, th.What)
			}
			require.Equal(t, tc.want, what)
			if tc.problem == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, tc.problem)
			}
		})
	}
}

func TestAThresholdIsAShareOrAnAmount(t *testing.T) {
	for value, want := range map[string]Threshold{
		"12.5%": {What: "nodefs.inodesFree<12.5%", Inodes: true, Percent: 12.5},
		"10k":   {What: "nodefs.inodesFree<10k", Inodes: true, Amount: 10_000},
		"0%":    {},
	} {
		got, err := parseThreshold("nodefs.inodesFree", value)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}
