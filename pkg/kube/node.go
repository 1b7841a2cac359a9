package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// fieldManager owns our labels in server-side apply. Changing it would strand those of older agents.
	fieldManager = "gpu-agent"
	// requestTimeout bounds one call of the API server.
	requestTimeout = 10 * time.Second
	// nfdLabels is the annotation in which nfd-master lists the labels that it answers for. Named
	// instances of NFD put their name and a dot before it.
	nfdLabels = "nfd.node.kubernetes.io/feature-labels"
)

// Node is this node's Node object. Its service account needs get and patch on nodes; for SetCondition
// also patch on nodes/status, for Event create on events in namespace default. Labels are read and
// written as metadata alone, so that the large status of a Node is fetched only for its condition. It is
// safe for concurrent use.
type Node struct {
	name   string
	client metadata.ResourceInterface
	// lasting is of everything, and bounds no call: a watch lasts.
	lasting metadata.Interface
	whole   dynamic.Interface
	log     *slog.Logger

	mu      sync.Mutex
	foreign map[string]string // guarded by mu: key -> owner, replaced whole by each Apply
}

// NewNode makes the client; it calls nobody.
func NewNode(cfg Config) (*Node, error) {
	cfg = cfg.withDefaults()
	if cfg.NodeName == "" {
		return nil, errors.New("node name is empty: set NODE_NAME from the pod's spec.nodeName")
	}
	rc, err := restConfig(cfg.Kubeconfig)
	if err != nil {
		return nil, err
	}
	rc.Timeout = requestTimeout
	rc.UserAgent = fieldManager
	client, err := metadata.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", rc.Host, err)
	}
	unbounded := rest.CopyConfig(rc)
	unbounded.Timeout = 0
	lasting, err := metadata.NewForConfig(unbounded)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", rc.Host, err)
	}
	whole, err := dynamic.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", rc.Host, err)
	}
	return &Node{name: cfg.NodeName, client: client.Resource(nodeObjects), lasting: lasting, whole: whole, log: cfg.Log}, nil
}

// read fetches the Node's metadata.
func (n *Node) read(ctx context.Context) (*metav1.PartialObjectMetadata, error) {
	node, err := n.client.Get(ctx, n.name, metav1.GetOptions{})
	return node, n.explain(err)
}

// Label is the value of one of the Node's labels; "" is that it has none.
func (n *Node) Label(ctx context.Context, key string) (string, error) {
	// From the API server's cache: every node asks again and again.
	node, err := n.client.Get(ctx, n.name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return "", n.explain(err)
	}
	return node.Labels[key], nil
}

// Labels are all of the Node's labels.
func (n *Node) Labels(ctx context.Context) (map[string]string, error) {
	node, err := n.client.Get(ctx, n.name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, n.explain(err)
	}
	return node.Labels, nil
}

// explain names the Node in what the API server says of it.
func (n *Node) explain(err error) error {
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("node %q does not exist: NODE_NAME must be the pod's spec.nodeName", n.name)
	}
	if err != nil {
		return fmt.Errorf("read node %s: %w", n.name, err)
	}
	return nil
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		rc, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
		}
		return rc, nil
	}
	rc, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("not in a pod of a cluster, and no kubeconfig is given: name one, or write the labels to a file")
	}
	if err != nil {
		return nil, fmt.Errorf("read the pod's service account: %w", err)
	}
	return rc, nil
}

// Apply makes labels the whole set of labels that this agent owns on the node, by server-side apply:
// a key that it applied before and that is missing now goes, unless somebody else owns it too. It never
// forces. Keys that are somebody else's are left out, logged once, and told by Foreign; the rest is
// applied. A key is tried again at every call, so that it is taken over once its owner lets go. Keys that
// it applied before and that start with keep stay as they are; "" is none.
func (n *Node) Apply(ctx context.Context, labels map[string]string, keep string) error {
	node, err := n.read(ctx)
	if err != nil {
		return err
	}
	if keep != "" {
		labels = kept(node, labels, keep)
	}
	foreign := listedByNFD(node, labels)
	for {
		ours := map[string]string{} // never nil: that would be a null in the patch
		maps.Copy(ours, labels)
		maps.DeleteFunc(ours, func(key, _ string) bool { return foreign[key] != "" })
		err := n.patch(ctx, node.UID, ours)
		if err == nil {
			n.report(foreign)
			return nil
		}
		more := conflicts(err, ours)
		if len(more) == 0 { // each round leaves out at least one key, so this ends
			return fmt.Errorf("apply labels to node %s: %w", n.name, err)
		}
		maps.Copy(foreign, more)
	}
}

// Foreign is the keys that the last successful Apply left to their owners, sorted.
func (n *Node) Foreign() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.foreign))
}

// patch carries the UID: applying to an object that does not exist would make one, and a Node that was
// deleted a moment ago must not come back without a kubelet.
func (n *Node) patch(ctx context.Context, uid types.UID, labels map[string]string) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1",
		"kind":       "Node",
		"metadata":   map[string]any{"name": n.name, "uid": uid, "labels": labels},
	})
	if err != nil {
		return err
	}
	_, err = n.client.Patch(ctx, n.name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
	return err
}

func (n *Node) report(foreign map[string]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(foreign)) {
		if _, told := n.foreign[key]; !told {
			n.log.Warn("node label left to its owner", "label", key, "owner", foreign[key])
		}
	}
	n.foreign = foreign
}

// listedByNFD is the keys of labels that nfd-master lists as its own and that we do not own already.
// NFD writes with plain patches and wins them all, so without this the two would take turns. A key of
// ours that NFD lists later without having changed it stays ours: leaving it out would delete it.
func listedByNFD(node *metav1.PartialObjectMetadata, labels map[string]string) map[string]string {
	foreign := map[string]string{}
	ours := applied(node)
	for name, list := range node.Annotations {
		if name != nfdLabels && !strings.HasSuffix(name, "."+nfdLabels) {
			continue
		}
		// Keys in NFD's own namespace are listed without it; ours never are.
		for key := range strings.SplitSeq(list, ",") {
			if _, wanted := labels[key]; wanted && !ours[key] {
				foreign[key] = "node feature discovery"
			}
		}
	}
	return foreign
}

// kept is labels and those on the node that are ours and start with keep.
func kept(node *metav1.PartialObjectMetadata, labels map[string]string, keep string) map[string]string {
	all := map[string]string{}
	for key := range applied(node) {
		if value, there := node.Labels[key]; there && strings.HasPrefix(key, keep) {
			all[key] = value
		}
	}
	maps.Copy(all, labels)
	return all
}

// applied is the label keys that an earlier Apply of this agent owns.
func applied(node *metav1.PartialObjectMetadata) map[string]bool {
	keys := map[string]bool{}
	for _, m := range node.ManagedFields {
		if m.Manager != fieldManager || m.Operation != metav1.ManagedFieldsOperationApply || m.Subresource != "" || m.FieldsV1 == nil {
			continue
		}
		var fields struct {
			Metadata struct {
				Labels map[string]json.RawMessage `json:"f:labels"`
			} `json:"f:metadata"`
		}
		// What cannot be read counts as not ours: the key is then left alone, the careful choice.
		if json.Unmarshal(m.FieldsV1.GetRawBytes(), &fields) == nil {
			for key := range fields.Metadata.Labels {
				keys[strings.TrimPrefix(key, "f:")] = true
			}
		}
	}
	return keys
}

// conflicts is the keys of labels that the API server says others own with another value, and who. The
// field of a cause is a path such as ".metadata.labels.nvidia.com/gpu.count".
func conflicts(err error, labels map[string]string) map[string]string {
	var status apierrors.APIStatus
	if !apierrors.IsConflict(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return nil
	}
	found := map[string]string{}
	for _, cause := range status.Status().Details.Causes {
		key, isLabel := strings.CutPrefix(cause.Field, ".metadata.labels.")
		if _, wanted := labels[key]; cause.Type == metav1.CauseTypeFieldManagerConflict && isLabel && wanted {
			found[key] = strings.TrimPrefix(cause.Message, "conflict with ")
		}
	}
	return found
}
