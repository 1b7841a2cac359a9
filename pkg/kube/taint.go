package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// Untaint takes the taints with that key off the node, and reports whether there was one. The list of
// taints can only be written whole, so the write is bound to the version that was read: an error of
// apierrors.IsConflict means that somebody else changed the node meanwhile, and that it may be tried again.
func (n *Node) Untaint(ctx context.Context, key string) (removed bool, err error) {
	node, err := n.whole.Resource(nodeObjects).Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return false, n.explain(err)
	}
	taints, _, _ := unstructured.NestedSlice(node.Object, "spec", "taints")
	left := slices.DeleteFunc(slices.Clone(taints), func(t any) bool {
		taint, _ := t.(map[string]any)
		return taint["key"] == key
	})
	if len(left) == len(taints) {
		return false, nil
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": node.GetResourceVersion(), "uid": node.GetUID()},
		"spec":     map[string]any{"taints": left},
	})
	if err != nil {
		return false, err
	}
	_, err = n.client.Patch(ctx, n.name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil && !apierrors.IsConflict(err) {
		err = fmt.Errorf("take taint %s off node %s: %w", key, n.name, err)
	}
	return err == nil, err
}
