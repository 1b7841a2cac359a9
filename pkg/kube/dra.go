package kube

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/gpu-agent/gpu-agent/internal/watch"
)

const (
	// draDriver is NVIDIA's DRA driver for whole GPUs and MIG devices, github.com/kubernetes-sigs/dra-driver-nvidia-gpu.
	// Its other one, compute-domain.nvidia.com, offers no GPU and does not matter here.
	draDriver = "gpu.nvidia.com"
	// draAsking bounds the wait for the first answer: without an API server the kubelet must be served.
	draAsking = 3 * time.Second
	// draInterval is how often it is asked again, give or take a tenth, so that nodes do not ask together.
	draInterval = 2 * time.Minute
)

// draVersions of resource.k8s.io, the first that the API server has is asked: GA since Kubernetes 1.34.
var draVersions = []string{"v1", "v1beta1"}

// DRA knows whether a DRA driver offers this node's GPUs. A GPU given out twice, by a claim and by the
// kubelet's device plugins, breaks both pods, and nothing in Kubernetes prevents it. Its service account
// needs list on resourceslices; without that nothing is known, and this is said once. It is safe for
// concurrent use.
type DRA struct {
	node  *Node
	owner *watch.Value[string]
	told  bool // that it cannot be known; used by Run alone
}

// AskingDRA is what is known before the first answer: that must not be offered which somebody else may offer.
const AskingDRA = "asking the API server whether a DRA driver offers this node's GPUs"

// NewDRA calls nobody until Run, which publishes in owner why the GPUs must not be offered, "" if nothing is known
// against it. The first answer comes within 3 s; without one nothing is known. What owner holds before stays until then.
func NewDRA(node *Node, owner *watch.Value[string]) *DRA { return &DRA{node: node, owner: owner} }

// Run asks now and every two minutes. It returns nil once ctx is done.
func (d *DRA) Run(ctx context.Context) error {
	patience := draAsking
	for first := true; ; first = false {
		asking, cancel := context.WithTimeout(ctx, patience)
		owner, err := d.ask(asking)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		d.answered(owner, err, first)
		patience = requestTimeout
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(draInterval - draInterval/10 + rand.N(draInterval/5)):
		}
	}
}

// answered publishes an answer. A question without one leaves the answer before.
func (d *DRA) answered(owner string, err error, first bool) {
	switch {
	case err != nil:
		if !d.told {
			d.node.log.Warn("cannot know whether a DRA driver offers this node's GPUs too", "error", err)
			d.told = true
		}
		if first {
			d.owner.Set("")
		}
	case owner != d.owner.Get():
		d.owner.Set(owner)
	}
}

// ask lists the node's slices of the driver.
func (d *DRA) ask(ctx context.Context) (string, error) {
	for _, version := range draVersions {
		slices := schema.GroupVersionResource{Group: "resource.k8s.io", Version: version, Resource: "resourceslices"}
		list, failed := d.node.whole.Resource(slices).List(ctx, metav1.ListOptions{
			FieldSelector: "spec.nodeName=" + d.node.name + ",spec.driver=" + draDriver,
			// From the API server's cache: every node asks.
			ResourceVersion: "0",
		})
		switch {
		case failed == nil && len(list.Items) > 0:
			return fmt.Sprintf("DRA driver %s offers this node's GPUs (ResourceSlice %s): take it off this node, or set allocation to none", draDriver, list.Items[0].GetName()), nil
		case failed == nil:
			return "", nil
		case !apierrors.IsNotFound(failed):
			return "", fmt.Errorf("list resourceslices of node %s: %w", d.node.name, failed)
		}
	}
	return "", nil // an API server without DRA has no DRA driver
}
