package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/exporter-toolkit/web"

	"github.com/gpu-agent/gpu-agent/pkg/config"
)

// web is what anybody may see over TCP. Nothing here changes state.
func (a *agent) web() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) { a.now().metrics.ServeHTTP(w, r) })
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { writeReady(w, a.state(), r.URL.Query()["exclude"]) })
	mux.HandleFunc("GET /debug/snapshot", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, a.state()) })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		if err := writePage(w, a.state()); err != nil {
			a.log.Debug("status page", "error", err)
		}
	})
	return mux
}

func (a *agent) runHTTP(ctx context.Context, c config.HTTP) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("http.listen: %w", err)
	}
	a.log.Info("listening", "address", l.Addr().String())
	return serve(ctx, l, a.web(), c.WebConfigFile, a.log)
}

// writeReady says of each part whether it is ready, and why not. Excluded parts do not count, as with
// kube-apiserver's /readyz?exclude=NAME.
func writeReady(w http.ResponseWriter, s *state, exclude []string) {
	ready := s.ready()
	status := http.StatusOK
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(ready)) {
		why := ready[name]
		if slices.Contains(exclude, name) {
			fmt.Fprintf(&text, "[+] %s excluded: %s\n", name, cmp.Or(why, "ok"))
			continue
		}
		if why != "" {
			status = http.StatusServiceUnavailable
			fmt.Fprintf(&text, "[-] %s: %s\n", name, why)
			continue
		}
		fmt.Fprintf(&text, "[+] %s\n", name)
	}
	for _, u := range s.Snapshot.Unidentified { // one GPU makes no agent unready
		fmt.Fprintf(&text, "[i] GPU %d does not say who it is, and is in no list: %s\n", u.Index, u.Why)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprint(w, text.String())
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the reader went away
}

// serve answers on l until ctx is done. webConfig is exporter-toolkit's file for TLS and basic auth.
func serve(ctx context.Context, l net.Listener, h http.Handler, webConfig string, log *slog.Logger) error {
	systemd := false
	flags := &web.FlagConfig{WebConfigFile: &webConfig, WebSystemdSocket: &systemd}
	return until(ctx, h, log, func(srv *http.Server) error {
		return web.ServeMultiple([]net.Listener{l}, srv, flags, log)
	})
}

// until runs a server until ctx is done, and lets its last answers go out.
func until(ctx context.Context, h http.Handler, log *slog.Logger, run func(*http.Server) error) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		_ = srv.Shutdown(grace)
		_ = srv.Close()
	})
	err := run(srv)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
