// Package kubelettest is the kubelet's side of the device plugin API on a real unix socket, as far as
// plugins can tell: it wipes the folder when it starts, dials back before it answers Register, keeps
// one connection for each socket name, refuses a name that it still holds, and takes all devices of a
// connection that ends for unhealthy. Behaviour of kubelet 1.37.2, pkg/kubelet/cm/devicemanager.
package kubelettest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// A State is what the kubelet knows at one moment.
type State struct {
	Registrations []string               // socket names in the order in which they were accepted, across restarts
	Refused       int                    // registrations refused, across restarts
	Devices       map[string]*api.Device // of all resources, by device ID; the latest word on each
	Updates       int                    // lists received, across restarts
	Streams       int                    // open now
	Gaps          int                    // how often all devices of a resource became unhealthy for want of a plugin
}

// Healthy is the number of devices that could be allocated.
func (s State) Healthy() int {
	n := 0
	for _, d := range s.Devices {
		if d.GetHealth() == api.Healthy {
			n++
		}
	}
	return n
}

// Kubelet is a kubelet. It is safe for concurrent use, but for Start, Stop and Kill among each other.
type Kubelet struct {
	api.UnimplementedRegistrationServer
	dir string

	// OneEndpoint is how 1.36 and older behave: they know a plugin by its resource alone. The one that
	// registered last is asked to allocate, lists are taken from every open stream, and the end of any
	// connection closes that of the one registered last. Set before Start.
	OneEndpoint bool

	server *grpc.Server
	served chan struct{}

	mu       sync.Mutex
	state    State
	changed  chan struct{}              // closed at each change of state
	plugins  map[string]*plugin         // by socket name
	latest   map[string]*plugin         // by resource: registered last, and not closed since
	resource map[string]map[string]bool // resource -> device IDs
	running  sync.WaitGroup             // streams
}

type plugin struct {
	name, resource string
	conn           *grpc.ClientConn
	client         api.DevicePluginClient
	cancel         context.CancelFunc
}

// New is a kubelet for the given folder, which does nothing until Start.
func New(dir string) *Kubelet {
	return &Kubelet{
		dir: dir, changed: make(chan struct{}),
		state:   State{Devices: map[string]*api.Device{}},
		plugins: map[string]*plugin{}, latest: map[string]*plugin{}, resource: map[string]map[string]bool{},
	}
}

func (k *Kubelet) socket() string { return filepath.Join(k.dir, "kubelet.sock") }

// Start removes every socket in the folder, as the kubelet does, and serves.
func (k *Kubelet) Start() error {
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type()&os.ModeSocket != 0 {
			if err := os.Remove(filepath.Join(k.dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	listener, err := net.Listen("unix", k.socket())
	if err != nil {
		return err
	}
	k.server = grpc.NewServer(grpc.WaitForHandlers(true))
	k.served = make(chan struct{})
	api.RegisterRegistrationServer(k.server, k)
	go func(server *grpc.Server, served chan struct{}) {
		defer close(served)
		_ = server.Serve(listener)
	}(k.server, k.served)
	return nil
}

// Stop ends the kubelet in order: its socket is removed, every connection closed, its memory lost.
func (k *Kubelet) Stop() {
	k.server.Stop()
	<-k.served
	k.mu.Lock()
	for _, p := range k.plugins {
		p.cancel()
	}
	k.mu.Unlock()
	k.running.Wait()
	k.mu.Lock()
	k.state.Devices = map[string]*api.Device{}
	k.resource = map[string]map[string]bool{}
	k.latest = map[string]*plugin{}
	k.notify()
	k.mu.Unlock()
}

// Kill ends the kubelet as SIGKILL does: its socket stays in the folder and refuses connections.
func (k *Kubelet) Kill() error {
	hidden := k.socket() + ".killed"
	if err := os.Rename(k.socket(), hidden); err != nil { // or the listener would remove it
		return err
	}
	k.Stop()
	return os.Rename(hidden, k.socket())
}

// Register accepts a plugin once it has answered on its own socket.
func (k *Kubelet) Register(ctx context.Context, in *api.RegisterRequest) (*api.Empty, error) {
	p, err := k.connect(ctx, in)
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.notify()
	if err != nil {
		k.state.Refused++
		return nil, err
	}
	k.state.Registrations = append(k.state.Registrations, in.GetEndpoint())
	streamCtx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	k.plugins[p.name] = p
	k.latest[p.resource] = p
	k.running.Go(func() { k.listen(streamCtx, p) })
	return &api.Empty{}, nil
}

func (k *Kubelet) connect(ctx context.Context, in *api.RegisterRequest) (*plugin, error) {
	if in.GetVersion() != api.Version {
		return nil, fmt.Errorf("version %q is not supported", in.GetVersion())
	}
	k.mu.Lock()
	_, connected := k.plugins[in.GetEndpoint()]
	k.mu.Unlock()
	if connected {
		return nil, errors.New("device plugin already connected")
	}
	conn, err := grpc.NewClient("unix:"+filepath.Join(k.dir, in.GetEndpoint()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	p := &plugin{name: in.GetEndpoint(), resource: in.GetResourceName(), conn: conn, client: api.NewDevicePluginClient(conn)}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := p.client.GetDevicePluginOptions(ctx, &api.Empty{}); err != nil {
		return nil, errors.Join(fmt.Errorf("dial back: %w", err), conn.Close())
	}
	return p, nil
}

// ended is what becomes of a resource when one connection of it has ended; called with mu held.
func (k *Kubelet) ended(p *plugin) {
	latest := k.latest[p.resource]
	if latest == p || k.OneEndpoint && latest != nil {
		latest.cancel()
		delete(k.latest, p.resource)
	}
	for _, other := range k.plugins {
		if other.resource == p.resource && !k.OneEndpoint { // an upgrade's overlap: the devices are still served
			k.latest[p.resource] = other
			return
		}
	}
	for id := range k.resource[p.resource] {
		d := k.state.Devices[id]
		k.state.Devices[id] = &api.Device{ID: id, Health: api.Unhealthy, Topology: d.GetTopology()}
	}
	k.state.Gaps++
}

// listen follows the plugin's list until either side ends the stream.
func (k *Kubelet) listen(ctx context.Context, p *plugin) {
	defer func() {
		p.cancel()
		_ = p.conn.Close()
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.plugins, p.name)
		defer k.notify()
		k.ended(p)
	}()
	stream, err := p.client.ListAndWatch(ctx, &api.Empty{})
	if err != nil {
		return
	}
	k.count(+1)
	defer k.count(-1)
	for {
		list, err := stream.Recv()
		if err != nil {
			return
		}
		k.update(p.resource, list.GetDevices())
	}
}

func (k *Kubelet) count(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state.Streams += n
	k.notify()
}

func (k *Kubelet) update(resource string, devices []*api.Device) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id := range k.resource[resource] {
		delete(k.state.Devices, id)
	}
	ids := map[string]bool{}
	for _, d := range devices {
		ids[d.GetID()] = true
		k.state.Devices[d.GetID()] = d
	}
	k.resource[resource] = ids
	k.state.Updates++
	k.notify()
}

// notify wakes the waiters; called with mu held.
func (k *Kubelet) notify() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// State is what the kubelet knows now.
func (k *Kubelet) State() State {
	s, _ := k.watch()
	return s
}

func (k *Kubelet) watch() (State, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.state
	s.Registrations = slices.Clone(s.Registrations)
	s.Devices = maps.Clone(s.Devices)
	return s, k.changed
}

// Wait returns the first state that is as asked for, or an error when ctx is done before.
func (k *Kubelet) Wait(ctx context.Context, ok func(State) bool) (State, error) {
	for {
		s, changed := k.watch()
		if ok(s) {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s, fmt.Errorf("kubelet never came to the state waited for; last: %+v: %w", s, ctx.Err())
		}
	}
}

// DropStreams cancels every stream and closes its connection, and stays up itself.
func (k *Kubelet) DropStreams() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.plugins {
		p.cancel()
	}
}

// Allocate asks the plugin of the resource for one container with the given devices.
func (k *Kubelet) Allocate(ctx context.Context, resource string, ids ...string) (*api.ContainerAllocateResponse, error) {
	client, err := k.client(resource)
	if err != nil {
		return nil, err
	}
	out, err := client.Allocate(ctx, &api.AllocateRequest{ContainerRequests: []*api.ContainerAllocateRequest{{DevicesIds: ids}}})
	if err != nil {
		return nil, err
	}
	if n := len(out.GetContainerResponses()); n != 1 {
		return nil, fmt.Errorf("%d answers for one container", n)
	}
	return out.GetContainerResponses()[0], nil
}

// Prefer asks the plugin of the resource which n devices it would give to one container.
func (k *Kubelet) Prefer(ctx context.Context, resource string, available, required []string, n int) ([]string, error) {
	client, err := k.client(resource)
	if err != nil {
		return nil, err
	}
	out, err := client.GetPreferredAllocation(ctx, &api.PreferredAllocationRequest{
		ContainerRequests: []*api.ContainerPreferredAllocationRequest{{
			AvailableDeviceIDs: available, MustIncludeDeviceIDs: required, AllocationSize: int32(n),
		}},
	})
	if err != nil {
		return nil, err
	}
	if n := len(out.GetContainerResponses()); n != 1 {
		return nil, fmt.Errorf("%d answers for one container", n)
	}
	return out.GetContainerResponses()[0].GetDeviceIDs(), nil
}

// Serving is the socket name of the plugin that is asked for the resource; "" if there is none.
func (k *Kubelet) Serving(resource string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.latest[resource]; p != nil {
		return p.name
	}
	return ""
}

func (k *Kubelet) client(resource string) (api.DevicePluginClient, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.latest[resource]; p != nil {
		return p.client, nil
	}
	return nil, fmt.Errorf("no plugin is registered for %s", resource)
}
