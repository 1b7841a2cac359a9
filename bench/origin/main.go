// Command origin serves a directory over HTTP as slowly and as far away as one likes: what a fetch is
// measured against. It prints its address once it listens.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "origin:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("origin", flag.ContinueOnError)
	dir := flags.String("dir", ".", "directory to serve")
	addr := flags.String("listen", "127.0.0.1:0", "address to listen on")
	rate := flags.Uint64("rate", 0, "bytes per second that each connection may take; 0 for no limit")
	delay := flags.Duration("delay", 0, "wait before the first byte of each answer")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if info, err := os.Stat(*dir); err != nil || !info.IsDir() {
		return fmt.Errorf("-dir %s: want a directory", *dir)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if *rate == 0 {
			return nil
		}
		return pace(c, *rate) // accepted connections inherit it
	}}
	listener, err := config.Listen(ctx, "tcp", *addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: late(*delay, http.FileServer(http.Dir(*dir))), ReadHeaderTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	fmt.Printf("http://%s\n", listener.Addr())
	if err := srv.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// late waits d before each answer, as an origin far away does.
func late(d time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(d):
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})
}
