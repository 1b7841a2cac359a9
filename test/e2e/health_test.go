package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// condition waits until the Node's condition GPUsHealthy is so, with those words in its message.
func (n *node) condition(t *testing.T, status, reason string, words ...string) {
	t.Helper()
	eventually(t, 30*time.Second, "condition GPUsHealthy is "+status+", "+reason, func() error {
		o, err := object[nodeObject](n, "node", nodeName)
		if err != nil {
			return err
		}
		for _, c := range o.Status.Conditions {
			if c.Type == "GPUsHealthy" && c.Status == status && c.Reason == reason {
				return says(c.Message, nil, words...)
			}
		}
		return fmt.Errorf("conditions: %+v", o.Status.Conditions)
	})
}

// told waits until an Event of the Node says so.
func (n *node) told(t *testing.T, reason string, words ...string) {
	t.Helper()
	type event struct{ Reason, Message string }
	eventually(t, 20*time.Second, "an event says "+strings.Join(words, ", "), func() error {
		list, err := object[struct{ Items []event }](n, "events", "-n", "default", "--field-selector=involvedObject.kind=Node,reason="+reason)
		if err != nil {
			return err
		}
	events:
		for _, e := range list.Items {
			for _, word := range words {
				if !strings.Contains(e.Message, word) {
					continue events
				}
			}
			return nil
		}
		return fmt.Errorf("events: %+v", list.Items)
	})
}

// TestHealthUnderSharing has one GPU after another fall ill, each shared four times.
func TestHealthUnderSharing(t *testing.T) {
	const replicas = 4
	n := needNode(t)
	d := newDriver(t, 4)
	all := d.uuids()
	n.deploy(t, deployment{strategy: "envvar", driver: d, replicas: replicas})
	n.offers(t, "16", 30*time.Second)
	k := n.kubelet(t)
	k.has(t, replicas, all...)
	n.condition(t, "True", "AllHealthy")
	n.apply(t, gpuPod("sharer", "NVIDIA-H100-80GB-HBM3-SHARED", ""))
	n.runs(t, "sharer", 60*time.Second)
	held := env(n.log(t, "sharer"), "NVIDIA_VISIBLE_DEVICES")
	// The pod's GPU is the first to fall ill.
	sick := 0
	for i, uuid := range all {
		if uuid == held {
			sick = i
		}
	}
	others := func(not ...int) []string {
		var left []string
	next:
		for i, uuid := range all {
			for _, skip := range not {
				if i == skip {
					continue next
				}
			}
			left = append(left, uuid)
		}
		return left
	}

	d.xid(t, (sick+1)%4, 94) // contained: the application alone is hurt
	d.xid(t, sick, 79)       // fell off the bus
	k.has(t, replicas, others(sick)...)
	n.offers(t, "12", 30*time.Second)
	o, err := object[nodeObject](n, "node", nodeName)
	require.NoError(t, err)
	require.Equal(t, "16", o.Status.Capacity["nvidia.com/gpu"])
	n.condition(t, "False", "XID", "3 of 4 GPUs are healthy; GPU "+fmt.Sprint(sick)+" ("+held+"): XID: ")
	n.told(t, "GPUUnhealthy", held, "XID")
	eventually(t, 60*time.Second, "the pod's status says that its GPU is unhealthy", func() error {
		p, err := object[podObject](n, "pod", "sharer")
		if err != nil {
			return err
		}
		for _, r := range p.Status.ContainerStatuses[0].AllocatedResourcesStatus {
			for _, unit := range r.Resources {
				if strings.Contains(unit.ResourceID, held) && unit.Health == "Unhealthy" {
					return nil
				}
			}
		}
		return fmt.Errorf("%+v", p.Status.ContainerStatuses)
	})

	second := (sick + 2) % 4
	d.xid(t, second, 109) // the catalogue: reset the GPU
	k.has(t, replicas, others(sick, second)...)
	n.condition(t, "False", "XID", "2 of 4 GPUs are healthy")

	// A restart is no evidence that anything was healed.
	n.kubectl(t, "-n", "gpu-agent", "delete", "pod", "-l", "app.kubernetes.io/name=gpu-agent", "--wait")
	n.kubectl(t, "-n", "gpu-agent", "rollout", "status", "daemonset/gpu-agent", "--timeout=60s")
	k.has(t, replicas, others(sick, second)...)
	n.offers(t, "8", 30*time.Second)
	told, err := object[struct{ Items []struct{ Message string } }](n, "events", "-n", "default", "--field-selector=reason=GPUUnhealthy")
	require.NoError(t, err)
	times := 0
	for _, e := range told.Items {
		if strings.Contains(e.Message, held) {
			times++
		}
	}
	require.Equal(t, 1, times, "the event was told again")
	n.condition(t, "False", "XID", "2 of 4 GPUs are healthy")
}
