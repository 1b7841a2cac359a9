package e2e

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// allots waits until the node has so many of each of NVIDIA's resources to give, and of no other.
func (n *node) allots(t *testing.T, want map[string]string) {
	t.Helper()
	eventually(t, 90*time.Second, fmt.Sprintf("allocatable is %v", want), func() error {
		o, err := object[nodeObject](n, "node", nodeName)
		if err != nil {
			return err
		}
		got := map[string]string{}
		for name, count := range o.Status.Allocatable {
			if len(name) > 11 && name[:11] == "nvidia.com/" && count != "0" {
				got[name[11:]] = count
			}
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("allocatable of nvidia.com: %v, want %v", got, want)
		}
		return nil
	})
}

// TestMIG goes through the strategies by edits, and through layouts as nvidia-smi makes them, under a pod that holds
// an instance. The agent is never restarted.
func TestMIG(t *testing.T) {
	n := needNode(t)
	d := newDriver(t, 2)
	d.split(t, 0, "3g.40gb", "3g.40gb")
	none := deployment{strategy: "envvar", driver: d}
	n.deploy(t, none)
	agent := n.agents(t)
	n.allots(t, map[string]string{"gpu": "1"}) // a split GPU is not offered

	mixed := none
	mixed.mig = "mixed"
	n.edit(t, mixed.config())
	n.allots(t, map[string]string{"gpu": "1", "mig-3g.40gb": "2"})
	n.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: slice}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {nvidia.com/mig-3g.40gb.count: "2", nvidia.com/mig.strategy: mixed}
  containers:
  - name: serving
    image: docker.io/library/busybox:e2e
    imagePullPolicy: Never
    command: [/bin/sh, -c, "busybox env; echo started; busybox sleep 100000"]
    resources: {limits: {nvidia.com/mig-3g.40gb: 1}}
`)
	pod := n.runs(t, "slice", 60*time.Second)
	held := env(n.log(t, "slice"), "NVIDIA_VISIBLE_DEVICES")
	require.Contains(t, []string{d.instance(0, 0), d.instance(0, 1)}, held)

	// The other GPU is split while the first one's instance is in use, and then split otherwise.
	k := n.kubelet(t)
	d.split(t, 1, "3g.40gb", "1g.10gb", "1g.10gb")
	n.allots(t, map[string]string{"mig-3g.40gb": "3", "mig-1g.10gb": "2"})
	d.split(t, 1, "3g.40gb", "3g.40gb")
	n.allots(t, map[string]string{"mig-3g.40gb": "4"})
	instances, err := k.devicesOf(t.Context(), "nvidia.com/mig-3g.40gb")
	require.NoError(t, err)
	require.Equal(t, map[string]bool{d.instance(0, 0): true, d.instance(0, 1): true, d.instance(1, 0): true, d.instance(1, 1): true}, instances)

	single := none
	single.mig = "single"
	n.edit(t, single.config())
	n.allots(t, map[string]string{"gpu": "4"})
	eventually(t, 30*time.Second, "labels follow", func() error {
		o, err := object[nodeObject](n, "node", nodeName)
		if l := o.Metadata.Labels; err == nil && (l["nvidia.com/gpu.product"] != "NVIDIA-H100-80GB-HBM3-MIG-3g.40gb" || l["nvidia.com/gpu.count"] != "4") {
			err = errLabels(o)
		}
		return err
	})
	now, err := object[podObject](n, "pod", "slice")
	require.NoError(t, err)
	require.Equal(t, pod.Status.ContainerStatuses[0].ContainerID, now.Status.ContainerStatuses[0].ContainerID, "the running pod was touched")
	require.True(t, now.Status.ContainerStatuses[0].Ready)
	require.Equal(t, agent[0].Metadata.UID, n.agents(t)[0].Metadata.UID)
	require.Zero(t, n.agents(t)[0].Status.ContainerStatuses[0].RestartCount)
}
