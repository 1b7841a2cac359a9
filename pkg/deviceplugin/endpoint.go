package deviceplugin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	registerTimeout = 15 * time.Second // the kubelet dials back within 10 s before it answers
	streamTimeout   = 15 * time.Second // from the kubelet's answer to its first ListAndWatch
)

// endpoint is one registration: one server on one socket, from before Register until the kubelet
// lets go of it. It is never registered twice.
type endpoint struct {
	service
	socket  string
	file    os.FileInfo // of our socket
	kubelet os.FileInfo // of the kubelet's socket that we registered at
	since   time.Time
	server  *grpc.Server
	served  chan struct{} // closed when the server has ended
	conns   connections

	mu      sync.Mutex
	streams int  // open; guarded by mu
	used    bool // there was one; guarded by mu
}

// register serves resource on a fresh socket and announces it. The context ends the announcement,
// not the endpoint, which the caller closes.
func (p *Plugin) register(ctx context.Context, name string, kubelet os.FileInfo) (*endpoint, error) {
	e, err := p.serve(name)
	if err != nil {
		return nil, err
	}
	e.kubelet, e.since = kubelet, time.Now()
	if err := p.announce(ctx, e); err != nil {
		e.close()
		return nil, err
	}
	// Other instances read from the socket when it was registered, see instances.
	if now := time.Now(); os.Chtimes(e.socket, now, now) != nil {
		p.cfg.Log.Debug("the time of the registration is not on the socket", "socket", e.socket)
	}
	e.file = fileAt(e.socket)
	p.registrations++
	p.cfg.Log.Info("registered with the kubelet", "resource", name, "socket", e.socket)
	return e, nil
}

func (p *Plugin) serve(name string) (*endpoint, error) {
	socket := filepath.Join(p.cfg.Dir, socketName(name, p.others.born))
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("open own socket: %w", err)
	}
	e := &endpoint{
		service: service{plugin: p, resource: name},
		socket:  socket,
		file:    fileAt(socket),
		served:  make(chan struct{}),
		conns:   connections{ended: p.wake},
	}
	// Without waiting for handlers a stream could still send after Run has returned.
	e.server = grpc.NewServer(grpc.WaitForHandlers(true), grpc.StatsHandler(&e.conns))
	api.RegisterDevicePluginServer(e.server, e)
	go func() {
		defer close(e.served)
		_ = e.server.Serve(listener) // however it ended, fault sees that it did
		p.wake()
	}()
	return e, nil
}

// socketName is new each time, across processes too: in a container every instance has the same pid. It
// says when its instance was born, see instances.
func socketName(name, born string) string {
	slug := strings.NewReplacer("/", "-", ".", "-").Replace(strings.ToLower(name))
	slug = slug[:min(len(slug), 28)] // a socket's path holds 107 bytes
	return fmt.Sprintf("%s%s-%s-%s%s", socketPrefix, slug, born, strings.ToLower(rand.Text()[:12]), socketSuffix)
}

func (p *Plugin) kubeletSocket() string { return filepath.Join(p.cfg.Dir, "kubelet.sock") }

func (p *Plugin) announce(ctx context.Context, e *endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+p.kubeletSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dial %s: %w", p.kubeletSocket(), err)
	}
	defer conn.Close()
	_, err = api.NewRegistrationClient(conn).Register(ctx, &api.RegisterRequest{
		Version:      api.Version,
		Endpoint:     filepath.Base(e.socket),
		ResourceName: e.resource,
		Options:      options(),
	})
	return err
}

var ( // why a registration is over
	errKubeletRestarted = errors.New("the kubelet has restarted")
	errSocketRemoved    = errors.New("own socket was removed")
	errStreamEnded      = errors.New("the kubelet ended the stream")
	errNoStream         = errors.New("the kubelet opened no stream")
	errHungUp           = errors.New("the kubelet closed its connection before it opened a stream")
	errOvertaken        = errors.New("an older instance has registered later")
	errServerEnded      = errors.New("own server ended")
)

// fault says why the registration is of no more use; nil when it is. A missing kubelet socket alone is
// no fault: as long as the stream is open the kubelet is there.
func (e *endpoint) fault(kubelet os.FileInfo, now time.Time) error {
	e.mu.Lock()
	streams, used := e.streams, e.used
	e.mu.Unlock()
	select {
	case <-e.served:
		return errServerEnded
	default:
	}
	switch {
	case kubelet != nil && !same(kubelet, e.kubelet):
		return errKubeletRestarted
	case !same(fileAt(e.socket), e.file):
		return errSocketRemoved
	case used && streams == 0:
		return errStreamEnded
	case !used && e.conns.ever.Load() && e.conns.open.Load() == 0:
		return errHungUp
	case !used && now.Sub(e.since) > streamTimeout:
		return errNoStream
	}
	return nil
}

// close ends all streams without a word, waits for them, and removes the socket.
func (e *endpoint) close() {
	e.server.Stop()
	<-e.served
}

// ListAndWatch counts streams around service's.
func (e *endpoint) ListAndWatch(in *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	e.mu.Lock()
	e.streams++
	e.used = true
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.streams--
		e.mu.Unlock()
		e.plugin.wake()
	}()
	return e.service.ListAndWatch(in, stream)
}

// connections counts the open ones. It is a grpc/stats.Handler.
type connections struct {
	open  atomic.Int32
	ever  atomic.Bool // there was one
	ended func()      // told of each end
}

// HandleConn counts.
func (c *connections) HandleConn(_ context.Context, what stats.ConnStats) {
	switch what.(type) {
	case *stats.ConnBegin:
		c.open.Add(1)
		c.ever.Store(true)
	case *stats.ConnEnd:
		c.open.Add(-1)
		c.ended()
	}
}

// TagConn adds nothing.
func (c *connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// TagRPC adds nothing.
func (c *connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC does not look at calls.
func (c *connections) HandleRPC(context.Context, stats.RPCStats) {}
