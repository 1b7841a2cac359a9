package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/gpu-agent/gpu-agent/pkg/config"
)

// everything is a file with every key that NVIDIA's plugin 0.20 and its feature discovery read.
const everything = `version: v1
flags:
  migStrategy: mixed
  failOnInitError: true
  mpsRoot: /run/mps
  nvidiaDriverRoot: /run/nvidia/driver
  nvidiaDevRoot: /host
  gdrcopyEnabled: true
  gdsEnabled: true
  mofedEnabled: true
  useNodeFeatureAPI: true
  deviceDiscoveryStrategy: nvml
  plugin:
    passDeviceSpecs: true
    deviceListStrategy: [volume-mounts, cdi-cri]
    deviceIDStrategy: index
    cdiAnnotationPrefix: cdi.example.com/
    nvidiaCTKPath: /opt/nvidia-ctk
    containerDriverRoot: /driver
    sharedDevicesAllocationPolicy: packed
  gfd:
    oneshot: true
    noTimestamp: false
    sleepInterval: 30s
    outputFile: /features.d/gfd
    machineTypeFile: /machine
resources:
  gpus:
  - {pattern: "*H100*", name: h100}
  mig:
  - {pattern: 1g.10gb, name: nvidia.com/small}
sharing:
  timeSlicing:
    renameByDefault: true
    failRequestsGreaterThanOne: true
    resources:
    - {name: gpu, replicas: 4, devices: [0, "1:2", GPU-8c1f], rename: slow}
    - {name: nvidia.com/h100, replicas: 2, devices: 3}
    - {name: nvidia.com/small, replicas: 2}
imex:
  channelIDs: [0]
  required: true
`

func TestEveryKeyOfNVIDIAsFileIsMappedOrSaidToHaveNoEffect(t *testing.T) {
	t.Setenv("NODE_NAME", "n")
	c, err := config.Parse("nv.yaml", []byte(everything))
	require.NoError(t, err)
	want := config.Default().DevicePlugin
	want.MIGStrategy, want.MPSRoot, want.DevRoot = "mixed", "/run/mps", "/host/dev"
	want.GDRCopy, want.GDS, want.MOFED, want.PassDeviceSpecs = true, true, true, true
	want.Strategies, want.IDStrategy, want.CDIAnnotationPrefix = []string{"volume-mounts", "cdi-cri"}, "index", "cdi.example.com/"
	want.Resources = config.Resources{
		GPUs: []config.ResourceName{{Pattern: "*H100*", Name: "nvidia.com/h100"}},
		MIG:  []config.ResourceName{{Pattern: "1g.10gb", Name: "nvidia.com/small"}},
	}
	want.Sharing = config.Sharing{Allocation: "packed", TimeSlicing: &config.Shares{
		RenameByDefault: true, FailRequestsGreaterThanOne: new(true), Resources: []config.Shared{
			{Name: "nvidia.com/gpu", Rename: "nvidia.com/slow", Replicas: 4, Devices: config.Devices{List: []string{"0", "1:2", "GPU-8c1f"}}},
			{Name: "nvidia.com/h100", Replicas: 2, Devices: config.Devices{Count: 3}},
			{Name: "nvidia.com/small", Replicas: 2},
		},
	}}
	want.IMEX = config.IMEX{ChannelIDs: []int{0}, Required: true}
	require.Equal(t, want, c.DevicePlugin)
	require.Equal(t, config.Default().Labels, c.Labels)

	var said []string
	for _, note := range c.Notes {
		require.Regexp(t, `^nv\.yaml:\d+: flags\.[a-zA-Z.]+: .+`, note)
		said = append(said, strings.Fields(note)[1])
	}
	require.Equal(t, []string{
		"flags.failOnInitError:", "flags.nvidiaDriverRoot:", "flags.useNodeFeatureAPI:", "flags.plugin.nvidiaCTKPath:",
		"flags.plugin.containerDriverRoot:", "flags.gfd.oneshot:", "flags.gfd.noTimestamp:", "flags.gfd.sleepInterval:",
		"flags.gfd.outputFile:", "flags.gfd.machineTypeFile:", "flags.plugin.deviceListStrategy:",
	}, said)

	// What is printed for people is a file of ours with the same meaning.
	text, err := yaml.Marshal(c)
	require.NoError(t, err)
	again, err := config.Parse("again.yaml", []byte(head+string(text)))
	require.NoError(t, err)
	require.Equal(t, c.DevicePlugin, again.DevicePlugin)
}

func TestNVIDIAsOwnExamples(t *testing.T) {
	t.Setenv("NODE_NAME", "n")
	plain, err := config.Parse("dp.yaml", []byte(`version: v1
flags:
  migStrategy: "none"
  failOnInitError: true
  nvidiaDriverRoot: "/"
  plugin:
    passDeviceSpecs: false
    deviceListStrategy: envvar
    deviceIDStrategy: uuid
`))
	require.NoError(t, err)
	require.Equal(t, config.Default().DevicePlugin, plain.DevicePlugin)
	require.Equal(t, []string{"dp.yaml:4: flags.failOnInitError: has no effect: without a driver the agent waits for one, and says so"}, plain.Notes)

	mps, err := config.Parse("dp.json", []byte(`{"version": "v1", "sharing": {"mps": {"resources": [{"name": "nvidia.com/gpu", "replicas": 10}]},
  "timeSlicing": {"resources": [{"name": "nvidia.com/gpu", "replicas": 4}]}}}`))
	require.NoError(t, err)
	require.Nil(t, mps.DevicePlugin.Sharing.TimeSlicing)
	require.True(t, mps.DevicePlugin.Policy().MPS.FailRequestsGreaterThanOne, "the default for MPS alone")
	require.Equal(t, []string{"dp.json:2: sharing.timeSlicing: has no effect: sharing.mps wins where both are there, as in NVIDIA's plugin"}, mps.Notes)
}

func TestBadInputInNVIDIAsFileIsOneClearLineEach(t *testing.T) {
	const v1 = "version: v1\n"
	const slicing = v1 + "sharing:\n  timeSlicing:\n    resources:\n"
	for name, tc := range map[string]struct{ in, want string }{
		"version":        {"version: v2\n", `nv.yaml:1: version: want v1, got "v2"`},
		"unknown key":    {v1 + "flags:\n  migStrateggy: none\n", "nv.yaml:3: flags.migStrateggy: unknown key: NVIDIA's version v1 has none of this name"},
		"MIG strategy":   {v1 + "flags:\n  migStrategy: both\n", `nv.yaml:3: flags.migStrategy: "both" is unknown: use none, single, mixed`},
		"list strategy":  {v1 + "flags:\n  plugin:\n    deviceListStrategy:\n    - envvar\n    - cdi\n", `nv.yaml:6: flags.plugin.deviceListStrategy[1]: "cdi" is unknown: use envvar, volume-mounts, cdi-annotations, cdi-cri`},
		"one text":       {v1 + "flags:\n  plugin:\n    deviceListStrategy: cdi\n", `nv.yaml:4: flags.plugin.deviceListStrategy[0]: "cdi" is unknown: use envvar, volume-mounts, cdi-annotations, cdi-cri`},
		"id strategy":    {v1 + "flags: {plugin: {deviceIDStrategy: serial}}\n", `nv.yaml:2: flags.plugin.deviceIDStrategy: "serial" is unknown: use uuid, index`},
		"policy":         {v1 + "flags: {plugin: {sharedDevicesAllocationPolicy: tight}}\n", `nv.yaml:2: flags.plugin.sharedDevicesAllocationPolicy: "tight" is unknown: use distributed, packed`},
		"discovery":      {v1 + "flags:\n  deviceDiscoveryStrategy: tegra\n", `nv.yaml:3: flags.deviceDiscoveryStrategy: want one of auto, nvml, got "tegra"`},
		"type":           {v1 + "flags:\n  gdsEnabled: 7\n", "nv.yaml:3: flags.gdsEnabled: want true or false, got the number `7`"},
		"a section":      {v1 + "flags:\n  plugin:\n    deviceListStrategy:\n      envvar: true\n", "nv.yaml:5: flags.plugin.deviceListStrategy: want a text or a list of texts"},
		"no version":     {"flags:\n  migStrategy: both\n", `nv.yaml:2: flags.migStrategy: "both" is unknown: use none, single, mixed`},
		"no resource":    {v1 + "sharing:\n  timeSlicing:\n    renameByDefault: true\n", "nv.yaml:3: sharing.timeSlicing.resources: want at least one resource to share"},
		"no replicas":    {slicing + "    - name: gpu\n", "nv.yaml:5: sharing.timeSlicing.resources[0].replicas: want 2 or more, got 0"},
		"one replica":    {slicing + "    - name: gpu\n      replicas: 1\n", "nv.yaml:6: sharing.timeSlicing.resources[0].replicas: want 2 or more, got 1"},
		"no name":        {slicing + "    - replicas: 2\n", `nv.yaml:5: sharing.timeSlicing.resources[0].name: resource name "": want <domain>/<name> with a name of at most 63 characters, such as nvidia.com/gpu`},
		"devices":        {slicing + "    - name: gpu\n      replicas: 2\n      devices: some\n", `nv.yaml:7: sharing.timeSlicing.resources[0].devices: want all, a number of GPUs, or a list of indexes and UUIDs, got "some"`},
		"no devices":     {slicing + "    - name: gpu\n      replicas: 2\n      devices: 0\n", `nv.yaml:7: sharing.timeSlicing.resources[0].devices: want all, a number of GPUs, or a list of indexes and UUIDs, got "0"`},
		"a device":       {slicing + "    - name: gpu\n      replicas: 2\n      devices:\n      - 0\n      - first\n", `nv.yaml:9: sharing.timeSlicing.resources[0].devices[1]: "first": want an index such as 0, of a MIG instance 0:1, or a UUID`},
		"two rules":      {slicing + "    - {name: gpu, replicas: 2}\n    - {name: nvidia.com/gpu, rename: other, replicas: 3}\n", "nv.yaml:6: sharing.timeSlicing.resources[1].devices: two rules for all GPUs of nvidia.com/gpu: it is shared by sharing.timeSlicing.resources[0] already"},
		"two names":      {v1 + "resources:\n  gpus:\n  - {pattern: \"*\", name: a}\n  - {pattern: \"*\", name: b}\n", `nv.yaml:5: resources.gpus[1].pattern: two names for what matches "*": nvidia.com/b, and by resources.gpus[0] nvidia.com/a`},
		"MPS with mixed": {v1 + "flags: {migStrategy: mixed}\nsharing:\n  mps:\n    resources: [{name: gpu, replicas: 2}]\n", "nv.yaml:4: sharing.mps: MPS cannot share MIG instances: want migStrategy none or single, or sharing by timeSlicing"},
		"IMEX":           {v1 + "imex:\n  channelIDs: [1]\n", "nv.yaml:3: imex.channelIDs: want [] or [0], got [1]"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("nv.yaml", []byte(tc.in))
			require.EqualError(t, err, tc.want)
		})
	}
	_, err := config.Default().WithNVIDIA("nv.yaml", nil)
	require.EqualError(t, err, "nv.yaml: empty: want at least version: v1")
}

func TestTheSameMistakesInOurOwnFile(t *testing.T) {
	for in, want := range map[string]string{
		"devicePlugin:\n  sharing:\n    timeSlicing:\n      resources:\n      - name: nvidia.com/gpu\n        replicas: 1\n": "c.yaml:8: devicePlugin.sharing.timeSlicing.resources[0].replicas: want 2 or more, got 1",
		"devicePlugin:\n  exclude: [MIG-1]\n":          `c.yaml:4: devicePlugin.exclude[0]: "MIG-1" names no GPU: want a UUID, an index, a PCI address or a model such as *T4*`,
		"devicePlugin:\n  nvidiaConfig: nv.yaml\n":     `c.yaml:4: devicePlugin.nvidiaConfig: want an absolute path, got "nv.yaml"`,
		"devicePlugin:\n  strategies: [a]\n":           `c.yaml:4: devicePlugin.strategies[0]: "a" is unknown: use envvar, volume-mounts, cdi-annotations, cdi-cri`,
		"devicePlugin:\n  imex:\n    required: true\n": "c.yaml:5: devicePlugin.imex.required: required, but no channel is named: want channelIDs: [0]",
	} {
		_, err := config.Parse("c.yaml", []byte(head+in))
		require.EqualError(t, err, want)
	}
}

func TestNVIDIAsFileLiesOverOurs(t *testing.T) {
	t.Setenv("NODE_NAME", "n")
	dir := t.TempDir()
	theirs, ours := filepath.Join(dir, "nv.yaml"), filepath.Join(dir, "c.yaml")
	require.NoError(t, os.WriteFile(theirs, []byte("flags:\n  migStrategy: single\n  gdsEnabled: false\nsharing:\n  timeSlicing:\n    resources: [{name: gpu, replicas: 4}]\n"), 0o644))
	require.NoError(t, os.WriteFile(ours, []byte(head+"devicePlugin:\n  nvidiaConfig: "+theirs+"\n  migStrategy: mixed\n  strategies: [cdi-cri]\n  exclude: [\"0\"]\n"), 0o644))
	c, err := config.Load(ours)
	require.NoError(t, err)
	require.Equal(t, "single", c.DevicePlugin.MIGStrategy)
	require.Equal(t, []string{"cdi-cri"}, c.DevicePlugin.Strategies, "of which theirs says nothing")
	require.Equal(t, []string{"0"}, c.DevicePlugin.Exclude)
	require.Equal(t, 4, c.DevicePlugin.Sharing.TimeSlicing.Resources[0].Replicas)
	require.Equal(t, "distributed", c.DevicePlugin.Sharing.Allocation)
	require.Equal(t, []string{theirs + ":2: flags.migStrategy: wins over what the agent's own configuration says"}, c.Notes)

	require.NoError(t, os.WriteFile(theirs, []byte("flags: {migStrategy: twin}\n"), 0o644))
	_, err = config.Load(ours)
	require.EqualError(t, err, theirs+`:1: flags.migStrategy: "twin" is unknown: use none, single, mixed`)
	require.NoError(t, os.Remove(theirs))
	_, err = config.Load(ours)
	require.ErrorContains(t, err, ours+": devicePlugin.nvidiaConfig: open "+theirs)
}

func FuzzWithNVIDIANeverPanics(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte("version: v1\nflags: [1]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := config.Default().WithNVIDIA("f.yaml", data); err != nil {
			require.NotEmpty(t, err.Error())
		}
	})
}
