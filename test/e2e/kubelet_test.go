package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// kubelet is the kubelet's own view of its devices. The Node object shows the same some seconds later,
// and nothing of what came and went meanwhile.
type kubelet struct {
	podresources.PodResourcesListerClient
}

func (n *node) kubelet(t *testing.T) kubelet {
	t.Helper()
	// The socket is the same file inside and outside the cluster's namespaces.
	socket := filepath.Join(n.dir, "state/var/lib/kubelet/pod-resources/kubelet.sock")
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return kubelet{podresources.NewPodResourcesListerClient(conn)}
}

// devices are the ids of the healthy devices of nvidia.com/gpu.
func (k kubelet) devices(ctx context.Context) (map[string]bool, error) {
	return k.devicesOf(ctx, "nvidia.com/gpu")
}

func (k kubelet) devicesOf(ctx context.Context, resource string) (map[string]bool, error) {
	answer, err := k.GetAllocatableResources(ctx, &podresources.AllocatableResourcesRequest{})
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, d := range answer.GetDevices() {
		for _, id := range d.GetDeviceIds() {
			if d.GetResourceName() == resource {
				found[id] = true
			}
		}
	}
	return found, nil
}

// has waits until the healthy devices are replicas of each of the GPUs, and of no other.
func (k kubelet) has(t *testing.T, replicas int, gpus ...string) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("%d GPUs with all their replicas are healthy", len(gpus)), func() error {
		devices, err := k.devices(t.Context())
		if err != nil {
			return err
		}
		count := map[string]int{}
		for id := range devices {
			gpu, _, _ := strings.Cut(id, "::")
			count[gpu]++
		}
		for _, gpu := range gpus {
			if count[gpu] != replicas {
				return fmt.Errorf("GPU %s has %d healthy replicas, want %d", gpu, count[gpu], replicas)
			}
		}
		if len(count) != len(gpus) {
			return fmt.Errorf("healthy devices of %d GPUs, want %d: %v", len(count), len(gpus), count)
		}
		return nil
	})
}

// gaps watches the devices, 40 times a second, until the returned function is called: it gives how long
// there were fewer than want, and the least that there were.
func (k kubelet) gaps(t *testing.T, want int) func() (reduced time.Duration, least int) {
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		reduced time.Duration
		least   int
		looks   int
		err     error
	}
	done := make(chan result, 1)
	go func() {
		r := result{least: want}
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		last := time.Now()
		for ctx.Err() == nil {
			devices, err := k.devices(ctx)
			now := time.Now()
			switch {
			case ctx.Err() != nil:
			case err != nil:
				r.err = err
			case len(devices) < want:
				r.reduced += now.Sub(last)
				r.least = min(r.least, len(devices))
			}
			r.looks++
			last = now
			<-tick.C
		}
		done <- r
	}()
	return func() (time.Duration, int) {
		cancel()
		r := <-done
		require.NoError(t, r.err)
		t.Logf("the kubelet was asked %d times: %s with fewer than %d devices, %d at the least", r.looks, r.reduced, want, r.least)
		return r.reduced, r.least
	}
}
