// Package kube is the way out: this node's kubelet, asked who holds which GPU and which pods there are, and
// the API server, given the node's labels. Nothing else in the agent speaks to Kubernetes' API.
package kube

import (
	"cmp"
	"log/slog"
	"strings"
	"time"
)

// Config of NewNode and NewOwners.
type Config struct {
	NodeName   string // of the Node object to label: spec.nodeName of the agent's own pod
	Kubeconfig string // "" is the service account of the agent's own pod

	PodResourcesSocket   string        // default /var/lib/kubelet/pod-resources/kubelet.sock
	PodResourcesInterval time.Duration // default 5 s
	PodsSocket           string        // of the kubelet's Pods API; default /var/lib/kubelet/pods-api/pods-api.sock
	// Ours reports whether the holders of a resource are wanted; default: those of nvidia.com/.
	Ours func(resource string) bool

	Log *slog.Logger // nil discards
}

func (c Config) withDefaults() Config {
	c.PodResourcesSocket = cmp.Or(c.PodResourcesSocket, "/var/lib/kubelet/pod-resources/kubelet.sock")
	c.PodResourcesInterval = cmp.Or(c.PodResourcesInterval, 5*time.Second)
	c.PodsSocket = cmp.Or(c.PodsSocket, "/var/lib/kubelet/pods-api/pods-api.sock")
	if c.Ours == nil {
		c.Ours = func(resource string) bool { return strings.HasPrefix(resource, "nvidia.com/") }
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return c
}
