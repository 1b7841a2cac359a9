package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// restricted is a namespace in which a pod may have nothing of the host.
const restricted = `
apiVersion: v1
kind: Namespace
metadata: {name: restricted, labels: {pod-security.kubernetes.io/enforce: restricted}}
`

// bare is a pod of that namespace, with more of its spec and of its container's.
func bare(name, spec, container string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: restricted}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
%s
  containers:
  - name: serving
    image: docker.io/library/busybox:e2e
    imagePullPolicy: Never
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
%s
`, name, spec, container)
}

// succeeds waits until the pod has ended well, and gives its log.
func (n *node) succeeds(t *testing.T, namespace, pod string, limit time.Duration) string {
	t.Helper()
	eventually(t, limit, "pod "+pod+" ends well", func() error {
		p, err := object[podObject](n, "pod", "-n", namespace, pod)
		if err == nil && p.Status.Phase == "Failed" {
			out, _ := n.try("", "kubectl", "logs", "-n", namespace, pod, "--all-containers")
			t.Fatalf("pod %s failed: %+v\n%s", pod, p.Status, out)
		}
		if err == nil && p.Status.Phase != "Succeeded" {
			err = fmt.Errorf("pod %s: %+v", pod, p.Status)
		}
		return err
	})
	return n.kubectl(t, "logs", "-n", namespace, pod, "-c", "serving")
}

func TestModelsWithoutAVolume(t *testing.T) {
	n := needNode(t)
	model, sha := n.newModel(t)
	n.deploy(t, deployment{strategy: "envvar", driver: newDriver(t, 2), model: model, inject: true})
	n.offers(t, "2", 30*time.Second)
	n.apply(t, restricted)

	_, err := n.try(bare("hostpath", "  volumes: [{name: models, hostPath: {path: /var/lib/gpu-agent/models}}]", ""), "kubectl", "apply", "-f", "-")
	require.ErrorContains(t, err, "violates PodSecurity \"restricted:latest\": restricted volume types", "the level is in force")

	gpu := `    resources: {limits: {nvidia.com/gpu: 1}}
`
	n.apply(t, bare("reads", "", gpu+fmt.Sprintf(`    command:
    - /bin/sh
    - -c
    - |
      until busybox test -e $MODEL_CACHE_DIR/by-name/%[1]s; do busybox sleep 0.2; done
      busybox sha256sum $MODEL_CACHE_DIR/by-name/%[1]s/weights.bin
      busybox touch $MODEL_CACHE_DIR/by-name/x 2>&1 || true
      busybox ls /models
      busybox grep ' /models ' /proc/self/mounts
`, model)))
	log := n.succeeds(t, "restricted", "reads", 60*time.Second)
	require.Contains(t, log, sha+"  /models/by-name/"+model+"/weights.bin\n", "the model appeared in the running container")
	require.Contains(t, log, "touch: /models/by-name/x: Read-only file system")
	require.Regexp(t, `(?m)^\S+ /models \S+ ro[, ]`, log)
	require.Contains(t, log, "\nby-name\nhub\n", "the store is not to be seen")

	// A pod's own volume and variable win, and what has no GPU has no models.
	n.apply(t, bare("own", "  volumes: [{name: own, emptyDir: {}}]", gpu+`    env: [{name: MODEL_CACHE_DIR, value: /own}]
    volumeMounts: [{name: own, mountPath: /models}]
    command: [/bin/sh, -c, "echo dir $MODEL_CACHE_DIR; busybox touch /models/x && echo wrote; busybox ls /models"]
`))
	require.Equal(t, "dir /own\nwrote\nx\n", n.succeeds(t, "restricted", "own", 60*time.Second))
	n.apply(t, bare("cpu", "", `    command: [/bin/sh, -c, "echo dir $MODEL_CACHE_DIR; busybox ls -d /models 2>&1 || true"]
`))
	require.Equal(t, "dir\nls: /models: No such file or directory\n", n.succeeds(t, "restricted", "cpu", 60*time.Second))

	text, err := n.metrics()
	require.NoError(t, err)
	require.True(t, strings.Contains(text, "\ngpu_agent_models_mounts_total 2\n"), "two containers were given the models")
}

// holds waits until the node shows these models, or does not.
func (n *node) holds(t *testing.T, want map[string]bool) {
	t.Helper()
	eventually(t, 60*time.Second, fmt.Sprintf("models %v", want), func() error {
		for name, there := range want {
			_, err := n.try("", "exec", "test", "-e", "/var/lib/gpu-agent/models/by-name/"+name+"/weights.bin")
			if (err == nil) != there {
				return fmt.Errorf("model %s: there is %t, want %t", name, err == nil, there)
			}
		}
		return nil
	})
}

// asking is a pod that names a model in its annotation, and waits for it in its injected folder.
func asking(name, model, then string) string {
	return strings.Replace(bare(name, "", fmt.Sprintf(`    resources: {limits: {nvidia.com/gpu: 1}}
    command: [/bin/sh, -c, "until busybox test -e /models/by-name/%s; do busybox sleep 0.2; done; %s"]
`, model, then)), "namespace: restricted}", "namespace: restricted, annotations: {gpu-agent.dev/models: "+model+"}}", 1)
}

func TestPodsAskForModels(t *testing.T) {
	n := needNode(t)
	kept, _ := n.newModel(t)
	unused, _ := n.newModel(t)
	next, sha := n.newModel(t)
	n.deploy(t, deployment{strategy: "envvar", driver: newDriver(t, 2), catalog: []string{kept, unused, next}, limit: "50Mi", inject: true})
	n.offers(t, "2", 30*time.Second)
	n.apply(t, restricted)
	n.holds(t, map[string]bool{kept: false, unused: false, next: false})

	why := n.kubectl(t, "-n", "gpu-agent", "exec", "daemonset/gpu-agent", "--", "/usr/bin/gpu-agent", "models", "explain", kept)
	require.Contains(t, why, "of the disk stay free, because the kubelet evicts pods at imagefs.available<200Mi", "the thresholds of its file")

	n.apply(t, asking("keeps", kept, "busybox sleep 100000"))
	n.holds(t, map[string]bool{kept: true, unused: false, next: false})
	n.apply(t, asking("ends", unused, "true"))
	n.succeeds(t, "restricted", "ends", 60*time.Second)
	n.holds(t, map[string]bool{kept: true, unused: true, next: false})

	// There is room for two: what the pod that has ended used goes, though the other came first.
	n.apply(t, asking("reads", next, "busybox sha256sum /models/by-name/"+next+"/weights.bin"))
	require.Contains(t, n.succeeds(t, "restricted", "reads", 60*time.Second), sha)
	n.holds(t, map[string]bool{kept: true, unused: false, next: true})
}

// TestModelsOnASecondDisk has a model on another disk than the root, and reads it by the root's path: through what the
// device plugin mounts, and through one hostPath where the host has the disk's models mounted within the root's.
func TestModelsOnASecondDisk(t *testing.T) {
	n := needNode(t)
	model, sha := n.newModel(t)
	const disk, point = "/var/lib/gpu-agent/disks/fast", "/var/lib/gpu-agent/models/disks/fast"
	n.must(t, "exec", "mkdir", "-p", disk)
	n.must(t, "exec", "mount", "-t", "tmpfs", "-o", "size=200m", "fast", disk)
	t.Cleanup(func() { n.must(t, "exec", "umount", "--lazy", disk) })
	n.deploy(t, deployment{strategy: "envvar", driver: newDriver(t, 1), model: model, inject: true, limit: "1Mi",
		disks: "[{name: fast, root: " + disk + "}]"})
	n.offers(t, "1", 30*time.Second)
	n.apply(t, restricted)
	eventually(t, 60*time.Second, "the model is ready", func() error {
		text, err := n.metrics()
		if err == nil && !strings.Contains(text, `model_cache_model_ready{model="`+model+`"} 1`) {
			err = fmt.Errorf("not yet")
		}
		return err
	})
	n.must(t, "exec", "test", "-e", disk+"/models/by-name/"+model+"/weights.bin")
	require.Equal(t, "../disks/fast/by-name/"+model+"\n", n.must(t, "exec", "readlink", "/var/lib/gpu-agent/models/by-name/"+model))

	n.apply(t, bare("reads", "", fmt.Sprintf(`    resources: {limits: {nvidia.com/gpu: 1}}
    command:
    - /bin/sh
    - -c
    - |
      busybox sha256sum $MODEL_CACHE_DIR/by-name/%[1]s/weights.bin
      busybox touch /models/by-name/%[1]s/x /models/disks/fast/x 2>&1 || true
      busybox ls /models/disks/fast
      busybox grep ' /models' /proc/self/mounts
`, model)))
	log := n.succeeds(t, "restricted", "reads", 60*time.Second)
	require.Contains(t, log, sha+"  /models/by-name/"+model+"/weights.bin\n")
	require.Contains(t, log, "touch: /models/by-name/"+model+"/x: Read-only file system")
	require.Contains(t, log, "touch: /models/disks/fast/x: Read-only file system")
	require.Regexp(t, `(?m)^\S+ /models \S+ ro[, ]`, log)
	require.Regexp(t, `(?m)^fast /models/disks/fast tmpfs ro[, ]`, log)
	require.Contains(t, log, "\nby-name\nhub\n", "the store is not to be seen")

	n.must(t, "exec", "mount", "-o", "bind,ro", disk+"/models", point)
	t.Cleanup(func() { n.must(t, "exec", "umount", "--lazy", point) })
	pod := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: one-volume}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  volumes: [{name: models, hostPath: {path: /var/lib/gpu-agent/models, type: Directory}}]
  containers:
  - name: serving
    image: docker.io/library/busybox:e2e
    imagePullPolicy: Never
    volumeMounts:
    - {name: models, mountPath: /models, readOnly: true}
    - {name: models, mountPath: /model, subPath: by-name/%[1]s, readOnly: true}
    command:
    - /bin/sh
    - -c
    - |
      busybox sha256sum /models/by-name/%[1]s/weights.bin /model/weights.bin
      busybox touch /models/disks/fast/x /model/x 2>&1 || true
`, model)
	n.apply(t, pod)
	log = n.succeeds(t, "default", "one-volume", 60*time.Second)
	require.Contains(t, log, sha+"  /models/by-name/"+model+"/weights.bin\n"+sha+"  /model/weights.bin\n")
	require.Contains(t, log, "touch: /models/disks/fast/x: Read-only file system")
	require.Contains(t, log, "touch: /model/x: Read-only file system")
}

func TestModelsThroughAClaim(t *testing.T) {
	n := needNode(t)
	model, sha := n.newModel(t)
	n.deploy(t, deployment{strategy: "envvar", driver: newDriver(t, 1), catalog: []string{model}})
	n.offers(t, "1", 30*time.Second)
	example, err := os.ReadFile("../../deployments/examples/models-pvc.yaml")
	require.NoError(t, err)
	n.apply(t, strings.NewReplacer(
		"args: [serve, /models/by-name/llama-3-8b]", "command: [/bin/busybox, sha256sum, /models/by-name/"+model+"/weights.bin]",
		"llama-3-8b", model, "image: gpu-agent:dev", "image: "+agentImage, "registry.example/serving:1", "docker.io/library/busybox:e2e",
	).Replace(string(example)))
	require.Equal(t, sha+"  /models/by-name/"+model+"/weights.bin\n", n.succeeds(t, "serving", "llama", 90*time.Second))
}

// TestAKilledAgentGoesOn kills the agent in the middle of a download, which takes ten seconds so that there is one.
func TestAKilledAgentGoesOn(t *testing.T) {
	n := needNode(t)
	const size = 400 << 20
	file := filepath.Join(t.TempDir(), "weights.bin")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, size))
	model := "large-" + strconv.FormatInt(time.Now().Unix(), 36)
	n.upload(t, model+"/weights.bin", file)
	n.deploy(t, deployment{strategy: "envvar", driver: newDriver(t, 1), model: model, pace: "40Mi"})
	eventually(t, 60*time.Second, "a download in the middle", func() error {
		_, err := n.try("", "exec", "test", "-e", "/var/lib/gpu-agent/store/partial/"+model+"/00000.json") // its journal
		return err
	})
	n.must(t, "exec", "sh", "-c", "kill -9 $(busybox pidof gpu-agent)")
	n.holds(t, map[string]bool{model: true})
	text, err := n.metrics()
	require.NoError(t, err)
	require.Contains(t, text, `model_cache_model_ready{model="`+model+`"} 1`)
	fetched := -1.0
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "model_cache_fetched_bytes_total "); ok {
			fetched, err = strconv.ParseFloat(strings.TrimSpace(value), 64)
			require.NoError(t, err)
		}
	}
	t.Logf("fetched after the kill: %.0f of %d bytes", fetched, size)
	require.Greater(t, fetched, 0.0, "it was killed in the middle")
	require.Less(t, fetched, float64(size), "what was here was not fetched again")
}
