package e2e

import (
	"fmt"
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
