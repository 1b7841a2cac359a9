package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	podsapi "k8s.io/kubelet/pkg/apis/pods/v1alpha1"
)

// elsewhere is what helps where the kubelet does not.
const elsewhere = " set cache.demand.source: apiserver (docs/models.md)"

// fromKubelet follows the kubelet's Pods API (KEP-4188, beta and on by default since 1.37).
func (p *Pods) fromKubelet(ctx context.Context, seen *sight) error {
	socket := p.cfg.PodsSocket
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no %s: mount its folder; the kubelet has its Pods API since Kubernetes 1.37 (in 1.36 behind the feature gate PodsAPI); for older ones%s", errNotOffered, socket, elsewhere)
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return fmt.Errorf("kubelet socket %s: %w", socket, err)
	}
	defer func() { _ = conn.Close() }() // nothing was written
	stream, err := podsapi.NewPodsClient(conn).WatchPods(ctx, &podsapi.WatchPodsRequest{})
	for err == nil {
		var event *podsapi.WatchPodsEvent
		if event, err = stream.Recv(); err == nil {
			err = seen.kubelets(event)
		}
	}
	if status.Code(err) == codes.Unimplemented {
		return fmt.Errorf("%w: the kubelet at %s has no Pods API v1alpha1:%s: %w", errNotOffered, socket, elsewhere, err)
	}
	return fmt.Errorf("kubelet's Pods API at %s: %w", socket, err)
}

// kubelets takes in one event.
func (s *sight) kubelets(event *podsapi.WatchPodsEvent) error {
	switch event.GetType() {
	case podsapi.EventType_INITIAL_SYNC_COMPLETE:
		s.sync()
		return nil
	case podsapi.EventType_ADDED, podsapi.EventType_MODIFIED, podsapi.EventType_DELETED:
	default:
		return nil // of a newer version
	}
	pod, ended, err := parsePod(event.GetPod())
	if err != nil {
		return fmt.Errorf("a pod that the kubelet tells of cannot be read: %w", err)
	}
	if ended || event.GetType() == podsapi.EventType_DELETED {
		s.drop(pod.UID)
	} else {
		s.put(pod)
	}
	return nil
}
