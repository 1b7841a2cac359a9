package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/watch"
)

// ModelsAnnotation is where a pod names the models that it needs.
const ModelsAnnotation = "gpu-agent.dev/models"

const (
	podsRetryMin = time.Second
	podsRetryMax = 15 * time.Second
	// podsAnew is how often the whole list is asked for again: the kubelet drops events that it cannot deliver.
	podsAnew = 10 * time.Minute
)

// Pod is what of a pod tells which models it needs.
type Pod struct {
	UID, Namespace, Name string

	Created time.Time
	Models  string // the value of ModelsAnnotation
	// HostPaths are folders of the host that its containers mount, sorted, subPaths included. Only the kubelet
	// tells them.
	HostPaths []string
}

func (p Pod) equal(o Pod) bool {
	return p.UID == o.UID && p.Models == o.Models && slices.Equal(p.HostPaths, o.HostPaths)
}

// PodList is the pods of this node that have not ended, sorted by UID. It is never changed.
type PodList struct {
	Pods []Pod
	// Known is false until there was one answer. After that the last one stays, whatever Problem says: pods
	// that cannot be seen are not gone.
	Known bool
	// Problem says why they cannot be seen now, for people; "" when they are.
	Problem string
}

func (l PodList) equal(o PodList) bool {
	return l.Known == o.Known && l.Problem == o.Problem && slices.EqualFunc(l.Pods, o.Pods, Pod.equal)
}

// errNotOffered is that whoever was asked will not answer as it is.
var errNotOffered = errors.New("not offered")

// Pods knows the pods of this node. It is safe for concurrent use.
type Pods struct {
	cfg  Config
	from func(ctx context.Context, seen *sight) error // one list and what follows, until it breaks
	list watch.Value[PodList]
	said string // the problem that was logged last; used by Run alone
}

// sight is what one connection has told so far.
type sight struct {
	of     *Pods
	pods   map[string]Pod // by UID
	synced bool
}

// NewPods sees them through the kubelet's Pods API, a socket of the host: the default of kubelets since 1.37.
func NewPods(cfg Config) *Pods {
	cfg = cfg.withDefaults()
	p := &Pods{cfg: cfg}
	p.from = p.fromKubelet
	return p
}

// NewPodsOf sees them through the API server, whose service account needs list and watch on pods of the
// whole cluster: RBAC knows no "of my node". Only metadata is asked for.
func NewPodsOf(cfg Config, node *Node) *Pods {
	p := &Pods{cfg: cfg.withDefaults()}
	p.from = func(ctx context.Context, seen *sight) error { return p.fromServer(ctx, node, seen) }
	return p
}

// Watch is the newest list, and a channel that is closed once there is another.
func (p *Pods) Watch() (PodList, <-chan struct{}) { return p.list.Watch() }

// Run follows the pods until ctx is done, and then returns nil.
func (p *Pods) Run(ctx context.Context) error {
	pause := podsRetryMin
	for {
		seen := &sight{of: p, pods: map[string]Pod{}}
		following, stop := context.WithTimeoutCause(ctx, podsAnew, errAnew)
		err := p.from(following, seen)
		anew := context.Cause(following) == errAnew //nolint:errorlint // it is ours, and not wrapped
		stop()
		if ctx.Err() != nil {
			return nil
		}
		if anew && seen.synced {
			continue
		}
		p.lost(err)
		if seen.synced {
			pause = podsRetryMin
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, podsRetryMax)
	}
}

var errAnew = errors.New("time for a new list")

// lost keeps what was known. Where pods are not offered at all, it is known that nothing is known of them.
func (p *Pods) lost(err error) {
	now := p.list.Get()
	now.Problem = "the connection ended"
	if err != nil {
		now.Problem = err.Error()
	}
	now.Known = now.Known || errors.Is(err, errNotOffered)
	if now.Problem != p.said {
		p.cfg.Log.Warn("the pods of this node cannot be seen, tried again until they can", "error", now.Problem)
		p.said = now.Problem
	}
	p.publish(now)
}

func (p *Pods) publish(l PodList) {
	if !l.equal(p.list.Get()) {
		p.list.Set(l)
	}
}

// sync is that the first list is complete.
func (s *sight) sync() {
	s.synced = true
	if s.of.said != "" {
		s.of.cfg.Log.Info("the pods of this node are seen again")
		s.of.said = ""
	}
	s.show()
}

func (s *sight) put(p Pod) {
	s.pods[p.UID] = p
	s.show()
}

func (s *sight) drop(uid string) {
	delete(s.pods, uid)
	s.show()
}

func (s *sight) show() {
	if s.synced {
		s.of.publish(PodList{Known: true, Pods: slices.SortedFunc(maps.Values(s.pods), func(a, b Pod) int { return strings.Compare(a.UID, b.UID) })})
	}
}

// String names the pod for people.
func (p Pod) String() string { return fmt.Sprintf("%s/%s", p.Namespace, p.Name) }
