package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/config"
)

// replicas are of time-slicing in the file that is chosen; 0 is that none is shared.
func replicas(t *testing.T, path, choice string) int {
	t.Helper()
	c, err := config.LoadFor(path, choice)
	require.NoError(t, err)
	if c.DevicePlugin.Sharing.TimeSlicing == nil {
		return 0
	}
	return c.DevicePlugin.Sharing.TimeSlicing.Resources[0].Replicas
}

func TestTheNodesLabelChoosesAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put := func(name, replicas string) {
		text := "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: " + replicas + "}]}}\n"
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	theirs := filepath.Join(dir, "theirs")
	require.NoError(t, os.Mkdir(theirs, 0o755))
	path := filepath.Join(dir, "c.yaml")
	require.NoError(t, os.WriteFile(path, []byte(head+"devicePlugin: {nvidiaConfigDir: "+theirs+"}\n"), 0o600))

	require.Zero(t, replicas(t, path, ""), "none there")
	put("theirs/a100", "3")
	require.Equal(t, 3, replicas(t, path, ""), "the only one")
	put("theirs/h100", "5")
	put("theirs/..data", "7") // the kubelet's
	require.Zero(t, replicas(t, path, ""), "two, and none is the default")
	require.Equal(t, 3, replicas(t, path, "a100"))
	require.Equal(t, 5, replicas(t, path, "h100"))
	put("theirs/default", "9")
	require.Equal(t, 9, replicas(t, path, ""))

	_, err := config.LoadFor(path, "b200")
	require.EqualError(t, err, path+": devicePlugin.nvidiaConfigDir: the node's label nvidia.com/device-plugin.config is b200, and there is no such file in "+theirs+": it has a100, default, h100")
	_, err = config.LoadFor(path, "..data")
	require.ErrorContains(t, err, "there is no such file")
}

func TestAFolderOfFilesNeedsTheNodesLabel(t *testing.T) {
	t.Parallel()
	_, err := config.Parse("c.yaml", []byte(head+"devicePlugin: {nvidiaConfigDir: /a}\nlabels: {sink: none}\n"))
	require.EqualError(t, err, "c.yaml:3: devicePlugin.nvidiaConfigDir: want labels.sink node with it: the node's label is read from the API server")
	_, err = config.Parse("c.yaml", []byte(head+"devicePlugin: {nvidiaConfigDir: /a, nvidiaConfig: /b}\n"))
	require.EqualError(t, err, "c.yaml:3: devicePlugin.nvidiaConfigDir: want nvidiaConfig or nvidiaConfigDir, not both")
}
