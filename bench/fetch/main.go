// Command fetch pulls one model into a cache directory, as the agent does, and ends: what is measured
// beside curl, aria2c and s5cmd.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/file"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hf"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/http"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/oci"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/s3"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fetch:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	root := flag.String("root", "", "cache directory")
	name := flag.String("name", "bench", "the model's name")
	endpoint := flag.String("endpoint", "", "S3 endpoint, path style; credentials from the environment")
	streams := flag.Int("streams", 0, "connections; 0 for the cache's default")
	kill := flag.Float64("kill", 0, "end as by kill -9 once this part of the content is here; 0 for not at all")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this file")
	flag.Parse()
	if *root == "" || flag.NArg() != 1 {
		return fmt.Errorf("want: fetch -root DIR SOURCE")
	}
	ref, err := model.ParseRef(flag.Arg(0))
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(*root)
	if err != nil {
		return err
	}
	sources, err := open(ref, *endpoint)
	if err != nil {
		return err
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	opened := time.Now()
	c, err := cache.Open(cache.Config{Root: dir, Streams: *streams}, sources)
	if err != nil {
		return err
	}
	defer c.Close()
	start, before := time.Now(), peak()
	c.Want(nil)
	asked, err := c.Pull(ctx, model.Spec{Name: *name, Source: ref})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	status, err := wait(ctx, c, *name, asked, *kill)
	took := time.Since(start)
	cancel()
	if runErr := <-ended; err == nil {
		err = runErr
	}
	if err != nil {
		return err
	}
	fmt.Printf("%d files, %d bytes, %d fetched in %.2f s, %.0f MB/s; opened in %.2f s; %.1f MiB of memory more than before\n", status.Files, status.Size,
		c.Get().Fetched, took.Seconds(), float64(status.Size)/1e6/took.Seconds(), start.Sub(opened).Seconds(), float64(peak()-before)/(1<<20))
	return nil
}

// peak is the most memory that this process has had, in bytes (VmHWM of proc(5)); 0 where that cannot be read.
func peak() (n int64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &n); err == nil {
			return n << 10
		}
	}
	return 0
}

// open makes the one source that ref needs.
func open(ref model.Ref, endpoint string) (map[string]cache.Source, error) {
	switch ref.Scheme {
	case "s3":
		s, err := s3.New(s3.Config{Endpoint: endpoint, PathStyle: endpoint != ""})
		return map[string]cache.Source{"s3": s}, err
	case "file":
		s, err := file.New(file.Config{Roots: []string{"/" + strings.Split(strings.Trim(ref.Path, "/"), "/")[0]}})
		return map[string]cache.Source{"file": s}, err
	}
	switch ref.Scheme {
	case "hf":
		s, err := hf.New(hf.Config{Endpoint: endpoint})
		return map[string]cache.Source{"hf": s}, err
	case "oci":
		s, err := oci.New(oci.Config{})
		return map[string]cache.Source{"oci": s}, err
	}
	s, err := http.New(http.Config{})
	return map[string]cache.Source{"http": s, "https": s}, err
}

// wait returns once the pull has an outcome, without patience for a second try.
func wait(ctx context.Context, c *cache.Cache, name string, asked int64, kill float64) (*model.Status, error) {
	for {
		inv, changed := c.Watch()
		if s := inv.Model(name); s != nil {
			if kill > 0 && s.Size > 0 && float64(s.Done) >= kill*float64(s.Size) {
				fmt.Printf("killed with %d of %d bytes\n", s.Done, s.Size)
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
			switch {
			case s.Answered < asked:
			case s.Reason == "":
				return s, nil
			default:
				return nil, fmt.Errorf("%s: %s", s.Reason, s.Message)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
