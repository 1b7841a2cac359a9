// Demo runs the agent on this machine: simulated GPUs, and a small model from an origin that it
// starts itself. It needs Go alone, changes nothing outside .run/, and ends on Ctrl-C.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

const (
	modelName = "demo-model"
	modelSize = 256 << 20
	// The origin sends this much a second on each connection, so that the pull can be watched.
	originRate = 4 << 20
)

func main() {
	// What we start is told when the thread that started it ends, see dieWithUs: this one lasts.
	runtime.LockOSThread()
	// A terminal that closes sends SIGHUP.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx)
	asked := ctx.Err() != nil // to stop: then nothing that was cut short is a failure
	stop()
	if err != nil && !asked {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir, err := filepath.Abs(".run")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	agent := filepath.Join(dir, "gpu-agent")
	fmt.Println("building the agent without cgo: it cannot read a driver and simulates eight H100s")
	build := exec.CommandContext(ctx, "go", "build", "-o", agent, "./cmd/gpu-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the agent: %w", err)
	}

	origin, source, err := startOrigin(ctx)
	if err != nil {
		return err
	}
	defer origin.Close()
	listen, err := freePort(ctx)
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "config.yaml")
	socket := filepath.Join(dir, "agent.sock")
	if err := os.WriteFile(config, configFor(dir, listen, source, socket), 0o644); err != nil {
		return err
	}
	return runAgent(ctx, agent, config, socket, listen, dir)
}

// runAgent starts the agent, shows the pull, says where everything is, and waits.
func runAgent(ctx context.Context, agent, config, socket, listen, dir string) error {
	log, err := os.Create(filepath.Join(dir, "agent.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, agent, "run", "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = dieWithUs()
	cmd.SysProcAttr.Setpgid = true // Ctrl-C reaches it through us, once
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	if err := show(ctx, agent, socket, listen, dir, ended); err != nil && ctx.Err() == nil {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		return fmt.Errorf("%w; its log is %s", err, log.Name())
	}
	select {
	case <-ctx.Done():
		fmt.Println("\nstopping")
		<-ended
		return nil
	case err := <-ended:
		return errors.Join(fmt.Errorf("the agent ended by itself; its log is %s", log.Name()), err)
	}
}

func show(ctx context.Context, agent, socket, listen, dir string, ended chan error) error {
	if err := awaitSocket(ctx, socket, ended); err != nil {
		return err
	}
	pull := exec.CommandContext(ctx, agent, "models", "pull", modelName, "--socket", socket)
	pull.Stdout, pull.Stderr = os.Stdout, os.Stderr
	if err := pull.Run(); err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	fmt.Printf(`
page      http://%s/
metrics   http://%s/metrics
labels    %s
model     %s
status    %s status --socket %s

Ctrl-C stops it; everything it wrote is in %s
`, listen, listen, filepath.Join(dir, "labels"), filepath.Join(dir, "cache", "models", "by-name", modelName), agent, socket, dir)
	return nil
}

func awaitSocket(ctx context.Context, socket string, ended chan error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	patience := time.After(30 * time.Second)
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			ended <- err
			return errors.New("the agent did not start")
		case <-patience:
			return errors.New("the agent did not answer within 30 s")
		case <-tick.C:
		}
	}
}

func configFor(dir, listen, source, socket string) []byte {
	return fmt.Appendf(nil, `apiVersion: gpu-agent.dev/v1alpha1
kind: Config
nvml:
  interval: 1s
  simulate: {gpu: H100, count: 8}
allocation: none # there is no kubelet here
podResources: {enabled: false}
http: {listen: %q, socket: %q}
labels: {sink: file, file: %q}
cache:
  root: %q
  limit: 1Gi
  keepFree: 0%%
  kubeletConfig: ""
  demand: {source: none}
  models:
  - {name: %s, source: %q}
`, listen, socket, filepath.Join(dir, "labels"), filepath.Join(dir, "cache"), modelName, source)
}

// startOrigin serves one made-up model on loopback and returns its source, digest included.
func startOrigin(ctx context.Context) (*http.Server, string, error) {
	content := make([]byte, modelSize)
	// The same bytes every time: a second run finds its model in the cache.
	r := rand.NewChaCha8([32]byte{'d', 'e', 'm', 'o'})
	_, _ = r.Read(content) // never fails
	sum := sha256.Sum256(content)
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	etag := `"` + hex.EncodeToString(sum[:8]) + `"`
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("ETag", etag)
		http.ServeContent(&slowly{ResponseWriter: w, ctx: req.Context()}, req, "model.safetensors", time.Time{}, bytes.NewReader(content))
	})}
	go func() { _ = srv.Serve(l) }() // ends with Close
	return srv, fmt.Sprintf("http://%s/model.safetensors#sha256=%x", l.Addr(), sum), nil
}

// slowly writes at originRate.
type slowly struct {
	http.ResponseWriter
	ctx context.Context
}

func (s *slowly) Write(p []byte) (int, error) {
	n, err := s.ResponseWriter.Write(p)
	select {
	case <-s.ctx.Done():
	case <-time.After(time.Duration(n) * time.Second / originRate):
	}
	return n, err
}

func freePort(ctx context.Context) (string, error) {
	for _, address := range []string{"127.0.0.1:9400", "127.0.0.1:0"} {
		if l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address); err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", errors.New("no free port on loopback")
}
