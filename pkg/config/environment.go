package config

import "fmt"

// nvidiaVariables are the environment variables of NVIDIA's device plugin, with what says the same here.
// DP_DISABLE_HEALTHCHECKS and DP_ENABLE_HEALTHCHECKS are not among them: they hold here too. A table: nobody changes it.
var nvidiaVariables = []struct{ name, instead string }{
	{"MIG_STRATEGY", "devicePlugin.migStrategy"},
	{"DEVICE_LIST_STRATEGY", "devicePlugin.strategies"},
	{"DEVICE_ID_STRATEGY", "devicePlugin.idStrategy"},
	{"PASS_DEVICE_SPECS", "devicePlugin.passDeviceSpecs"},
	{"NVIDIA_DRIVER_ROOT", "devicePlugin.devRoot and cdi.driverRoot"},
	{"NVIDIA_DEV_ROOT", "devicePlugin.devRoot and cdi.devRoot"},
	{"DRIVER_ROOT_CTR_PATH", "nvml.library and cdi.driverRootMount"},
	{"GDRCOPY_ENABLED", "devicePlugin.gdrcopy"},
	{"GDS_ENABLED", "devicePlugin.gds"},
	{"MOFED_ENABLED", "devicePlugin.mofed"},
	{"CDI_ANNOTATION_PREFIX", "devicePlugin.cdiAnnotationPrefix"},
	{"NVIDIA_CDI_HOOK_PATH", "cdi.hook"},
	{"NVIDIA_CTK_PATH", "cdi.hook"},
	{"CDI_DISABLE_HOOKS", "cdi.disabledHooks"},
	{"MPS_ROOT", "devicePlugin.mpsRoot"},
	{"SHARED_DEVICES_ALLOCATION_POLICY", "devicePlugin.sharing.allocation"},
	{"IMEX_CHANNEL_IDS", "devicePlugin.imex.channelIDs"},
	{"IMEX_REQUIRED", "devicePlugin.imex.required"},
	{"KUBELET_SOCKET", "devicePlugin.kubeletDir"},
	{"CONFIG_FILE", "devicePlugin.nvidiaConfig"},
}

// NVIDIAVariables says of each variable of NVIDIA's device plugin that is set that it has no effect here, and which key
// has, one line each. lookup is os.LookupEnv; an empty variable is none, as NVIDIA's plugin has it.
func NVIDIAVariables(lookup func(string) (string, bool)) []string {
	var notes []string
	for _, v := range nvidiaVariables {
		if value, _ := lookup(v.name); value != "" {
			notes = append(notes, fmt.Sprintf("environment variable %s of NVIDIA's device plugin has no effect: set %s", v.name, v.instead))
		}
	}
	return notes
}
