// Package deviceplugin shows the node's GPUs to the kubelet by the device plugin API v1beta1.
//
// One loop compares what should be registered with what is, and mends the difference: there is no
// event whose loss would leave the node without GPUs. Each registration has its own server and a
// socket name never used before, because a kubelet that still holds a connection to a name refuses
// it ("device plugin already connected") and may do so until it restarts. Lists are sent from the
// newest snapshot to whoever asks; on the way out nothing is sent, since an empty list would take
// the devices from another instance that has already taken over (DaemonSet with maxSurge).
//
// Two instances on one node, as during an upgrade, do not fight: the older keeps what it has and does
// not register again while a newer one lives. A kubelet of 1.36 or older knows one endpoint of a
// resource, the one registered last; it must be the one that stays.
//
// Not survived: the plugin folder itself replaced by another while it is mounted into our container.
// The mount then shows the old folder for good, and only a restart of the pod sees the new one.
package deviceplugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// Config is where the kubelet is. The zero value is its default place.
type Config struct {
	Dir string // the kubelet's plugin folder; default /var/lib/kubelet/device-plugins
	// Allocated, if set, is told after each answer to Allocate: the kubelet then soon knows which pod
	// holds which GPU. It must not block.
	Allocated func()
	// Elsewhere, if set, says why nothing must be offered here, such as that a DRA driver offers the
	// same GPUs; "" is that nothing stands against it.
	Elsewhere Elsewhere
	Log       *slog.Logger // nil discards
}

// Elsewhere is a latest value to be watched as Snapshots is.
type Elsewhere interface {
	Watch() (why string, changed <-chan struct{})
}

// Snapshots is where the newest snapshot comes from. The channel is closed once a newer one is there.
type Snapshots interface {
	Watch() (*gpu.Snapshot, <-chan struct{})
}

// Policies is where the newest policy comes from, in the same way. A resource that a new one no longer
// offers is taken from the kubelet; pods that hold units of it run on.
type Policies interface {
	Watch() (resource.Policy, <-chan struct{})
}

// Status is how the plugin stands with the kubelet.
type Status struct {
	Registered bool  // every resource offered is registered; false before the first
	Err        error // why not, for people; nil when registered
	Endpoints  []Endpoint
	// Since the start; they never decrease.
	Registrations uint64
	Allocations   uint64 // containers answered by Allocate
	ModelsMounts  uint64 // of those, the containers that were given the folder of models
}

// An Endpoint is one registration of one resource.
type Endpoint struct {
	Resource string
	Socket   string // path
	Since    time.Time
}

// Plugin is the device plugin. Status is safe for concurrent use; Run is called once.
type Plugin struct {
	cfg       Config
	policies  Policies
	snapshots Snapshots

	ended       chan struct{} // a stream or a server ended; holds one, more say no more
	allocations atomic.Uint64
	mounted     atomic.Uint64 // of those, with the folder of models

	mu     sync.Mutex
	status Status // guarded by mu, but for Allocations and ModelsMounts

	// Owned by Run.
	known         []string             // resources to be registered, sorted
	edited        bool                 // the policy is newer than known
	leaving       map[string]time.Time // registered, and since when not offered any more
	problems      []string             // as last logged
	others        instances
	endpoints     map[string]*endpoint
	pace          pace
	registrations uint64
}

// New builds a plugin that does nothing until Run.
func New(cfg Config, policies Policies, snapshots Snapshots) *Plugin {
	cfg.Dir = cmp.Or(cfg.Dir, "/var/lib/kubelet/device-plugins")
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Plugin{
		cfg: cfg, policies: policies, snapshots: snapshots,
		ended:     make(chan struct{}, 1),
		endpoints: map[string]*endpoint{},
		leaving:   map[string]time.Time{},
		status:    Status{Err: errNoDevices},
		others:    instances{born: stamp(time.Now())},
	}
}

var (
	errNoDevices   = errors.New("no GPU known yet")
	errNoneOffered = errors.New("none of this node's GPUs is offered")
	errTakenOver   = errors.New("a newer instance has taken over")
)

// Status is the present state.
func (p *Plugin) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status
	s.Allocations, s.ModelsMounts = p.allocations.Load(), p.mounted.Load()
	return s
}

// Run keeps the plugin registered until ctx is done, and then returns nil, with its sockets removed.
// Nothing that the kubelet or the node does is an error: it waits, and Status says for what.
func (p *Plugin) Run(ctx context.Context) error {
	if policy, _ := p.policies.Watch(); policy.Resource() == "" {
		return errors.New("device plugin: the policy was not made by resource.NewPolicy")
	}
	folder := openFolder(p.cfg.Dir, p.cfg.Log)
	defer folder.close()
	defer p.dropAll()
	var watched <-chan struct{} // of the policy before; nil before the first
	for {
		snapshot, changed := p.snapshots.Watch()
		policy, edited := p.policies.Watch()
		if edited != watched { // by what was read, not by what woke us: several may have changed at once
			p.edited, watched = watched != nil, edited
		}
		why, elsewhere := p.elsewhere()
		err := p.reconcile(ctx, policy, snapshot, folder, why)
		if ctx.Err() != nil {
			return nil
		}
		p.report(err)

		again := time.NewTimer(p.wait(p.pace.next(time.Now(), folder.watched())))
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-changed:
		case <-edited:
		case <-elsewhere:
		case <-folder.events():
		case <-folder.errors():
		case <-p.ended:
		case <-again.C:
		}
		again.Stop()
	}
}

func (p *Plugin) elsewhere() (string, <-chan struct{}) {
	if p.cfg.Elsewhere == nil {
		return "", nil
	}
	return p.cfg.Elsewhere.Watch()
}

// reconcile makes one attempt to have every known resource registered, and no other; its error says
// what is missing.
func (p *Plugin) reconcile(ctx context.Context, policy resource.Policy, s *gpu.Snapshot, folder *folder, elsewhere string) error {
	if elsewhere != "" {
		p.dropAll()
		return errors.New(elsewhere)
	}
	p.learn(policy, s, time.Now())
	if len(p.known) == 0 {
		return p.waiting(s)
	}
	if err := folder.look(); err != nil {
		return err
	}
	p.others.look(p.cfg.Dir, time.Now())
	kubelet := fileAt(p.kubeletSocket())
	p.dropFaulty(kubelet)
	if !p.missing() {
		return nil
	}
	if kubelet == nil {
		return fmt.Errorf("kubelet is not there: no %s", p.kubeletSocket())
	}
	if err := p.pace.allows(kubelet, time.Now()); err != nil {
		return err
	}
	if p.others.yields(time.Now()) {
		return errTakenOver
	}
	sweep(p.cfg.Dir, p.sockets(), p.cfg.Log)
	err := p.registerMissing(ctx, kubelet)
	p.pace.attempted(kubelet, time.Now(), err)
	return err
}

// dropFaulty closes the registrations that are of no more use.
func (p *Plugin) dropFaulty(kubelet os.FileInfo) {
	for name, e := range p.endpoints {
		why := e.fault(kubelet, time.Now())
		if why == nil && p.others.older.After(e.since) {
			why = errOvertaken
		}
		if why != nil {
			p.cfg.Log.Info("registration ended", "resource", name, "socket", e.socket, "why", why)
			p.pace.ended(e.since, time.Now(), why)
			p.drop(name)
		}
	}
}

func (p *Plugin) registerMissing(ctx context.Context, kubelet os.FileInfo) error {
	var errs []error
	for _, name := range p.known {
		if p.endpoints[name] != nil {
			continue
		}
		e, err := p.register(ctx, name, kubelet)
		if err != nil {
			errs = append(errs, fmt.Errorf("register %s: %w", name, err))
			continue
		}
		p.endpoints[name] = e
	}
	return errors.Join(errs...)
}

// drop closes one registration. Its counterpart in the kubelet sees the connection end.
func (p *Plugin) drop(name string) {
	e := p.endpoints[name]
	delete(p.endpoints, name)
	e.close()
}

func (p *Plugin) dropAll() {
	for name := range p.endpoints {
		p.drop(name)
	}
}

func (p *Plugin) sockets() []string {
	var paths []string
	for _, e := range p.endpoints {
		paths = append(paths, e.socket)
	}
	return paths
}

// report publishes the outcome of one round and logs it when it differs from the one before.
func (p *Plugin) report(err error) {
	now := Status{Registered: err == nil, Err: err, Registrations: p.registrations}
	for _, name := range slices.Sorted(maps.Keys(p.endpoints)) {
		e := p.endpoints[name]
		now.Endpoints = append(now.Endpoints, Endpoint{Resource: name, Socket: e.socket, Since: e.since})
	}
	p.mu.Lock()
	before := p.status.Err
	p.status = now
	p.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		p.cfg.Log.Warn("not registered with the kubelet", "err", err)
	}
}

// wake makes Run look again. It never blocks.
func (p *Plugin) wake() {
	select {
	case p.ended <- struct{}{}:
	default:
	}
}
