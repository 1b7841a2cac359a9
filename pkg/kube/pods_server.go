package kube

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

var podObjects = schema.GroupVersionResource{Version: "v1", Resource: "pods"} // read-only

// fromServer lists and watches. A pod that ends leaves the selector, and so is told as deleted.
func (p *Pods) fromServer(ctx context.Context, node *Node, seen *sight) error {
	options := metav1.ListOptions{
		FieldSelector: "spec.nodeName=" + node.name + ",status.phase!=Succeeded,status.phase!=Failed",
		// From the API server's cache: every node asks.
		ResourceVersion: "0",
	}
	client := node.lasting.Resource(podObjects)
	listing, cancel := context.WithTimeout(ctx, requestTimeout)
	list, err := client.List(listing, options)
	cancel()
	if err != nil {
		return refused(err)
	}
	for i := range list.Items {
		seen.put(podOf(&list.Items[i]))
	}
	seen.sync()
	options.ResourceVersion, options.AllowWatchBookmarks = list.ResourceVersion, true
	events, err := client.Watch(ctx, options)
	if err != nil {
		return refused(err)
	}
	defer events.Stop()
	for event := range events.ResultChan() {
		object, ok := event.Object.(*metav1.PartialObjectMetadata)
		switch {
		case event.Type == watch.Error:
			return refused(apierrors.FromObject(event.Object))
		case !ok || event.Type == watch.Bookmark:
		case event.Type == watch.Deleted:
			seen.drop(string(object.UID))
		default:
			seen.put(podOf(object))
		}
	}
	return errors.New("the API server ended the watch of pods")
}

func podOf(o *metav1.PartialObjectMetadata) Pod {
	return Pod{UID: string(o.UID), Namespace: o.Namespace, Name: o.Name, Created: o.CreationTimestamp.UTC(), Models: o.Annotations[ModelsAnnotation]}
}

func refused(err error) error {
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("%w: give the agent's ClusterRole list and watch on pods", err)
	}
	return fmt.Errorf("pods of this node at the API server: %w", err)
}
