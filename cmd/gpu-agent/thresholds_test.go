package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/config"
)

func TestTheKubeletsThresholdsCountOnItsDiskAlone(t *testing.T) {
	dir := t.TempDir()
	root, kubelet, file := filepath.Join(dir, "cache"), filepath.Join(dir, "kubelet"), filepath.Join(dir, "config.yaml")
	require.NoError(t, os.Mkdir(root, 0o700))
	c := config.Cache{Root: root, KubeletConfig: file}

	got, err := thresholds(c, kubelet)
	require.NoError(t, err)
	require.Empty(t, got, "there is no kubelet")

	require.NoError(t, os.Mkdir(kubelet, 0o700))
	got, err = thresholds(c, kubelet)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Contains(t, got, cache.Threshold{Why: "the kubelet evicts pods at nodefs.available<10% (by default: its configuration file is not seen)", Percent: 10})

	require.NoError(t, os.WriteFile(file, []byte("evictionHard: {nodefs.available: 30Gi, nodefs.inodesFree: 5%}\n"), 0o600))
	got, err = thresholds(c, kubelet)
	require.NoError(t, err)
	require.Equal(t, []cache.Threshold{
		{Why: "the kubelet evicts pods at nodefs.available<30Gi", Amount: 30 << 30},
		{Why: "the kubelet evicts pods at nodefs.inodesFree<5%", Inodes: true, Percent: 5},
		{Why: "the kubelet deletes images at imageGCHighThresholdPercent 85", Percent: 15},
	}, got)

	got, err = thresholds(c, "/proc")
	require.NoError(t, err)
	require.Empty(t, got, "the kubelet's disk is another")

	c.KubeletConfig = ""
	got, err = thresholds(c, kubelet)
	require.NoError(t, err)
	require.Empty(t, got, "they do not count")
}

func TestTheKubeletsFileIsLookedAtNowAndThen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		d := &kubeletDisk{cache: config.Cache{Root: dir, KubeletConfig: file}, kubelet: dir, log: slog.New(slog.NewTextHandler(&log, nil))}
		require.Len(t, d.thresholds(), 5, "the defaults")
		time.Sleep(thresholdsEvery)
		d.thresholds()
		require.Equal(t, 1, strings.Count(log.String(), "thresholds are not known"), log.String())
		require.NoError(t, os.WriteFile(file, []byte("evictionHard: {nodefs.available: 30Gi}\nimageGCHighThresholdPercent: 100\n"), 0o600))
		require.Len(t, d.thresholds(), 5)
		time.Sleep(thresholdsEvery)
		require.Equal(t, []cache.Threshold{{Why: "the kubelet evicts pods at nodefs.available<30Gi", Amount: 30 << 30}}, d.thresholds())
	})
}
