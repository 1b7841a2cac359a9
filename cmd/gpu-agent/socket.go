package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
)

// runSocket answers the command line on a unix socket that only root may open.
func (a *agent) runSocket(ctx context.Context, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("http.socket: %w", err)
	}
	if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close()
		return fmt.Errorf("http.socket: another agent answers on %s: stop it, or give this one another path", path)
	}
	l, err := listenPrivate(ctx, path)
	if err != nil {
		return fmt.Errorf("http.socket: %w", err)
	}
	return until(ctx, a.api(), a.log, func(srv *http.Server) error { return srv.Serve(l) })
}

// listenPrivate listens under another name until the mode is set: there is no moment at which
// somebody else could connect.
func listenPrivate(ctx context.Context, path string) (net.Listener, error) {
	fresh := path + ".new"
	for _, old := range []string{path, fresh} {
		if err := removeSocket(old); err != nil {
			return nil, err
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socket{Listener: l, path: path}, nil
}

// removeSocket removes what a killed agent left, and nothing that is not a socket.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is there and is no socket: remove it, or name another path", path)
	}
	return os.Remove(path)
}

// socket removes its file when it is closed.
type socket struct {
	net.Listener
	path string
	once sync.Once
}

func (s *socket) Close() error {
	err := s.Listener.Close()
	s.once.Do(func() { err = errors.Join(err, os.Remove(s.path)) })
	return err
}
