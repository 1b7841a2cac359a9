package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const gpus = 8

// gpuPod runs until it is deleted, on the product that the agent's labels name, and logs its
// environment. With a model it first waits for it and logs the file's sha256.
func gpuPod(name, product, model string) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  nodeSelector: {nvidia.com/gpu.product: %s}
  containers:
  - name: serving
    image: docker.io/library/busybox:e2e
    imagePullPolicy: Never
    command: [/bin/sh, -c, "busybox env; cd /models/by-name && busybox sha256sum %s/weights.bin; echo started; busybox sleep 100000"]
    resources: {limits: {nvidia.com/gpu: 1}}
    volumeMounts: [{name: models, mountPath: /models, readOnly: true}]
  volumes: [{name: models, hostPath: {path: /var/lib/gpu-agent/models, type: Directory}}]
`, name, product, model)
	if model != "" {
		fmt.Fprintf(b, `  initContainers:
  - name: model
    image: %s
    imagePullPolicy: Never
    args: [models, wait, %s, --root=/models, --timeout=60s]
    volumeMounts: [{name: models, mountPath: /models, readOnly: true}]
`, agentImage, model)
	}
	return b.String()
}

// log is the pod's output up to its "started".
func (n *node) log(t *testing.T, pod string) string {
	t.Helper()
	var out string
	eventually(t, 20*time.Second, "log of "+pod, func() (err error) {
		out, err = n.try("", "kubectl", "logs", pod, "-c", "serving")
		if err == nil && !strings.Contains(out, "started\n") {
			err = fmt.Errorf("not started: %s", out)
		}
		return err
	})
	return out
}

// env is the value of a variable in such a log, "" if it is not there.
func env(log, name string) string {
	for line := range strings.Lines(log) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// newModel uploads a model of one random file under a name that no earlier run has cached.
func (n *node) newModel(t *testing.T) (name, sha string) {
	t.Helper()
	content := make([]byte, 20<<20+7)
	_, err := rand.Read(content)
	require.NoError(t, err)
	sum := sha256.Sum256(content)
	sha = hex.EncodeToString(sum[:])
	name = "tiny-" + sha[:8]
	file := filepath.Join(t.TempDir(), "weights.bin")
	require.NoError(t, os.WriteFile(file, content, 0o600))
	n.upload(t, name+"/weights.bin", file)
	return name, sha
}

// TestAgentOnARealNode is one day of one node: its steps build on each other.
func TestAgentOnARealNode(t *testing.T) {
	n := needNode(t)
	d := newDriver(t, gpus)
	model, sha := n.newModel(t)
	n.deploy(t, deployment{strategy: "envvar", driver: d, model: model})

	free := map[string]string{}
	for _, uuid := range d.uuids() {
		free[uuid] = ""
	}
	held := func(pods map[string]string) map[string]string {
		want := map[string]string{}
		for uuid := range free {
			want[uuid] = pods[uuid]
		}
		return want
	}
	var labels map[string]string
	var pod podObject
	var uuid string
	step := func(name string, f func(t *testing.T)) {
		if !t.Run(name, f) {
			t.FailNow()
		}
	}

	step("the node shows 8 GPUs and their labels", func(t *testing.T) {
		n.offers(t, "8", 30*time.Second)
		want := d.labels(t)
		want["gpu-agent.dev/gpu.healthy"] = "8"
		eventually(t, 60*time.Second, "labels", func() error {
			o, err := object[nodeObject](n, "node", nodeName)
			if err != nil {
				return err
			}
			labels = o.gpuLabels()
			for k, v := range want {
				if labels[k] != v {
					return fmt.Errorf("label %s is %q, want %q; all: %v", k, labels[k], v, labels)
				}
			}
			return nil
		})
	})

	step("a pod runs on one GPU and reads the model", func(t *testing.T) {
		_, err := n.try(gpuPod("serving", labels["nvidia.com/gpu.product"], model), "kubectl", "apply", "-f", "-")
		require.NoError(t, err)
		pod = n.runs(t, "serving", 90*time.Second)
		log := n.log(t, "serving")
		uuid = env(log, "NVIDIA_VISIBLE_DEVICES")
		require.Contains(t, free, uuid, "the pod's environment names exactly one GPU of the node")
		require.Contains(t, log, sha+"  "+model+"/weights.bin\n")
		eventually(t, 30*time.Second, "label of the model", func() error {
			o, err := object[nodeObject](n, "node", nodeName)
			if labels = o.gpuLabels(); err == nil && len(labels["models.gpu-agent.dev/"+model]) != 12 {
				err = fmt.Errorf("no label for model %s: %v", model, labels)
			}
			return err
		})
	})
	t.Cleanup(func() {
		_, _ = n.try("", "kubectl", "delete", "pod", "--ignore-not-found", "--now", "serving", "second")
	})

	step("metrics show the pod on its GPU alone", func(t *testing.T) {
		n.shows(t, held(map[string]string{uuid: "serving"}))
	})

	same := func(t *testing.T) {
		t.Helper()
		now, err := object[podObject](n, "pod", "serving")
		require.NoError(t, err)
		require.Equal(t, pod.Status.ContainerStatuses, now.Status.ContainerStatuses, "the running pod was touched")
	}
	// Allocatable alone could be what the API server remembers: a new pod proves the kubelet's own view.
	gives := func(t *testing.T, limit time.Duration) {
		t.Helper()
		var log string
		eventually(t, limit, "a second pod gets another GPU", func() error {
			if _, err := n.try(gpuPod("second", labels["nvidia.com/gpu.product"], ""), "kubectl", "apply", "-f", "-"); err != nil {
				return err
			}
			_, err := n.try("", "kubectl", "wait", "--for=condition=Ready", "--timeout=3s", "pod/second")
			if err != nil { // such as UnexpectedAdmissionError, for ever
				_, _ = n.try("", "kubectl", "delete", "pod", "second", "--now")
			}
			return err
		})
		log = n.log(t, "second")
		second := env(log, "NVIDIA_VISIBLE_DEVICES")
		require.Contains(t, free, second)
		require.NotEqual(t, uuid, second)
		n.shows(t, held(map[string]string{uuid: "serving", second: "second"}))
		n.kubectl(t, "delete", "pod", "second", "--now")
		n.offers(t, "8", 30*time.Second)
	}

	step("the kubelet restarts", func(t *testing.T) {
		n.must(t, "restart", "kubelet")
		gives(t, 60*time.Second)
		same(t)
	})

	step("the agent is deleted", func(t *testing.T) {
		const selector = "app.kubernetes.io/name=gpu-agent"
		n.kubectl(t, "-n", "gpu-agent", "delete", "pod", "-l", selector, "--wait")
		o, err := object[nodeObject](n, "node", nodeName)
		require.NoError(t, err)
		require.Equal(t, labels, o.gpuLabels(), "labels outlive the agent")
		n.kubectl(t, "-n", "gpu-agent", "rollout", "status", "daemonset/gpu-agent", "--timeout=60s")
		gives(t, 60*time.Second)
		same(t)
		o, err = object[nodeObject](n, "node", nodeName)
		require.NoError(t, err)
		require.Equal(t, labels, o.gpuLabels())
	})

	step("a GPU is lost and returns", func(t *testing.T) {
		lost := 0
		if d.uuids()[lost] == uuid {
			lost = 1
		}
		d.lose(t, lost, true)
		n.offers(t, "7", 30*time.Second)
		o, err := object[nodeObject](n, "node", nodeName)
		require.NoError(t, err)
		require.Equal(t, "8", o.Status.Capacity["nvidia.com/gpu"])
		d.lose(t, lost, false)
		n.offers(t, "8", 60*time.Second)
		same(t)
	})

	step("the pod is gone and so is its label", func(t *testing.T) {
		n.kubectl(t, "delete", "pod", "serving", "--now")
		n.shows(t, free)
	})
}
