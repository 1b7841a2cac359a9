package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const slice = `
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: node-1-gpu.nvidia.com-e2e}
spec:
  driver: gpu.nvidia.com
  nodeName: node-1
  pool: {name: node-1, generation: 1, resourceSliceCount: 1}
  devices: [{name: gpu-0}]
`

// TestADRADriverOnTheNode has somebody else offer the node's GPUs before the agent does, and then no more.
func TestADRADriverOnTheNode(t *testing.T) {
	n := needNode(t)
	n.kubectl(t, "taint", "--overwrite", "node", nodeName, "gpu-agent.dev/not-ready=:PreferNoSchedule")
	n.deploy(t, deployment{strategy: "envvar", driver: newDriver(t, 2)})
	n.offers(t, "2", 30*time.Second)
	eventually(t, 20*time.Second, "the startup taint is gone", func() error {
		out, err := n.try("", "kubectl", "get", "node", nodeName, "-o", "jsonpath=-{.spec.taints}-")
		return says(out, err, "--")
	})

	n.apply(t, slice)
	n.kubectl(t, "-n", "gpu-agent", "delete", "pod", "-l", "app.kubernetes.io/name=gpu-agent", "--wait")
	eventually(t, 30*time.Second, "the agent does not offer them again, and says why", func() error {
		out, err := n.try("", "kubectl", "-n", "gpu-agent", "exec", "daemonset/gpu-agent", "--", "/usr/bin/gpu-agent", "status")
		return says(out, err, "DRA driver gpu.nvidia.com offers this node's GPUs (ResourceSlice node-1-gpu.nvidia.com-e2e)")
	})
	n.offers(t, "0", 30*time.Second)
	require.False(t, n.agents(t)[0].Status.ContainerStatuses[0].Ready)

	n.kubectl(t, "delete", "resourceslice", "node-1-gpu.nvidia.com-e2e")
	n.kubectl(t, "-n", "gpu-agent", "delete", "pod", "-l", "app.kubernetes.io/name=gpu-agent", "--wait")
	n.offers(t, "2", 60*time.Second)
}
