// Command plugin measures a device plugin as the kubelet sees it: a stand-in kubelet on a real socket starts
// it, asks it, and looks at what it costs. bench/plugin.sh runs it for the agent, and for NVIDIA's plugin
// where that is at hand.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin/kubelettest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "plugin:", err)
		os.Exit(1)
	}
}

// bench is one plugin under measurement.
type bench struct {
	kubelet  *kubelettest.Kubelet
	resource string
	gpus     int
	state    string // fakenvml's file; "" measures no faults
	rounds   int
	calls    int
	idle     time.Duration
	settle   time.Duration // from a hang in the driver to the sample that meets it
	command  []string
	log      string
	out      *tabwriter.Writer
	seq      int // of the last XID
}

func run(ctx context.Context) error {
	dir := flag.String("dir", "/var/lib/kubelet/device-plugins", "the kubelet's plugin `folder`, which is emptied of sockets")
	b := &bench{}
	flag.StringVar(&b.resource, "resource", "nvidia.com/gpu", "`name` that the plugin registers")
	flag.StringVar(&b.state, "state", "", "`file` that test/fakenvml reads; without it no fault is measured")
	flag.StringVar(&b.log, "log", os.DevNull, "`file` for what the plugin prints")
	flag.IntVar(&b.gpus, "gpus", 8, "`number` of GPUs that the driver has")
	flag.IntVar(&b.rounds, "rounds", 5, "`number` of starts")
	flag.IntVar(&b.calls, "calls", 1000, "`number` of calls of each kind")
	flag.DurationVar(&b.idle, "idle", 30*time.Second, "`time` over which the idle plugin is watched")
	flag.DurationVar(&b.settle, "settle", 15*time.Second, "`time` from a hang in the driver until the plugin has met it")
	flag.Parse()
	b.command = flag.Args()
	if len(b.command) == 0 {
		return errors.New("want: plugin [FLAGS] COMMAND [ARG...]")
	}
	b.kubelet = kubelettest.New(*dir)
	if err := b.kubelet.Start(); err != nil {
		return err
	}
	defer b.kubelet.Stop()
	b.out = tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	return errors.Join(b.all(ctx), b.out.Flush())
}

// all starts the plugin some times, and asks the last one everything.
func (b *bench) all(ctx context.Context) error {
	var registered, listed []time.Duration
	for i := range b.rounds {
		if err := b.write(""); err != nil {
			return err
		}
		p, err := b.start(ctx)
		if err != nil {
			return err
		}
		registered, listed = append(registered, p.registered), append(listed, p.listed)
		if i == b.rounds-1 {
			err = b.ask(ctx, p)
		}
		if err = errors.Join(err, p.stop()); err != nil {
			return err
		}
	}
	b.print("exec to registered", registered)
	b.print("exec to first list", listed)
	return nil
}

func (b *bench) ask(ctx context.Context, p *process) error {
	var ids []string
	for id := range b.kubelet.State().Devices {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if err := b.repeat("Allocate of 1", func() error {
		_, err := b.kubelet.Allocate(ctx, b.resource, ids[0])
		return err
	}); err != nil {
		return err
	}
	if err := b.repeat(fmt.Sprintf("GetPreferredAllocation 4 of %d", len(ids)), func() error {
		_, err := b.kubelet.Prefer(ctx, b.resource, ids, nil, 4)
		return err
	}); err != nil {
		return err
	}
	if err := b.watchIdle(ctx, p); err != nil {
		return err
	}
	if b.state == "" {
		return nil
	}
	half, last := b.gpus/2, b.gpus-1 // fakenvml's identities sort by index
	if err := b.faults(ctx, "XID to unhealthy", 0, ids[:half], ""); err != nil {
		return err
	}
	return b.faults(ctx, "the same while another GPU hangs", half, ids[half:last], fmt.Sprintf("gpu %d hang=1\n", last))
}

func (b *bench) repeat(what string, call func() error) error {
	var took []time.Duration
	for range b.calls {
		start := time.Now()
		if err := call(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		took = append(took, time.Since(start))
	}
	b.print(what, took)
	return nil
}

// print is a row of the table: median, 99th percentile and the worst.
func (b *bench) print(what string, took []time.Duration) {
	sorted := slices.Sorted(slices.Values(took))
	at := func(share float64) time.Duration {
		return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)].Round(time.Microsecond)
	}
	fmt.Fprintf(b.out, "%s\tp50 %s\tp99 %s\tmax %s\tn %d\n", what, at(0.5), at(0.99), at(1), len(sorted))
}

// write replaces fakenvml's file.
func (b *bench) write(text string) error {
	if b.state == "" {
		return nil
	}
	fresh := filepath.Join(filepath.Dir(b.state), ".state.new")
	if err := os.WriteFile(fresh, fmt.Appendf(nil, "gpus %d\n%s", b.gpus, text), 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, b.state)
}

// process is a plugin that runs.
type process struct {
	cmd                *exec.Cmd
	registered, listed time.Duration
}

func (b *bench) start(ctx context.Context) (*process, error) {
	log, err := os.OpenFile(b.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	before := len(b.kubelet.State().Registrations)
	cmd := exec.Command(b.command[0], b.command[1:]...) //nolint:gosec // what is to be measured
	cmd.Stdout, cmd.Stderr = log, log
	if b.state != "" {
		cmd.Env = append(os.Environ(), "FAKENVML_STATE="+b.state)
	}
	p := &process{cmd: cmd}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err = b.kubelet.Wait(ctx, func(s kubelettest.State) bool { return len(s.Registrations) > before })
	p.registered = time.Since(began)
	if err == nil {
		_, err = b.kubelet.Wait(ctx, func(s kubelettest.State) bool { return s.Healthy() >= b.gpus })
		p.listed = time.Since(began)
	}
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(10*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		return nil
	}
	return err
}

// faults lets one GPU after the other report XID 79, and waits until the kubelet knows.
func (b *bench) faults(ctx context.Context, what string, first int, ids []string, also string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var took []time.Duration
	if also != "" {
		if err := b.write(also); err != nil {
			return err
		}
		<-time.After(b.settle) // the call that hangs is the next sample's
	}
	for i, id := range ids {
		b.seq++
		start := time.Now()
		if err := b.write(fmt.Sprintf("%sxid %d 79 seq=%d\n", also, first+i, b.seq)); err != nil {
			return err
		}
		_, err := b.kubelet.Wait(ctx, func(s kubelettest.State) bool { return s.Devices[id].GetHealth() == "Unhealthy" })
		if err != nil {
			fmt.Fprintf(b.out, "%s\tnever seen\n", what)
			return nil //nolint:nilerr // a plugin that does not see it is a result
		}
		took = append(took, time.Since(start))
	}
	b.print(what, took)
	return nil
}
