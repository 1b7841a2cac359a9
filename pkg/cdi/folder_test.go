package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	cdilib "tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/gpu-agent/gpu-agent/internal/durable"
)

func withEnv(env string) *specs.Spec {
	return &specs.Spec{
		Kind: Vendor + "/" + ClassGPU, Annotations: map[string]string{ownerKey: ours},
		Devices: []specs.Device{{Name: "GPU-a", ContainerEdits: specs.ContainerEdits{Env: []string{env}}}},
	}
}

func TestTheRuntimeSeesTheOldSpecOrTheNewWhateverStepFails(t *testing.T) {
	for i := 1; ; i++ {
		f := folder{path: t.TempDir()}
		require.NoError(t, f.write(withEnv("V=old")))
		n := 0
		f.disk = durable.Disk{Fault: func(string, string) error {
			if n++; n >= i {
				return errors.New("injected")
			}
			return nil
		}}
		err := f.write(withEnv("V=new"))
		cache, cacheErr := cdilib.NewCache(cdilib.WithSpecDirs(f.path), cdilib.WithAutoRefresh(false))
		require.NoError(t, cacheErr)
		require.Empty(t, cache.GetErrors(), "no half file bears a name that the runtime reads")
		got := cache.GetDevice(Vendor + "/gpu=GPU-a").ContainerEdits.Env
		if err == nil {
			require.Equal(t, []string{"V=new"}, got)
			require.Greater(t, i, 6)
			return
		}
		require.ErrorContains(t, err, "injected")
		require.Contains(t, []string{"V=old", "V=new"}, got[0])
	}
}

func TestASpecThatTheRuntimeWouldRefuseIsNotWritten(t *testing.T) {
	f := folder{path: t.TempDir()}
	require.NoError(t, f.write(withEnv("V=old")))
	bad := withEnv("V=new")
	bad.Devices[0].ContainerEdits.DeviceNodes = []*specs.DeviceNode{{Path: ""}}
	require.ErrorContains(t, f.write(bad), "spec of k8s.device-plugin.nvidia.com/gpu: invalid CDI Spec")
	require.Equal(t, "V=old", f.read(ClassGPU).Devices[0].ContainerEdits.Env[0])
	left, err := os.ReadDir(f.path)
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestAnUnchangedSpecIsNotWrittenAgain(t *testing.T) {
	f := folder{path: t.TempDir()}
	require.NoError(t, f.write(withEnv("V=1")))
	before := f.stamp()
	require.NoError(t, f.write(withEnv("V=1")))
	require.Equal(t, before, f.stamp())
	require.NoError(t, os.WriteFile(filepath.Join(f.path, "x"), nil, 0o600))
	require.NotEqual(t, before, f.stamp())
}
