package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestUpgradesLeaveNoGap replaces the agent three times under a running pod.
func TestUpgradesLeaveNoGap(t *testing.T) {
	n := needNode(t)
	d := newDriver(t, gpus)
	model, _ := n.newModel(t)
	n.deploy(t, deployment{strategy: "envvar", driver: d, model: model})
	k := n.kubelet(t)
	k.has(t, 1, d.uuids()...)
	eventually(t, 60*time.Second, "label of the model", func() error {
		o, err := object[nodeObject](n, "node", nodeName)
		if err == nil && o.Metadata.Labels["models.gpu-agent.dev/"+model] == "" {
			err = errLabels(o)
		}
		return err
	})
	before, err := object[nodeObject](n, "node", nodeName)
	require.NoError(t, err)
	n.apply(t, gpuPod("serving", "NVIDIA-H100-80GB-HBM3", model))
	pod := n.runs(t, "serving", 60*time.Second)

	for range 3 {
		old := n.agents(t)
		require.Len(t, old, 1)
		gaps := k.gaps(t, gpus)
		n.kubectl(t, "-n", "gpu-agent", "rollout", "restart", "daemonset/gpu-agent")
		n.kubectl(t, "-n", "gpu-agent", "rollout", "status", "daemonset/gpu-agent", "--timeout=120s")
		n.kubectl(t, "-n", "gpu-agent", "wait", "--for=delete", "pod/"+old[0].Metadata.Name, "--timeout=60s")
		eventually(t, 30*time.Second, "the new agent has the cache", func() error {
			_, err := n.try("", "kubectl", "-n", "gpu-agent", "exec", "daemonset/gpu-agent", "--", "/usr/bin/gpu-agent", "models", "wait", model, "--root=/var/lib/gpu-agent/models", "--timeout=1s")
			return err
		})
		reduced, _ := gaps()
		require.Zero(t, reduced, "capacity was reduced")
		require.NotEqual(t, old[0].Metadata.Name, n.agents(t)[0].Metadata.Name)
		now, err := object[nodeObject](n, "node", nodeName)
		require.NoError(t, err)
		require.Equal(t, before.gpuLabels(), now.gpuLabels())
	}
	now, err := object[podObject](n, "pod", "serving")
	require.NoError(t, err)
	require.Equal(t, pod.Status.ContainerStatuses, now.Status.ContainerStatuses, "the running pod was touched")
	n.apply(t, gpuPod("after", "NVIDIA-H100-80GB-HBM3", ""))
	n.runs(t, "after", 60*time.Second)
}

// TestAnEditOfTheSharingKeepsPods goes from whole GPUs to four replicas of each, and to nonsense.
func TestAnEditOfTheSharingKeepsPods(t *testing.T) {
	n := needNode(t)
	d := newDriver(t, 2)
	whole := deployment{strategy: "envvar", driver: d}
	n.deploy(t, whole)
	k := n.kubelet(t)
	k.has(t, 1, d.uuids()...)
	n.offers(t, "2", 30*time.Second)
	n.apply(t, gpuPod("serving", "NVIDIA-H100-80GB-HBM3", ""))
	pod := n.runs(t, "serving", 60*time.Second)
	agent := n.agents(t)

	shared := whole
	shared.replicas = 4
	gaps := k.gaps(t, 2)
	n.edit(t, shared.config())
	eventually(t, 120*time.Second, "the edit is in force", func() error {
		devices, err := k.devices(t.Context())
		if err == nil && len(devices) != 8 {
			err = errDevices(devices)
		}
		return err
	})
	reduced, _ := gaps()
	require.Zero(t, reduced, "capacity was reduced")
	n.offers(t, "8", 30*time.Second)
	eventually(t, 30*time.Second, "labels follow", func() error {
		o, err := object[nodeObject](n, "node", nodeName)
		if err == nil && o.Metadata.Labels["nvidia.com/gpu.replicas"] != "4" {
			err = errLabels(o)
		}
		return err
	})
	n.apply(t, gpuPod("sharer", "NVIDIA-H100-80GB-HBM3-SHARED", ""))
	n.runs(t, "sharer", 60*time.Second)

	bad := whole
	bad.replicas = 1 // wants 2 and more
	n.edit(t, bad.config())
	eventually(t, 120*time.Second, "the agent refuses the edit and says why", func() error {
		out, err := n.try("", "kubectl", "-n", "gpu-agent", "exec", "daemonset/gpu-agent", "--", "/usr/bin/gpu-agent", "status")
		return says(out, err, "the newest file is not in force", "replicas")
	})
	devices, err := k.devices(t.Context())
	require.NoError(t, err)
	require.Len(t, devices, 8, "the last good configuration is in force")

	now, err := object[podObject](n, "pod", "serving")
	require.NoError(t, err)
	require.Equal(t, pod.Status.ContainerStatuses[0].ContainerID, now.Status.ContainerStatuses[0].ContainerID, "the running pod was touched")
	require.True(t, now.Status.ContainerStatuses[0].Ready)
	require.Equal(t, agent[0].Metadata.UID, n.agents(t)[0].Metadata.UID)
	require.Zero(t, n.agents(t)[0].Status.ContainerStatuses[0].RestartCount)
}

// TestTheNodesLabelChoosesTheSharing goes from one of NVIDIA's files to another by the node's label, under a
// running pod.
func TestTheNodesLabelChoosesTheSharing(t *testing.T) {
	n := needNode(t)
	const label = "nvidia.com/device-plugin.config"
	unlabel := func() { n.kubectl(t, "label", "node", nodeName, label+"-") }
	unlabel()
	t.Cleanup(unlabel)
	d := newDriver(t, 2)
	n.deploy(t, deployment{strategy: "envvar", driver: d, choices: map[string]int{"default": 2, "many": 4}})
	k := n.kubelet(t)
	k.has(t, 2, d.uuids()...)
	n.apply(t, gpuPod("sharer", "NVIDIA-H100-80GB-HBM3-SHARED", ""))
	pod := n.runs(t, "sharer", 60*time.Second)

	gaps := k.gaps(t, 4)
	n.kubectl(t, "label", "node", nodeName, label+"=many")
	eventually(t, 30*time.Second, "the label is in force", func() error {
		devices, err := k.devices(t.Context())
		if err == nil && len(devices) != 8 {
			err = errDevices(devices)
		}
		return err
	})
	reduced, _ := gaps()
	require.Zero(t, reduced, "capacity was reduced")

	n.kubectl(t, "label", "--overwrite", "node", nodeName, label+"=missing")
	eventually(t, 30*time.Second, "the agent says that there is no such file", func() error {
		out, err := n.try("", "kubectl", "-n", "gpu-agent", "exec", "daemonset/gpu-agent", "--", "/usr/bin/gpu-agent", "status")
		return says(out, err, "is missing, and there is no such file", "it has default, many")
	})
	k.has(t, 4, d.uuids()...)
	unlabel()
	k.has(t, 2, d.uuids()...)
	now, err := object[podObject](n, "pod", "sharer")
	require.NoError(t, err)
	require.Equal(t, pod.Status.ContainerStatuses[0].ContainerID, now.Status.ContainerStatuses[0].ContainerID, "the running pod was touched")
	require.True(t, now.Status.ContainerStatuses[0].Ready)
}
