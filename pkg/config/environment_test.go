package config_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/config"
)

func TestAVariableOfNVIDIAsPluginIsSaidToHaveNoEffect(t *testing.T) {
	set := map[string]string{"MIG_STRATEGY": "mixed", "MPS_ROOT": "", "PATH": "/bin", "DP_DISABLE_HEALTHCHECKS": "all", "IMEX_CHANNEL_IDS": "0"}
	require.Equal(t, []string{
		"environment variable MIG_STRATEGY of NVIDIA's device plugin has no effect: set devicePlugin.migStrategy",
		"environment variable IMEX_CHANNEL_IDS of NVIDIA's device plugin has no effect: set devicePlugin.imex.channelIDs",
	}, config.NVIDIAVariables(func(name string) (string, bool) { v, ok := set[name]; return v, ok }))
}
