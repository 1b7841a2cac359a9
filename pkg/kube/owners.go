package kube

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

const (
	// listTimeout bounds one List: a kubelet that starts answers late.
	listTimeout = 10 * time.Second
	// maxAnswer: gRPC's 4 MiB are too few on nodes with hundreds of pods and many devices each.
	maxAnswer = 16 << 20
	// settle is how long after Poke the kubelet is asked: it lists devices only after Allocate returned.
	settle = 250 * time.Millisecond
	// keepFor is how many intervals the last answer outlives the kubelet's silence.
	keepFor = 3
)

// Owners knows which containers hold which GPUs, from the kubelet's PodResources API. It holds what the
// device plugins gave out; GPUs that come by DRA claims are not in it. Kubelets before 1.34 go on
// listing pods that have finished until they are deleted; those show as owners there. It is safe for
// concurrent use.
type Owners struct {
	cfg  Config
	poke chan struct{} // holds at most one

	mu     sync.Mutex
	owners map[gpu.UUID][]resource.Owner // guarded by mu; replaced, never changed
	asked  time.Time                     // guarded by mu: of the last answer
	up     bool                          // guarded by mu: the last question was answered

	strange map[string]bool // used by Run alone: resources whose ids were logged
}

// NewOwners starts nothing: see Run.
func NewOwners(cfg Config) *Owners {
	return &Owners{cfg: cfg.withDefaults(), poke: make(chan struct{}, 1), strange: map[string]bool{}}
}

// Run asks the kubelet now, every interval, and shortly after each Poke. It returns nil once ctx is
// done: a kubelet that is away is asked again, and logged once.
func (o *Owners) Run(ctx context.Context) error {
	retry := backoff.DefaultConfig
	// The kubelet is local and its restart short; dialling more often than asking is of no use.
	retry.BaseDelay, retry.MaxDelay = 100*time.Millisecond, max(time.Second, o.cfg.PodResourcesInterval)
	conn, err := grpc.NewClient("unix:"+o.cfg.PodResourcesSocket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return fmt.Errorf("kubelet socket %s: %w", o.cfg.PodResourcesSocket, err)
	}
	defer func() { _ = conn.Close() }() // nothing was written
	o.poll(ctx, podresources.NewPodResourcesListerClient(conn))
	return nil
}

// Poke asks the kubelet soon: after an Allocate, say. It does not block.
func (o *Owners) Poke() {
	select {
	case o.poke <- struct{}{}:
	default:
	}
}

// Owners is the containers that hold each GPU, sorted, each once however many shares it holds; the
// caller must not change it. It is nil before the first answer and when the kubelet has been silent
// for three intervals: absent, not stale. up is whether the last question was answered.
func (o *Owners) Owners() (owners map[gpu.UUID][]resource.Owner, up bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Since(o.asked) > keepFor*o.cfg.PodResourcesInterval {
		return nil, o.up
	}
	return o.owners, o.up
}

type lister interface {
	List(ctx context.Context, in *podresources.ListPodResourcesRequest, opts ...grpc.CallOption) (*podresources.ListPodResourcesResponse, error)
}

func (o *Owners) poll(ctx context.Context, kubelet lister) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	next := time.Now()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.poke:
			// Only ever sooner: a pod that starts every moment must not put the question off for ever.
			if soon := time.Now().Add(settle); soon.Before(next) {
				next = soon
				timer.Reset(settle)
			}
			continue
		case <-timer.C:
		}
		err := o.ask(ctx, kubelet)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			o.cfg.Log.Warn("kubelet does not say which pods hold GPUs", "socket", o.cfg.PodResourcesSocket, "error", err)
		}
		if err == nil && failing {
			o.cfg.Log.Info("kubelet says again which pods hold GPUs", "socket", o.cfg.PodResourcesSocket)
		}
		failing = err != nil
		next = time.Now().Add(o.cfg.PodResourcesInterval)
		timer.Reset(o.cfg.PodResourcesInterval)
	}
}

func (o *Owners) ask(ctx context.Context, kubelet lister) error {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	answer, err := kubelet.List(ctx, &podresources.ListPodResourcesRequest{})
	var owners map[gpu.UUID][]resource.Owner
	if err == nil {
		owners = o.read(answer)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.up = err == nil; o.up {
		o.owners, o.asked = owners, time.Now()
	}
	return err
}

// read turns the kubelet's list of pods into a list of holders by GPU.
func (o *Owners) read(answer *podresources.ListPodResourcesResponse) map[gpu.UUID][]resource.Owner {
	owners := map[gpu.UUID][]resource.Owner{}
	for _, pod := range answer.GetPodResources() {
		for _, container := range pod.GetContainers() {
			owner := resource.Owner{Namespace: pod.GetNamespace(), Pod: pod.GetName(), Container: container.GetName()}
			for _, id := range o.ids(container) {
				if d := id.Device(); !slices.Contains(owners[d], owner) {
					owners[d] = append(owners[d], owner)
				}
			}
		}
	}
	for _, list := range owners {
		slices.SortFunc(list, func(a, b resource.Owner) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Container, b.Container))
		})
	}
	return owners
}

func (o *Owners) ids(container *podresources.ContainerResources) []resource.ID {
	var ids []resource.ID
	for _, devices := range container.GetDevices() {
		name := devices.GetResourceName()
		if !o.cfg.Ours(name) {
			continue
		}
		for _, s := range devices.GetDeviceIds() {
			id, err := resource.ParseID(s)
			if err == nil {
				ids = append(ids, id)
			} else if !o.strange[name] {
				o.strange[name] = true
				o.cfg.Log.Info("pods with this resource are not attributed to a GPU", "resource", name, "error", err)
			}
		}
	}
	return ids
}
