package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestCDI stands in for the host's nvidia-ctk with a spec that names each GPU by UUID and by index.
func TestCDI(t *testing.T) {
	n := needNode(t)
	d := newDriver(t, gpus)
	type edits struct {
		Env []string `json:"env"`
	}
	type device struct {
		Name           string `json:"name"`
		ContainerEdits edits  `json:"containerEdits"`
	}
	var devices []device
	for i, uuid := range d.uuids() {
		e := edits{Env: []string{"CDI_GPU=" + uuid}}
		devices = append(devices, device{uuid, e}, device{fmt.Sprint(i), e})
	}
	spec, err := json.Marshal(map[string]any{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices})
	require.NoError(t, err)
	file := filepath.Join(n.dir, "state/etc/cdi/nvidia.json") // /etc/cdi in the cluster
	require.NoError(t, os.WriteFile(file, spec, 0o600))
	t.Cleanup(func() { require.NoError(t, os.Remove(file)) })

	n.deploy(t, deployment{strategy: "cdi-cri", driver: d})
	n.offers(t, "8", 30*time.Second)
	product := d.labels(t)["nvidia.com/gpu.product"]
	eventually(t, 60*time.Second, "label of the product", func() error {
		o, err := object[nodeObject](n, "node", nodeName)
		if err == nil && o.Metadata.Labels["nvidia.com/gpu.product"] != product {
			err = fmt.Errorf("labels: %v", o.gpuLabels())
		}
		return err
	})
	n.apply(t, gpuPod("cdi", product, ""))
	n.runs(t, "cdi", 60*time.Second)
	log := n.log(t, "cdi")
	require.Contains(t, d.uuids(), env(log, "CDI_GPU"), "the runtime applied the edits of exactly one CDI device")
	require.Equal(t, 1, strings.Count(log, "CDI_GPU="))
	require.Empty(t, env(log, "NVIDIA_VISIBLE_DEVICES"), "the other strategy is off")
}

// root makes the driver's folder a driver's root as well: device nodes, libraries, and beside them the hook of NVIDIA's
// container toolkit. It gives the sha256 of what stands in for CUDA's library.
func (d *driver) root(t *testing.T, n *node) (cuda string) {
	t.Helper()
	lib := filepath.Join(d.dir, "usr/lib/x86_64-linux-gnu")
	require.NoError(t, os.MkdirAll(lib, 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(d.dir, "dev"), 0o755))
	nodes := map[string]int{"nvidiactl": 255, "nvidia-uvm": 0, "nvidia-uvm-tools": 1}
	for i := range d.gpus {
		nodes[fmt.Sprintf("nvidia%d", i)] = i
	}
	for name, minor := range nodes {
		require.NoError(t, unix.Mknod(filepath.Join(d.dir, "dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(195, uint32(minor)))))
	}
	content, err := os.ReadFile(filepath.Join(d.dir, "libnvidia-ml.so.1"))
	require.NoError(t, err)
	for _, name := range []string{"libnvidia-ml.so.550.163.01", "libcuda.so.550.163.01"} {
		require.NoError(t, os.WriteFile(filepath.Join(lib, name), content, 0o755))
	}
	hook, err := os.ReadFile(filepath.Join(n.dir, "bin/nvidia-cdi-hook"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(d.dir, "nvidia-cdi-hook"), hook, 0o755))
	return fmt.Sprintf("%x", sha256.Sum256(content))
}

// TestTheAgentsOwnCDISpecs has containerd give a container what the agent has written: a GPU's device nodes and the
// driver's libraries, which NVIDIA's real hook makes known to the container's loader.
func TestTheAgentsOwnCDISpecs(t *testing.T) {
	n := needNode(t)
	d := newDriver(t, 2)
	cuda := d.root(t, n)
	n.deploy(t, deployment{strategy: "cdi-cri", driver: d, specs: true})
	t.Cleanup(func() { n.must(t, "exec", "sh", "-c", "rm -f /run/cdi/k8s.device-plugin.nvidia.com-*.json") })
	n.offers(t, "2", 30*time.Second)
	n.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: specs}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: serving
    image: docker.io/library/busybox:e2e
    imagePullPolicy: Never
    command:
    - /bin/sh
    - -c
    - |
      busybox env
      for node in /dev/nvidia*; do echo "node $node $(busybox stat -c '%F %t:%T' $node)"; done
      busybox sha256sum /usr/lib/x86_64-linux-gnu/libcuda.so.550.163.01
      busybox grep -c libnvidia-ml.so.1 /etc/ld.so.cache && echo known
      echo started
      busybox sleep 100000
    resources: {limits: {nvidia.com/gpu: 1}}
`)
	n.runs(t, "specs", 60*time.Second)
	log := n.log(t, "specs")
	held := -1
	for i := range d.gpus {
		if strings.Contains(log, fmt.Sprintf("node /dev/nvidia%d character special file c3:%x\n", i, i)) {
			require.Equal(t, -1, held, "one GPU alone: %s", log)
			held = i
		}
	}
	require.NotEqual(t, -1, held, log)
	require.Contains(t, log, "node /dev/nvidiactl character special file c3:ff\n")
	require.Contains(t, log, "node /dev/nvidia-uvm character special file c3:0\n")
	require.Contains(t, log, cuda+"  /usr/lib/x86_64-linux-gnu/libcuda.so.550.163.01\n")
	require.Contains(t, log, "known\n", "NVIDIA's hook has made the libraries known")
	require.Equal(t, "void", env(log, "NVIDIA_VISIBLE_DEVICES"), "as the specs say")
	holds := map[string]string{}
	for i, uuid := range d.uuids() {
		if holds[uuid] = ""; i == held {
			holds[uuid] = "specs"
		}
	}
	n.shows(t, holds) // what the kubelet gave is what the container got
}
