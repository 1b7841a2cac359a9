package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// origin is a Source in memory. Its hooks, where set, answer in its place if they return true.
type origin struct {
	mu        sync.Mutex
	models    map[string]model.Manifest    // by host
	content   map[string]map[string][]byte // by host and path
	asked     []span                       // every Open
	hub       map[string]model.Hub         // by host
	onOpen    func(n int, ctx context.Context, f model.File, off, length int64, body []byte) (io.ReadCloser, error, bool)
	onResolve func(n int, ref model.Ref) (error, bool)
	resolved  int
	silent    string // the host whose list of files does not come
}

type span struct {
	path        string
	off, length int64
}

func newOrigin() *origin {
	return &origin{hub: map[string]model.Hub{}, models: map[string]model.Manifest{}, content: map[string]map[string][]byte{}}
}

func digest(b []byte) model.Digest {
	sum := sha256.Sum256(b)
	return model.Digest(hex.EncodeToString(sum[:]))
}

func noise(seed uint64, n int) []byte {
	r, b := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}), make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// put sets what a host has, all digests named.
func (o *origin) put(host, revision string, files map[string][]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := model.Manifest{Revision: revision, Hub: o.hub[host]}
	for p, b := range files {
		m.Files = append(m.Files, model.File{Path: p, Size: int64(len(b)), Digest: digest(b), Version: revision})
	}
	o.models[host], o.content[host] = m, files
}

func (o *origin) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.resolved++
	if o.silent == ref.Host {
		o.mu.Unlock()
		<-ctx.Done()
		o.mu.Lock()
		return model.Manifest{}, fmt.Errorf("list: %w", context.Cause(ctx))
	}
	if o.onResolve != nil {
		if err, answered := o.onResolve(o.resolved, ref); answered {
			return model.Manifest{}, err
		}
	}
	m, ok := o.models[ref.Host]
	if !ok {
		return m, &model.Error{Reason: "NotFound", Text: "no such model", Final: true}
	}
	m.Files = slices.Clone(m.Files)
	return m, nil
}

func (o *origin) Open(ctx context.Context, ref model.Ref, f model.File, off, length int64) (io.ReadCloser, error) {
	o.mu.Lock()
	o.asked = append(o.asked, span{f.Path, off, length})
	n, hook, body := len(o.asked), o.onOpen, o.content[ref.Host][f.Path]
	o.mu.Unlock()
	part := body[off : off+length]
	if hook != nil {
		if r, err, answered := hook(n, ctx, f, off, length, part); answered {
			return r, err
		}
	}
	return io.NopCloser(bytes.NewReader(part)), nil
}

func (o *origin) bytesAsked() (n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.asked {
		n += s.length
	}
	return n
}

func (o *origin) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked, o.onOpen, o.onResolve, o.resolved, o.silent = nil, nil, nil, 0, ""
}

// silent is a body that gives what it has and then nothing until its stream is given up.
type silent struct {
	ctx  context.Context
	data io.Reader
}

func (s silent) Read(p []byte) (int, error) {
	if n, _ := s.data.Read(p); n > 0 {
		return n, nil
	}
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}
func (s silent) Close() error { return nil }

func spec(name, host string) model.Spec {
	return model.Spec{Name: name, Source: model.Ref{Scheme: "mem", Host: host}}
}

// dir is a root in memory where that can be had: these tests sync a lot.
func dir(t *testing.T) string {
	t.Helper()
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = ""
	}
	d, err := os.MkdirTemp(parent, "cache-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, durable.Disk{}.RemoveTree(d)) })
	return d
}

const mega = 1 << 20

func config(root string) Config {
	return Config{Root: root, Limit: 64 * mega, Streams: 4, RangeSize: 64 << 10,
		opens: func() (opens, error) { return &said{}, nil }}
}

// said is opens whose answers a test gives.
type said struct {
	mu      sync.Mutex
	names   []string
	watches []string
}

func (s *said) say(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = append(s.names, names...)
}

func (s *said) opened() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := s.names
	s.names = nil
	return names, nil
}

func (s *said) watch(name string, _ ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches = append(s.watches, name)
	return nil
}

func (s *said) watched() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.watches)
}

func (s *said) close() error { return nil }

func open(t *testing.T, cfg Config, o *origin) *Cache {
	t.Helper()
	c, err := Open(cfg, map[string]Source{"mem": o})
	require.NoError(t, err)
	return c
}

// run runs c until the returned function is called, which also closes it.
func run(t *testing.T, c *Cache) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			require.NoError(t, <-ended)
			require.NoError(t, c.Close())
		})
	}
	t.Cleanup(stop)
	return stop
}

// wait returns the status of a model once ok says so. Every inventory on the way keeps the limit.
func wait(t *testing.T, c *Cache, name string, ok func(*model.Status) bool) *model.Status {
	t.Helper()
	deadline := time.NewTimer(time.Hour)
	defer deadline.Stop()
	for {
		inv, changed := c.Watch()
		require.LessOrEqual(t, inv.Used+inv.Reserved, inv.Limit)
		if s := inv.Model(name); ok(s) {
			return s
		}
		select {
		case <-changed:
		case <-deadline.C:
			require.Fail(t, "waited in vain", "%s: %+v", name, c.Get().Model(name))
		}
	}
}

// ask is Pull for those who do not follow it.
func ask(t *testing.T, c *Cache, s model.Spec) error {
	t.Helper()
	_, err := c.Pull(t.Context(), s)
	return err
}

func ready(t *testing.T, c *Cache, name string) *model.Status {
	t.Helper()
	return wait(t, c, name, func(s *model.Status) bool { return s != nil && s.State == model.Ready })
}

func failed(t *testing.T, c *Cache, name, reason string) *model.Status {
	t.Helper()
	return wait(t, c, name, func(s *model.Status) bool { return s != nil && s.Reason == reason && !s.RetryAt.IsZero() })
}

func gone(t *testing.T, c *Cache, name string) {
	t.Helper()
	wait(t, c, name, func(s *model.Status) bool { return s == nil })
}

// tree is what a directory holds, by path; nil if it is not there.
func tree(t *testing.T, root string) map[string][]byte {
	t.Helper()
	var files map[string][]byte
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if files == nil {
			files = map[string][]byte{}
		}
		files[rel] = b
		return err
	})
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return files
}

// holds fails unless the visible model, or model@revision, is exactly these files.
func holds(t *testing.T, root, name string, want map[string][]byte) {
	t.Helper()
	got := tree(t, layout(root).visible(name))
	require.Len(t, got, len(want))
	for p, b := range want {
		require.True(t, bytes.Equal(b, got[p]), "%s of %s differs", p, name)
	}
}

// tidy fails if the root holds anything but these models: leftovers, partial downloads, orphans.
func tidy(t *testing.T, root string, models ...map[string][]byte) {
	t.Helper()
	l, want := layout(root), map[string]bool{}
	for _, m := range models {
		for _, b := range m {
			want[string(digest(b))] = true
		}
	}
	got := map[string]bool{}
	for p := range tree(t, l.blobs()) {
		got[filepath.Base(p)] = true
	}
	require.Equal(t, want, got, "blobs")
	require.Empty(t, tree(t, l.partials()), "partial downloads")
	for d, n := range map[string]int{l.byName(): 2 * len(models), l.manifests(): len(models)} {
		entries, err := os.ReadDir(d)
		require.NoError(t, err)
		require.Len(t, entries, n, fmt.Sprint(d, entries))
	}
}
