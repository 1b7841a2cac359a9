// Package kube is the way out: this node's kubelet, asked who holds which GPU, and the API server,
// given the node's labels. Nothing else in the agent speaks to Kubernetes' API.
package kube

import (
	"cmp"
	"log/slog"
	"time"
)

// Config of NewNode and NewOwners.
type Config struct {
	NodeName   string // of the Node object to label: spec.nodeName of the agent's own pod
	Kubeconfig string // "" is the service account of the agent's own pod

	PodResourcesSocket   string        // default /var/lib/kubelet/pod-resources/kubelet.sock
	PodResourcesInterval time.Duration // default 5 s
	ResourcePrefix       string        // of the resources whose holders are wanted; default "nvidia.com/"

	Log *slog.Logger // nil discards
}

func (c Config) withDefaults() Config {
	c.PodResourcesSocket = cmp.Or(c.PodResourcesSocket, "/var/lib/kubelet/pod-resources/kubelet.sock")
	c.PodResourcesInterval = cmp.Or(c.PodResourcesInterval, 5*time.Second)
	c.ResourcePrefix = cmp.Or(c.ResourcePrefix, "nvidia.com/")
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return c
}
