package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

var (
	nodeObjects  = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	eventObjects = schema.GroupVersionResource{Version: "v1", Resource: "events"}
)

// eventNamespace is where events of objects without a namespace live.
const eventNamespace = "default"

// A condition is a NodeCondition of core/v1.
type condition struct {
	Type               string `json:"type"`
	Status             string `json:"status"`
	Reason             string `json:"reason"`
	Message            string `json:"message"`
	LastHeartbeatTime  string `json:"lastHeartbeatTime"`
	LastTransitionTime string `json:"lastTransitionTime"`
}

// SetCondition makes the condition of that type the whole set of conditions that this agent owns in the
// node's status, by server-side apply; status "" leaves none. The time of transition stays that of the
// condition on the node while the status is the same, across restarts of the agent. It forces, unlike
// Apply: what somebody else wrote under our own type would stay there as a lie.
func (n *Node) SetCondition(ctx context.Context, kind, status, reason, message string) error {
	node, err := n.whole.Resource(nodeObjects).Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return n.explain(err)
	}
	ours := []condition{}
	now := time.Now().UTC().Format(time.RFC3339)
	if status != "" {
		ours = append(ours, condition{kind, status, reason, message, now, now})
	}
	found, _, _ := unstructured.NestedSlice(node.Object, "status", "conditions")
	for _, f := range found {
		there, _ := f.(map[string]any)
		since, _ := there["lastTransitionTime"].(string)
		if there["type"] == kind && there["status"] == status && since != "" {
			ours[0].LastTransitionTime = since
		}
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1",
		"kind":       "Node",
		"metadata":   map[string]any{"name": n.name, "uid": node.GetUID()},
		"status":     map[string]any{"conditions": ours},
	})
	if err != nil {
		return err
	}
	// As metadata, the answer is small.
	_, err = n.client.Patch(ctx, n.name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: fieldManager, Force: new(true)}, "status")
	if err != nil {
		return fmt.Errorf("apply condition %s to node %s: %w", kind, n.name, err)
	}
	return nil
}

// Event creates an Event of the given kind, Normal or Warning, that is about the node. Its name is made of
// the id, so that the API server itself refuses to tell the same twice; that is not an error.
func (n *Node) Event(ctx context.Context, id, kind, reason, message string, at time.Time) error {
	node, err := n.read(ctx)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(id))
	when := at.UTC().Format(time.RFC3339)
	_, err = n.whole.Resource(eventObjects).Namespace(eventNamespace).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       "Event",
		"metadata":   map[string]any{"name": n.name + "." + hex.EncodeToString(sum[:8]), "namespace": eventNamespace},
		"involvedObject": map[string]any{
			"apiVersion": "v1", "kind": "Node", "name": n.name, "uid": string(node.UID),
		},
		"type": kind, "reason": reason, "message": message,
		"source":             map[string]any{"component": fieldManager, "host": n.name},
		"reportingComponent": fieldManager,
		"reportingInstance":  n.name,
		"firstTimestamp":     when, "lastTimestamp": when, "count": int64(1),
	}}, metav1.CreateOptions{FieldManager: fieldManager})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create an event of node %s: %w", n.name, err)
	}
	return nil
}
