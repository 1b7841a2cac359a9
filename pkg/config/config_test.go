package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/nvml"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

const head = "apiVersion: gpu-agent.dev/v1alpha1\nkind: Config\n"

func TestTheReferenceIsTheDefault(t *testing.T) {
	t.Setenv("NODE_NAME", "node-1")
	want, err := config.Load("")
	require.NoError(t, err)
	require.Equal(t, "node-1", want.NodeName)

	got, err := config.Parse("reference.yaml", config.Reference)
	require.NoError(t, err)
	got.DevicePlugin.Strategies = append([]string(nil), got.DevicePlugin.Strategies...)
	require.Equal(t, want, got.Nowhere())

	got, err = config.Parse("two-lines.yaml", []byte(head))
	require.NoError(t, err)
	require.Equal(t, want, got.Nowhere())
}

func TestValuesAreFinished(t *testing.T) {
	c, err := config.Parse("c.yaml", []byte(head+`
nodeName: n
nvml: {interval: 1s, simulate: {gpu: H100, count: 8, mig: [{gpus: [0, 3], profiles: [1g.10gb, 3g.40gb]}]}}
cache:
  limit: 500Gi
  models:
  - {name: a, source: "s3://bucket/prefix", pinned: true, refresh: 0s}
  - {name: b, source: "https://host/b.bin#sha256=`+strings.Repeat("ab", 32)+`"}
`))
	require.NoError(t, err)
	require.Equal(t, time.Second, time.Duration(c.NVML.Interval))
	require.True(t, c.NVML.Simulate.On())
	require.Equal(t, nvml.Simulation{GPU: "H100", Count: 8, MIG: []nvml.SimulatedMIG{
		{GPUs: []int{0, 3}, Profiles: []string{"1g.10gb", "3g.40gb"}},
	}}, c.NVML.Simulate.NVML())
	require.EqualValues(t, 500<<30, c.Cache.Limit)
	specs := c.Cache.Specs()
	require.Len(t, specs, 2)
	require.Equal(t, "s3://bucket/prefix", specs[0].Source.String())
	require.True(t, specs[0].Pinned)
	require.Equal(t, []time.Duration{0, 6 * time.Hour}, []time.Duration{specs[0].Refresh, specs[1].Refresh})
	require.EqualValues(t, strings.Repeat("ab", 32), specs[1].Source.Digest)
}

func TestTheKindOfCDIDevicesFollowsWhoWritesThem(t *testing.T) {
	c, err := config.Parse("c.yaml", []byte(head+"cdi: {enabled: true}\ndevicePlugin: {strategies: [cdi-cri]}\n"))
	require.NoError(t, err)
	require.Equal(t, "k8s.device-plugin.nvidia.com/gpu", c.DevicePlugin.CDIKind)
}

func TestDisksHaveWhatTheCacheHasAndTheirOwn(t *testing.T) {
	c, err := config.Parse("c.yaml", []byte(head+`
devicePlugin: {injectModelsMount: {enabled: true, hostRoot: /host/cache}}
cache: {root: /cache, limit: 1Gi, keepFree: 20%, keep: 3, disks: [{name: a, root: /cache/disks/a}, {name: b, root: /b, limit: 2Gi, keepFree: 0%}]}
`))
	require.NoError(t, err)
	a, b := c.Cache.Only(c.Cache.Disks[0]), c.Cache.Only(c.Cache.Disks[1])
	require.Equal(t, []any{"/cache/disks/a", config.Bytes(0), 20, 3}, []any{a.Root, a.Limit, a.KeepFree.Percent, a.Keep})
	require.Equal(t, []any{"/b", config.Bytes(2 << 30), 0, 3}, []any{b.Root, b.Limit, b.KeepFree.Percent, b.Keep})
	require.Empty(t, b.Disks)
	p := c.Policy()
	require.Equal(t, "/host/cache/models", p.Models)
	require.Equal(t, []resource.ModelsDisk{
		{Name: "a", HostPath: "/cache/disks/a/models", Point: "/cache/models/disks/a"},
		{Name: "b", HostPath: "/b/models", Point: "/cache/models/disks/b"},
	}, p.ModelsDisks)
}

func TestSizesOfEveryUnit(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "5e3": 5000, "4000T": 4000e12, "4000Ti": 4000 << 40, "1000Pi": 1000 << 50, "1.5Gi": 3 << 29, "7Ei": 7 << 60, "": 0,
	} {
		c, err := config.Parse("c.yaml", []byte(head+"cache: {limit: "+text+"}\n"))
		require.NoError(t, err, text)
		require.EqualValues(t, want, c.Cache.Limit, text)
	}
}

func TestWindowsOfWhichOneNeverHoldsAreRefused(t *testing.T) {
	parse := func(windows ...string) error {
		text := head + "cache:\n  bandwidth:\n    windows:\n"
		for _, w := range windows {
			from, to, _ := strings.Cut(w, "-")
			text += "    - {from: \"" + from + "\", to: \"" + to + "\", limit: 5M}\n"
		}
		_, err := config.Parse("c.yaml", []byte(text))
		return err
	}
	const never = "it never holds: all of it is in earlier windows, of which the first that fits does ("
	for _, tc := range []struct {
		windows []string
		want    string // of all but the key's place and what to do
	}{
		{[]string{"08:00-18:00", "09:00-10:00"}, "c.yaml:7: cache.bandwidth.windows[1]: " + never + "windows[0] in line 6)"},
		{[]string{"08:00-18:00", "08:00-18:00"}, "c.yaml:7: cache.bandwidth.windows[1]: " + never + "windows[0] in line 6)"},
		{[]string{"22:00-06:00", "23:00-01:00"}, "c.yaml:7: cache.bandwidth.windows[1]: " + never + "windows[0] in line 6)"},
		{[]string{"22:00-06:00", "00:00-06:00"}, "c.yaml:7: cache.bandwidth.windows[1]: " + never + "windows[0] in line 6)"},
		{[]string{"08:00-12:00", "20:00-21:00", "12:00-18:00", "11:00-13:00"},
			"c.yaml:9: cache.bandwidth.windows[3]: " + never + "windows[0] in line 6, windows[2] in line 8)"},
		{[]string{"12:00-00:00", "00:00-12:00", "23:59-00:01"}, "c.yaml:8: cache.bandwidth.windows[2]: " + never + "windows[0] in line 6, windows[1] in line 7)"},
	} {
		require.EqualError(t, parse(tc.windows...), tc.want+": remove it, or put it before them", "%v", tc.windows)
	}
	for _, windows := range [][]string{
		{"09:00-10:00", "08:00-18:00"}, {"08:00-18:00", "17:59-18:01"}, {"22:00-06:00", "05:00-06:01"}, {"08:00-12:00", "12:01-18:00", "11:00-13:00"},
	} {
		require.NoError(t, parse(windows...), "%v", windows)
	}
}

func TestBadInputIsOneClearLineEach(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"empty":          {"", "c.yaml: empty: want at least apiVersion: gpu-agent.dev/v1alpha1 and kind: Config"},
		"not yaml":       {"a: [", "c.yaml:1: not YAML: did not find expected node content"},
		"no kind":        {"apiVersion: gpu-agent.dev/v1alpha1\n", `c.yaml: kind: want Config, got ""`},
		"other version":  {"apiVersion: v2\nkind: Config\n", `c.yaml:1: apiVersion: want gpu-agent.dev/v1alpha1, got "v2"`},
		"unknown key":    {head + "nvml:\n  libary: x\n", "c.yaml:4: nvml.libary: unknown key: see the reference for those that there are"},
		"no XID":         {head + "health:\n  xids:\n    x: ignore\n", "c.yaml:5: health.xids.x: want a whole number, got text `x`"},
		"other XID":      {head + "health:\n  xids:\n    1000: ignore\n", "c.yaml:5: health.xids.1000: want an XID of 1 to 999, got 1000"},
		"XID policy":     {head + "health:\n  xids:\n    109: never\n", `c.yaml:5: health.xids.109: want one of ignore, notice, operator, reboot, reset, got "never"`},
		"ignored reason": {head + "health:\n  ignore: [Lost]\n", `c.yaml:4: health.ignore[0]: want one of RecoveryAction, Unavailable, ECC, RowRemapFailed, SRAMThreshold, FabricFault, got "Lost"`},
		"references of any kind": {head + "cache: {demand: {references: true}}\n",
			"c.yaml:3: cache.demand.references: want references and prefixes together: without a prefix a pod could have this node fetch anything"},
		"a prefix": {head + "cache: {demand: {references: true, prefixes: [org/]}}\n",
			`c.yaml:3: cache.demand.prefixes[0]: want the beginning of references, such as hf://organization/, got "org/"`},
		"pods of a server that is not asked": {head + "labels: {sink: none}\ncache: {demand: {source: apiserver}}\n",
			"c.yaml:4: cache.demand.source: want labels.sink node with apiserver: that is the way to the API server"},
		"capability": {head + "cache:\n  models:\n  - {name: a, source: \"s3://b/a\", gpu: {minComputeCapability: 9}}\n",
			`c.yaml:5: cache.models[0].gpu.minComputeCapability: want major.minor, such as 8.0, got "9"`},
		"models without a cache": {head + "cache: {enabled: false}\ndevicePlugin: {injectModelsMount: {enabled: true}}\n",
			"c.yaml:4: devicePlugin.injectModelsMount.enabled: want cache.enabled with it: without the cache there are no models to mount"},
		"models without GPUs": {head + "allocation: none\ndevicePlugin: {injectModelsMount: {enabled: true}}\n",
			"c.yaml:4: devicePlugin.injectModelsMount.enabled: want allocation device-plugin with it: the mount comes with the GPUs"},
		"models over the system": {head + "devicePlugin: {injectModelsMount: {enabled: true, path: /usr}}\n",
			`c.yaml:3: devicePlugin.injectModelsMount.path: "/usr": it would hide what containers need there: want a clean absolute path in the container, such as /models`},
		"models of the whole host": {head + "devicePlugin: {injectModelsMount: {enabled: true, hostRoot: /}}\n",
			`c.yaml:3: devicePlugin.injectModelsMount.hostRoot: want an absolute path of the host that is not its root, such as /var/lib/gpu-agent, got "/"`},
		"no probes": {head + "health:\n  probes: 0\n", "c.yaml:4: health.probes: want 1 to 100, got 0"},
		"state dir": {head + "health: {stateDir: state}\n", `c.yaml:3: health.stateDir: want an absolute path, got "state"`},
		"a disk in another's models": {head + "cache: {root: /c, disks: [{name: b, root: /c/models/disks/b}]}\n",
			"c.yaml:3: cache.disks[0].root: /c/models/disks/b is in a folder that the cache of cache.root keeps: want it beside models and store, such as /c/disks/b"},
		"the root in a disk's store": {head + "cache: {root: /c/store/x, disks: [{name: b, root: /c}]}\n",
			"c.yaml:3: cache.disks[0].root: /c/store/x is in a folder that the cache of /c keeps: want them apart"},
		"one disk twice": {head + "cache: {disks: [{name: b, root: /b}, {name: d, root: /b/}]}\n",
			"c.yaml:3: cache.disks[1].root: /b/ is cache.disks[0].root too: each disk has a root of its own"},
		"two disks of a name": {head + "cache: {disks: [{name: b, root: /b}, {name: b, root: /d}]}\n",
			`c.yaml:3: cache.disks[1].name: "b" is also the name of cache.disks[0]: names must differ`},
		"a disk called root": {head + "cache: {disks: [{name: root, root: /b}]}\n",
			"c.yaml:3: cache.disks[0].name: want another name: root is the disk of cache.root"},
		"a disk without a root": {head + "cache: {disks: [{name: b}]}\n",
			"c.yaml:3: cache.disks[0].root: want an absolute path, got \"\""},
		"a disk without a name": {head + "cache: {disks: [{root: /b}]}\n",
			`c.yaml:3: cache.disks[0].name: want 1 to 63 of a-z 0-9 . _ -, with a letter or digit first and last, such as nvme1, got ""`},
		"unknown section": {head + "mig: {}\n", "c.yaml:3: mig: unknown key: see the reference for those that there are"},
		"wrong type":      {head + "cache:\n  streams: many\n", "c.yaml:4: cache.streams: want a whole number, got text `many`"},
		"section as text": {head + "cache: yes please\n", "c.yaml:3: cache: want a section of keys, got text `yes please`"},
		"list as text":    {head + "exporter:\n  schemas: dcgm\n", "c.yaml:4: exporter.schemas: want a list, got text `dcgm`"},
		"duplicate key":   {head + "log: {level: info}\nlog: {level: debug}\n", "c.yaml:4: log: given twice, first on line 3"},
		"unit":            {head + "nvml:\n  interval: 10\n", `c.yaml:4: nvml.interval: want a duration such as 10s, 5m or 1h, got "10"`},
		"size":            {head + "cache: {limit: 5XB}\n", `c.yaml:3: cache.limit: want a size such as 500Gi or 2T, got "5XB"`},
		"negative size":   {head + "cache: {limit: -5}\n", `c.yaml:3: cache.limit: want a size of whole bytes above 0 and below 8Ei, got "-5"`},
		"part of a byte":  {head + "cache: {limit: 5m}\n", `c.yaml:3: cache.limit: want a size of whole bytes above 0 and below 8Ei, got "5m"`},
		"tab":             {head + "nvml:\n\tinterval: 1s\n", "c.yaml:4: not YAML: found character that cannot start any token: indent with blanks, not with tabs, and quote a value that starts with @ or `"},
		"more after it":   {head + "...\ngarbage: [", "c.yaml:3: not YAML: did not find expected <document start>"},
		"two documents":   {head + "---\nb: 1\n", "c.yaml: holds more than one YAML document: want one"},
		"keys of one line": {head + "cache: {limit: 9999999Ei, streams: 99999999999999999999}\n",
			"c.yaml:3: cache.limit: want a size of whole bytes above 0 and below 8Ei, got \"9999999Ei\"\nc.yaml:3: cache.streams: want a whole number, got the number `9999999...`"},
		"what parsed is checked too": {head + "cache:\n  models:\n  - {name: a, source: \"ftp://h/f\"}\n  - {name: b, source: \"https://u:p@h/f\"}\n",
			"c.yaml:5: cache.models[0].source: want one of https, http, s3, oci, hf, ms, file, gs, az, got \"ftp\"\nc.yaml:6: cache.models[1].source: source https://h/f: credentials in the URL are not accepted: name a credentials file instead"},
		"listen":                  {head + "http: {listen: banana}\n", `c.yaml:3: http.listen: want [address]:port, such as :9400, got "banana"`},
		"port":                    {head + "http: {listen: \":99999\"}\n", `c.yaml:3: http.listen: want a port number of 0 to 65535, got "99999"`},
		"no socket":               {head + "http: {socket: \"\"}\n", `c.yaml:3: http.socket: want an absolute path, got ""`},
		"pod socket":              {head + "podResources: {socket: rel.sock}\n", `c.yaml:3: podResources.socket: want an absolute path, got "rel.sock"`},
		"library of a simulation": {head + "nvml:\n  library: /x\n  simulate: {gpu: T4, count: 1}\n", "c.yaml:4: nvml.library: a simulation loads no library: remove this or nvml.simulate"},
		"drop-ins of nothing": {head + "cache: {kubeletConfig: \"\", kubeletConfigDir: /etc/kubernetes/kubelet.conf.d}\n",
			"c.yaml:3: cache.kubeletConfigDir: want cache.kubeletConfig too: it holds drop-ins of that file"},
		"kubelet's file": {head + "cache: {kubeletConfig: config.yaml}\n", `c.yaml:3: cache.kubeletConfig: want an absolute path, got "config.yaml"`},
		"whole disk":     {head + "cache: {root: /}\n", `c.yaml:3: cache.root: want a directory of its own, such as /var/lib/gpu-agent, got "/"`},
		"node name":      {head + "nodeName: Bad Name!\n", `c.yaml:3: nodeName: want the name of a Node: a-z 0-9 - . and at most 253 of them, got "Bad Name!"`},
		"gpu":            {head + "nvml:\n  simulate:\n    gpu: V100\n    count: 1\n", `c.yaml:5: nvml.simulate.gpu: want one of A100, H100, H200, B200, L40S, T4, got "V100"`},
		"count":          {head + "nvml:\n  simulate:\n    gpu: H100\n    count: 17\n", "c.yaml:6: nvml.simulate.count: want 1 to 16, got 17"},
		"mig of T4":      {head + "nvml:\n  simulate:\n    gpu: T4\n    count: 2\n    mig:\n    - gpus: [0]\n", "c.yaml:8: nvml.simulate.mig[0]: a real T4 cannot be split: remove mig, or simulate another GPU"},
		"mig that cannot be": {head + "nvml:\n  simulate:\n    gpu: H100\n    count: 2\n    mig:\n    - gpus: [0]\n    - gpus: [1]\n      profiles: [4g.40gb, 4g.40gb]\n",
			"c.yaml:9: nvml.simulate.mig[1]: profiles 4g.40gb, 4g.40gb do not fit into one GPU together"},
		"mig without GPUs": {head + "nvml:\n  simulate:\n    mig:\n    - gpus: [0]\n", "c.yaml:4: nvml.simulate.gpu: want one of A100, H100, H200, B200, L40S, T4, got \"\"\nc.yaml:4: nvml.simulate.count: want 1 to 16, got 0"},
		"a section for text": {head + "cache:\n  sources:\n    hf: {mirrors: [{of: a}, {of: b}], endpoint: {a: b}}\n",
			"c.yaml:5: cache.sources.hf.mirrors[0]: want text, got a section of keys\n" +
				"c.yaml:5: cache.sources.hf.mirrors[1]: want text, got a section of keys\n" +
				"c.yaml:5: cache.sources.hf.endpoint: want text, got a section of keys"},
		"text for a section": {head + "cache: {sources: {oci: {mirrors: [m]}, hf: []}}\n",
			"c.yaml:3: cache.sources.oci.mirrors[0]: want a section of keys, got text `m`\n" +
				"c.yaml:3: cache.sources.hf: want a section of keys, got a list"},
		"file sink":        {head + "labels: {sink: file}\n", "c.yaml:3: labels.file: want a path when labels.sink is file, and none otherwise"},
		"relative root":    {head + "cache:\n  root: models\n", `c.yaml:4: cache.root: want an absolute path, got "models"`},
		"scheme":           {head + "cache:\n  models:\n  - name: a\n    source: ftp://h/f\n", `c.yaml:6: cache.models[0].source: want one of https, http, s3, oci, hf, ms, file, gs, az, got "ftp"`},
		"refresh":          {head + "cache: {refresh: 30s}\n", "c.yaml:3: cache.refresh: want 0s (never) or at least 1m, got 30s"},
		"model's refresh":  {head + "cache:\n  models:\n  - {name: a, source: s3://b/p, refresh: -1h}\n", "c.yaml:5: cache.models[0].refresh: want 0s (never) or at least 1m, got -1h0m0s"},
		"keep":             {head + "cache: {keep: -1}\n", "c.yaml:3: cache.keep: want 0 to 100 old revisions, got -1"},
		"scrub often":      {head + "cache: {scrub: {interval: 1m}}\n", "c.yaml:3: cache.scrub.interval: want 0s (never) or at least 1h, got 1m0s"},
		"scrub slowly":     {head + "cache: {scrub: {rate: 1Ki}}\n", "c.yaml:3: cache.scrub.rate: want at least 1Mi (a second), got 1.0 KiB"},
		"read nothing":     {head + "cache: {warm: {onReady: true, limit: 0%}}\n", "c.yaml:3: cache.warm.limit: want more than nothing, such as 50% or 200Gi; what turns reading ahead off is onReady and onPod"},
		"read for no pod":  {head + "cache: {demand: {source: none}, warm: {onPod: true}}\n", "c.yaml:3: cache.warm.onPod: want cache.demand.source kubelet or apiserver with it: else no pod is seen"},
		"credentials":      {head + "cache:\n  models:\n  - name: a\n    source: https://user:secret@h/f\n", "c.yaml:6: cache.models[0].source: source https://h/f: credentials in the URL are not accepted: name a credentials file instead"},
		"model name":       {head + "cache:\n  models:\n  - name: Org/Model\n    source: s3://b/p\n", `c.yaml:5: cache.models[0].name: model name "Org/Model": want 1 to 63 of a-z 0-9 . _ -, with a letter or digit first and last`},
		"two of one name":  {head + "cache:\n  models:\n  - {name: a, source: s3://b/p}\n  - {name: a, source: s3://b/q}\n", `c.yaml:6: cache.models[1].name: "a" is also the name of cache.models[0]: names must differ`},
		"file with a host": {head + "cache:\n  models:\n  - name: a\n    source: file://mnt/m\n", "c.yaml:6: cache.models[0].source: source file://mnt/m: want file:///absolute/path, with three slashes"},
		"filter, not hf":   {head + "cache:\n  models:\n  - {name: a, source: s3://b/p, allowPickle: true}\n", "c.yaml:5: cache.models[0].source: include, exclude and allowPickle are for hf:// and ms:// sources: remove them, or name another source"},
		"filter, bad":      {head + "cache:\n  models:\n  - {name: a, source: hf://o/n, include: ['[']}\n", `c.yaml:5: cache.models[0].include: pattern "[": want one such as *.safetensors, original/ or model-?.gguf`},
		"filter, query":    {head + "cache:\n  models:\n  - {name: a, source: 'hf://o/n?a=b'}\n", `c.yaml:5: cache.models[0].source: query "a=b": want include=<pattern>, exclude=<pattern>, allowPickle=true`},
		"filter, twice":    {head + "cache:\n  models:\n  - {name: a, source: 'hf://o/n?include=a', exclude: [b]}\n", "c.yaml:5: cache.models[0].source: want the choice of files either in the source's query or in include, exclude and allowPickle"},
		"specs unnamed":    {head + "cdi: {enabled: true}\n", "c.yaml:3: cdi.enabled: want cdi-cri or cdi-annotations in devicePlugin.strategies, and allocation device-plugin: without it nothing names the devices that are described"},
		"specs simulated":  {head + "cdi: {enabled: true}\nnvml: {simulate: {gpu: T4, count: 1}}\n", "c.yaml:3: cdi.enabled: want false with nvml.simulate: made-up GPUs have no device nodes"},
		"two kinds":        {head + "cdi: {enabled: true}\ndevicePlugin: {strategies: [cdi-cri], cdiKind: nvidia.com/gpu}\n", "c.yaml:4: devicePlugin.cdiKind: want none, or k8s.device-plugin.nvidia.com/gpu, with cdi.enabled: that is what the specs describe"},
		"relative mount":   {head + "cdi: {enabled: true, driverRootMount: host}\ndevicePlugin: {strategies: [cdi-cri]}\n", `c.yaml:3: cdi.driverRootMount: want an absolute path, got "host"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("c.yaml", []byte(tc.in))
			require.EqualError(t, err, tc.want)
		})
	}
}

func TestEveryErrorIsSaidInTheOrderOfTheFile(t *testing.T) {
	_, err := config.Parse("c.yaml", []byte(head+"nvml:\n  interval: soon\n  libary: x\ncache:\n  limit: big\n"))
	require.EqualError(t, err, strings.Join([]string{
		`c.yaml:4: nvml.interval: want a duration such as 10s, 5m or 1h, got "soon"`,
		`c.yaml:5: nvml.libary: unknown key: see the reference for those that there are`,
		`c.yaml:7: cache.limit: want a size such as 500Gi or 2T, got "big"`,
	}, "\n"))
}

func TestTheChoiceOfFilesIsPartOfTheSource(t *testing.T) {
	c, err := config.Parse("c.yaml", []byte(head+"cache:\n  models:\n"+
		"  - {name: a, source: hf://org/n@v1, include: ['*.json', '*.safetensors'], allowPickle: true}\n"+
		"  - {name: b, source: 'hf://org/n?exclude=original/'}\n  - {name: c, source: hf://org/n}\n"))
	require.NoError(t, err)
	var urls []string
	for _, s := range c.Cache.Specs() {
		urls = append(urls, s.Source.URL())
	}
	require.Equal(t, []string{"hf://org/n@v1?allowPickle=true&include=%2A.json&include=%2A.safetensors",
		"hf://org/n?exclude=original/", "hf://org/n"}, urls)
	shown, err := yaml.Marshal(c.Cache.Models)
	require.NoError(t, err)
	require.Contains(t, string(shown), "source: hf://org/n?exclude=original/")
	require.NotContains(t, string(shown), "include: []")
}

func FuzzParseNeverPanics(f *testing.F) {
	f.Add([]byte(config.Reference))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := config.Parse("f.yaml", data)
		if err != nil {
			require.NotEmpty(t, err.Error())
		}
	})
}

func TestTheModelsAreMountedFromWhereTheHostHasThem(t *testing.T) {
	for in, want := range map[string]string{
		"": "",
		"devicePlugin: {injectModelsMount: {enabled: true}}\n":                      "/var/lib/gpu-agent/models",
		"cache: {root: /x}\ndevicePlugin: {injectModelsMount: {enabled: true}}\n":   "/x/models",
		"devicePlugin: {injectModelsMount: {enabled: true, hostRoot: /mnt/ssd/}}\n": "/mnt/ssd/models",
	} {
		c, err := config.Parse("c.yaml", []byte(head+in))
		require.NoError(t, err, in)
		require.Equal(t, want, c.Policy().Models, in)
		require.Equal(t, "/models", c.Policy().ModelsPath)
	}
}

// What other parts find wrong stands among the rest, at its line; a note is none of it.
func TestFurtherFaultsAreToldInTheOrderOfTheFile(t *testing.T) {
	further := func(c config.Config) []config.Fault {
		require.Equal(t, "mnt", c.Cache.Sources.File.Roots[0])
		return []config.Fault{
			{Key: "cache.sources.file.roots[0]", Text: "wrong 1"}, {Key: "cache.sources.s3.endpoint", Text: "wrong 2"},
			{Key: "cache.streams", Text: "said already"}, {Key: "log.level", Text: "elsewhere it may be right", Note: true},
		}
	}
	text := head + "log:\n  level: info\ncache:\n  streams: many\n  sources:\n    file:\n      roots:\n      - mnt\n  keep: -1\n"
	_, err := config.Parse("c.yaml", []byte(text), further)
	require.EqualError(t, err, "c.yaml:6: cache.streams: want a whole number, got text `many`\n"+
		"c.yaml:7: cache.sources.s3.endpoint: wrong 2\n"+
		"c.yaml:10: cache.sources.file.roots[0]: wrong 1\n"+
		"c.yaml:11: cache.keep: want 0 to 100 old revisions, got -1")

	c, err := config.Parse("c.yaml", []byte(text[:strings.Index(text, "cache:")]), func(config.Config) []config.Fault {
		return []config.Fault{{Key: "log.level", Text: "may be right elsewhere", Note: true}}
	})
	require.NoError(t, err)
	require.Equal(t, []string{"c.yaml:4: log.level: may be right elsewhere"}, c.Notes)
	require.Equal(t, "c.yaml:3: log.format", c.At("log.format"))
	require.Equal(t, "c.yaml: cache.root", c.At("cache.root"))
	require.Equal(t, "cache.root", config.Default().At("cache.root"))
}
