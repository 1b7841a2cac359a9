package e2e

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	agentImage = "docker.io/library/gpu-agent:dev"
	s3Endpoint = "http://10.85.0.10:7070" // see config.sh
	s3Access   = "gpu-agent"
	s3Secret   = "gpu-agent-secret"
)

// deployment is deployments/daemonset.yaml with what a test changes of it.
type deployment struct {
	strategy string // how a container gets its GPUs
	driver   *driver
	model    string // name of a model in bucket models, or none
	replicas int    // of each GPU; 0 is whole GPUs
	mig      string // strategy; "" is the default's
	specs    bool   // the agent writes the CDI specs

	inject  bool     // the models into every container with a GPU
	catalog []string // names of models in bucket models that come when a pod asks for them
	limit   string   // of the cache; "" is 1Gi
	disks   string   // of the cache, beside its root's; "" is none
	pace    string   // bytes a second that the cache reads; "" is no limit

	choices map[string]int // replicas by the name of one of NVIDIA's files, for the node's label to choose from
}

// deploy applies the DaemonSet and waits until it is ready. It goes, with its namespace, when t ends.
func (n *node) deploy(t *testing.T, d deployment) {
	t.Helper()
	image, err := filepath.Abs("../../dist/gpu-agent.tar")
	require.NoError(t, err)
	build := exec.Command("make", "-C", "../..", "image")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	n.must(t, "import", image)

	dir := t.TempDir()
	shipped, err := os.ReadFile("../../deployments/daemonset.yaml")
	require.NoError(t, err)
	write := func(name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	write("daemonset.yaml", string(shipped))
	write("config.yaml", d.config())
	files := []string{}
	for name, replicas := range d.choices {
		write(name, fmt.Sprintf("version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: %d}]}}\n", replicas))
		files = append(files, name)
	}
	write("credentials", fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s3Access, s3Secret))
	write("patch.yaml", fmt.Sprintf(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: gpu-agent, namespace: gpu-agent}
spec:
  template:
    spec:
      containers:
      - name: gpu-agent
        image: %[1]s
        imagePullPolicy: Never
        env: [{name: FAKENVML_STATE, value: /driver/state}]
        volumeMounts:
        - {name: driver, mountPath: /driver, readOnly: true}
        - {name: driver, mountPath: %[2]s, readOnly: true} # the hook is looked for under its path of the host
        - {name: cdi, mountPath: /var/run/cdi}
        - {name: s3, mountPath: /etc/s3, readOnly: true}
        - {name: choices, mountPath: /etc/choices, readOnly: true}
        - {name: kubelet-config, mountPath: /var/lib/kubelet/config.yaml, readOnly: true}
      volumes:
      - {name: kubelet-config, hostPath: {path: %[3]s/kubelet.yaml, type: File}}
      - {name: choices, configMap: {name: choices}}
      - {name: cdi, hostPath: {path: /var/run/cdi, type: DirectoryOrCreate}}
      - {name: driver, hostPath: {path: %[2]s, type: Directory}}
      - {name: s3, secret: {secretName: s3}}
`, agentImage, d.driver.dir, n.dir))
	write("kustomization.yaml", fmt.Sprintf(`
resources: [daemonset.yaml]
patches: [{path: patch.yaml}]
configMapGenerator:
- {name: gpu-agent, namespace: gpu-agent, behavior: replace, files: [config.yaml]}
- {name: choices, namespace: gpu-agent, files: [%s]}
secretGenerator: [{name: s3, namespace: gpu-agent, files: [credentials]}]
generatorOptions: {disableNameSuffixHash: true}
`, strings.Join(files, ", ")))
	t.Cleanup(func() {
		if t.Failed() {
			n.explain(t)
		}
		if _, err := n.try("", "kubectl", "delete", "--ignore-not-found", "--wait", "-k", dir); err != nil {
			t.Log(err)
		}
	})
	n.kubectl(t, "apply", "-k", dir)
	n.kubectl(t, "-n", "gpu-agent", "rollout", "status", "daemonset/gpu-agent", "--timeout=60s")
}

func (d deployment) config() string {
	models := "[]"
	if d.model != "" {
		models = fmt.Sprintf("[{name: %s, source: s3://models/%[1]s}]", d.model)
	}
	for _, name := range d.catalog {
		models = strings.Replace(models, "]", fmt.Sprintf("{name: %s, source: s3://models/%[1]s, onDemand: true},]", name), 1)
	}
	sharing := "null"
	if d.replicas > 0 {
		sharing = fmt.Sprintf("{resources: [{name: nvidia.com/gpu, replicas: %d}]}", d.replicas)
	}
	choices := ""
	if len(d.choices) > 0 {
		choices = "/etc/choices"
	}
	cdi := "{}"
	if d.specs {
		cdi = fmt.Sprintf("{enabled: true, driverRoot: %[1]s, driverRootMount: /driver, hook: %[1]s/nvidia-cdi-hook}", d.driver.dir)
	}
	return fmt.Sprintf(`
apiVersion: gpu-agent.dev/v1alpha1
kind: Config
nvml: {library: /driver/libnvidia-ml.so.1, interval: 1s, deadline: 2s}
devicePlugin: {strategies: [%s], migStrategy: %s, sharing: {timeSlicing: %s}, nvidiaConfigDir: "%s", injectModelsMount: {enabled: %t}}
cdi: %s
labels: {startupTaint: true}
podResources: {interval: 1s}
cache:
  limit: %s
  keepFree: 0%%
  disks: %s
  bandwidth: {limit: "%s"}
  models: %s
  sources: {s3: {endpoint: "%s", pathStyle: true, credentialsFile: /etc/s3/credentials}}
`, d.strategy, cmp.Or(d.mig, "none"), sharing, choices, d.inject, cdi, cmp.Or(d.limit, "1Gi"), cmp.Or(d.disks, "[]"), d.pace, models, s3Endpoint)
}

// edit replaces the configuration of the agent that was deployed. The kubelet renews the file in the pod
// when the pod is next looked at, which an annotation brings about.
func (n *node) edit(t *testing.T, config string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	manifest := n.kubectl(t, "-n", "gpu-agent", "create", "configmap", "gpu-agent", "--from-file="+file, "--dry-run=client", "-o", "yaml")
	_, err := n.try(manifest, "kubectl", "apply", "-f", "-")
	require.NoError(t, err)
	for _, pod := range n.agents(t) {
		n.kubectl(t, "-n", "gpu-agent", "annotate", "--overwrite", "pod", pod.Metadata.Name, "edited="+time.Now().Format("150405.000"))
	}
}

// explain logs what a person would look at.
func (n *node) explain(t *testing.T) {
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"describe", "pods", "-A"},
		{"-n", "gpu-agent", "logs", "daemonset/gpu-agent", "--tail=100"},
	} {
		out, err := n.try("", append([]string{"kubectl"}, args...)...)
		t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// agents are the agent's pods.
func (n *node) agents(t *testing.T) []podObject {
	t.Helper()
	pods, err := object[struct{ Items []podObject }](n, "pods", "-n", "gpu-agent", "-l", "app.kubernetes.io/name=gpu-agent")
	require.NoError(t, err)
	return pods.Items
}

// metrics scrapes the agent through the API server's proxy, as any pod could scrape it directly.
func (n *node) metrics() (string, error) {
	pods, err := object[struct{ Items []podObject }](n, "pods", "-n", "gpu-agent", "-l", "app.kubernetes.io/name=gpu-agent")
	if err != nil {
		return "", err
	}
	if len(pods.Items) != 1 {
		return "", fmt.Errorf("%d agent pods, want 1", len(pods.Items))
	}
	path := fmt.Sprintf("/api/v1/namespaces/gpu-agent/pods/%s:9400/proxy/metrics", pods.Items[0].Metadata.Name)
	return n.try("", "kubectl", "get", "--raw", path)
}

var series = regexp.MustCompile(`(?m)^DCGM_FI_DEV_GPU_TEMP\{(.*)\} `)

// holders reads, for each GPU of the node by its UUID, the pod that /metrics shows on it, "" for none.
func (n *node) holders() (map[string]string, error) {
	text, err := n.metrics()
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, m := range series.FindAllStringSubmatch(text, -1) {
		labels := map[string]string{}
		for _, pair := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(m[1], -1) {
			labels[pair[1]] = pair[2]
		}
		found[labels["UUID"]] = labels["pod"]
	}
	return found, nil
}

// shows waits until /metrics has all GPUs, and pod on that of uuid and nothing on the others.
func (n *node) shows(t *testing.T, want map[string]string) {
	t.Helper()
	eventually(t, 20*time.Second, "metrics show who holds which GPU", func() error {
		got, err := n.holders()
		if err != nil {
			return err
		}
		if fmt.Sprint(got) != fmt.Sprint(want) { // fmt sorts the keys
			return fmt.Errorf("pods by GPU: %v, want %v", got, want)
		}
		return nil
	})
}

// upload puts content into bucket models of the S3 server.
func (n *node) upload(t *testing.T, key, file string) {
	t.Helper()
	curl := func(args ...string) error {
		_, err := n.try("", append([]string{
			"exec", "curl", "--silent", "--show-error", "--fail-with-body", "--aws-sigv4", "aws:amz:us-east-1:s3",
			"--user", s3Access + ":" + s3Secret, "--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD",
		}, args...)...)
		return err
	}
	if curl("--head", s3Endpoint+"/models") != nil {
		require.NoError(t, curl("--request", "PUT", s3Endpoint+"/models"))
	}
	require.NoError(t, curl("--upload-file", file, s3Endpoint+"/models/"+key))
}
