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
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/http"
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
	endpoint := flag.String("endpoint", "", "S3 endpoint, path style; credentials from the environment")
	streams := flag.Int("streams", 0, "connections; 0 for the cache's default")
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
	c, err := cache.Open(cache.Config{Root: dir, Streams: *streams}, sources)
	if err != nil {
		return err
	}
	defer c.Close()
	start := time.Now()
	c.Want([]model.Spec{{Name: "bench", Source: ref}})

	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	status, err := wait(ctx, c)
	cancel()
	if runErr := <-ended; err == nil {
		err = runErr
	}
	if err != nil {
		return err
	}
	took := time.Since(start)
	fmt.Printf("%d bytes in %.2f s, %.0f MB/s\n", status.Size, took.Seconds(), float64(status.Size)/1e6/took.Seconds())
	return nil
}

// open makes the one source that ref needs.
func open(ref model.Ref, endpoint string) (map[string]cache.Source, error) {
	if ref.Scheme == "s3" {
		s, err := s3.New(s3.Config{Endpoint: endpoint, PathStyle: endpoint != ""})
		return map[string]cache.Source{"s3": s}, err
	}
	s, err := http.New(http.Config{})
	return map[string]cache.Source{"http": s, "https": s}, err
}

// wait returns once the model is visible, or has failed: a benchmark does not wait for a second try.
func wait(ctx context.Context, c *cache.Cache) (*model.Status, error) {
	for {
		inv, changed := c.Watch()
		if s := inv.Model("bench"); s != nil {
			switch s.State {
			case model.Ready:
				return s, nil
			case model.Failed:
				return nil, fmt.Errorf("%s: %s", s.Reason, s.Message)
			case model.Pending, model.Pulling, model.Removing:
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
