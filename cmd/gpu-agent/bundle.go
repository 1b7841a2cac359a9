package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Bundles pass through the private socket, so that they come and go where the command runs, be that on the node or
// through kubectl exec. The agent reads and writes the files.

// importLine is a line of the answer to an import. The last has End.
type importLine struct {
	Status *model.Status `json:"status,omitempty"` // of the model that is coming in
	Ready  *model.Status `json:"ready,omitempty"`
	End    bool          `json:"end,omitempty"`
	Error  string        `json:"error,omitempty"`
}

const (
	bundleEnd      = "Bundle-End" // trailer of an export: "whole", or why it is not
	bundleWhole    = "whole"
	importProgress = 200 * time.Millisecond
)

func (a *agent) bundleAPI(mux *http.ServeMux) {
	mux.HandleFunc("GET /bundle", a.export)
	mux.HandleFunc("POST /bundle", a.bringIn)
}

// begun says whether anything was written.
type begun struct {
	http.ResponseWriter
	yes bool
}

func (w *begun) Write(p []byte) (int, error) {
	w.yes = true
	return w.ResponseWriter.Write(p)
}

func (a *agent) export(w http.ResponseWriter, r *http.Request) {
	c := a.caches
	if !c.Open() {
		http.Error(w, a.noCache(), http.StatusServiceUnavailable)
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // or the request's context ends with it
	w.Header().Set("Trailer", bundleEnd)
	w.Header().Set("Content-Type", "application/x-tar")
	out := &begun{ResponseWriter: w}
	err := c.Export(r.Context(), r.URL.Query()["model"], out)
	switch {
	case err == nil:
		w.Header().Set(bundleEnd, bundleWhole)
	case out.yes:
		w.Header().Set(bundleEnd, model.Printable(err.Error()))
	default:
		w.Header().Del("Trailer")
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
	}
}

func (a *agent) bringIn(w http.ResponseWriter, r *http.Request) {
	c := a.caches
	if !c.Open() {
		http.Error(w, a.noCache(), http.StatusServiceUnavailable)
		return
	}
	rc := http.NewResponseController(w)
	if err := errors.Join(rc.EnableFullDuplex(), rc.SetReadDeadline(time.Time{})); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Connection", "close") // what is not read of the bundle is not waited for
	out := json.NewEncoder(w)
	var mu sync.Mutex // guards out
	say := func(l importLine) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(l) // the reader went away
		_ = rc.Flush()
	}
	say(importLine{})
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(importProgress)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if s := c.Importing(); s != nil {
				say(importLine{Status: s})
			}
		}
	})
	err := c.Import(ctx, r.Body, func() { _ = rc.SetReadDeadline(time.Now()) }, func(s model.Status) { say(importLine{Ready: &s}) })
	cancel()
	watching.Wait()
	last := importLine{End: true}
	if err != nil {
		last.Error = model.Printable(err.Error())
	}
	say(last)
}

func modelsExport() *cobra.Command {
	var socket socketFlag
	var to string
	cmd := &cobra.Command{
		Use:   "export NAME[@REVISION]... -o FILE",
		Short: "Write models into a bundle, for nodes that cannot reach their sources",
		Long: "Writes models, or revisions of them, into a bundle: a tar of an OCI image layout, which models import reads\n" +
			"and skopeo can copy. Every byte is verified on its way. FILE appears when it is whole; - is the\n" +
			"standard output.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if _, err := revisionPath(name); err != nil {
					return err
				}
			}
			if to == "" {
				return usageError{errors.New("gpu-agent models export: want -o FILE, or -o - for the standard output")}
			}
			if to != "-" {
				n, err := intoFile(to, cmd.ErrOrStderr(), func(w io.Writer) error { return socket.client().export(cmd.Context(), args, w) })
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", to, model.FormatBytes(n))
				return nil
			}
			if terminal(cmd.OutOrStdout()) != nil {
				return usageError{errors.New("gpu-agent models export: a bundle is no text for a terminal: redirect it, or name a FILE")}
			}
			return socket.client().export(cmd.Context(), args, cmd.OutOrStdout())
		},
	}
	socket.add(cmd)
	cmd.Flags().StringVarP(&to, "output", "o", "", "`FILE` to write, or -")
	return cmd
}

// exportPrefix begins the name of a bundle that is not whole yet.
const exportPrefix = ".gpu-agent-export-"

// intoFile writes path as a whole: it is there, durably, once all is written, and otherwise as it was. First it removes
// what others that were killed left beside it.
func intoFile(path string, log io.Writer, write func(io.Writer) error) (n int64, err error) {
	dir := filepath.Dir(path)
	left, err := durable.SweepUnheld(dir, exportPrefix)
	for _, f := range left {
		fmt.Fprintf(log, "removed %s, %s that an export left when it was killed\n", filepath.Join(dir, f.Name()), model.FormatBytes(f.Size()))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) { // of the directory: that is said below
		fmt.Fprintf(log, "what a killed export may have left in %s stays: %v\n", dir, err)
	}
	f, err := durable.CreateHeld(dir, exportPrefix)
	if err != nil {
		return 0, ofFile(path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(ofFile(path, err), os.Remove(f.Name()), f.Close()) // while it is held
		}
	}()
	if err := write(f); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync()); err != nil {
		return 0, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return 0, err
	}
	return info.Size(), errors.Join(f.Close(), durable.Disk{}.SyncDir(dir))
}

// ofFile names the file that was asked for, where err names the one that was to become it.
func ofFile(path string, err error) error {
	cause := error(nil)
	if e, ok := errors.AsType[*os.PathError](err); ok {
		cause = e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		cause = e.Err
	}
	if cause == nil {
		return err
	}
	return fmt.Errorf("write %s: %w", path, cause)
}

func (c *client) export(ctx context.Context, models []string, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, "/bundle?"+url.Values{"model": models}.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("the bundle was cut off: %w", err)
	}
	switch end := resp.Trailer.Get(bundleEnd); end {
	case bundleWhole:
		return nil
	case "":
		return errors.New("the bundle was cut off: the agent went away")
	default:
		return fmt.Errorf("the bundle was cut off: %s", end)
	}
}

func modelsImport() *cobra.Command {
	var socket socketFlag
	var root, limit string
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Publish the models of a bundle as if they had been pulled, without their sources",
		Long: "Reads a bundle of models export and publishes what is in it as if it had been pulled: room is reserved first,\n" +
			"every byte is verified, and each model appears whole. What is here already is passed over. - is the standard\n" +
			"input. With --root it works without an agent, to seed a disk or an image.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit != "" && root == "" {
				return usageError{errors.New("--limit goes with --root: a running agent has cache.limit")}
			}
			in, err := openBundle(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer in.Close()
			if root != "" {
				return seed(cmd.Context(), root, limit, in, cmd.OutOrStdout())
			}
			return socket.client().bringIn(cmd.Context(), in, cmd.OutOrStdout())
		},
	}
	socket.add(cmd)
	cmd.Flags().StringVar(&root, "root", "", "`DIR` of a cache that no agent has open, made where missing")
	cmd.Flags().StringVar(&limit, "limit", "", "with --root: how much that cache may take, such as 500Gi; default 80 % of its filesystem")
	return cmd
}

// openBundle opens a bundle in the order that an import wants. Only a file can be put into it.
func openBundle(name string, stdin io.Reader) (io.ReadCloser, error) {
	file, ok := stdin.(*os.File)
	if name != "-" {
		var err error
		if file, err = os.Open(name); err != nil {
			return nil, err
		}
		ok = true
	}
	if !ok {
		return io.NopCloser(stdin), nil
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return file, err
	}
	out, in := io.Pipe()
	go func() {
		defer file.Close()
		in.CloseWithError(cache.Reorder(file, in))
	}()
	return out, nil
}

// seed imports into a cache that no agent has.
func seed(ctx context.Context, root, limit string, in io.ReadCloser, out io.Writer) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	// Which old revisions may go is for the agent to say.
	cfg := cache.Config{Root: root, Keep: 1 << 20}
	if limit != "" {
		q, err := resource.ParseQuantity(limit)
		if err != nil || q.Value() <= 0 {
			return usageError{fmt.Errorf("--limit %s: want a size such as 500Gi", limit)}
		}
		cfg.Limit = q.Value()
	}
	c, err := cache.Open(cfg, nil)
	if err != nil {
		return err
	}
	err = c.Import(ctx, in, func() { _ = in.Close() }, func(s model.Status) { printReady(out, s) })
	return errors.Join(err, c.Close())
}

func printReady(out io.Writer, m model.Status) {
	fmt.Fprintf(out, "%s is ready: %s, %s\n", m.Name, model.FormatBytes(m.Size), m.Path)
}

// bringIn sends a bundle and shows how it is taken in.
func (c *client) bringIn(ctx context.Context, in io.ReadCloser, out io.Writer) error {
	broken := &remembering{ReadCloser: in}
	resp, err := c.do(ctx, http.MethodPost, "/bundle", broken)
	if local := broken.error(); err != nil && local != nil {
		return local // the other only says that the request ended with it
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(resp.Body)
	var show display
	shown := ""
	end := func() {
		if shown != "" {
			show.end()
		}
		shown = ""
	}
	defer end()
	for {
		var l importLine
		if err := lines.Decode(&l); err != nil {
			if local := broken.error(); local != nil {
				return local
			}
			return fmt.Errorf("the agent went away: %w", err)
		}
		switch {
		case l.End:
			if local := broken.error(); local != nil {
				return local // the agent knows only that the bundle ended
			}
			if l.Error != "" {
				return errors.New(l.Error)
			}
			return nil
		case l.Ready != nil:
			end()
			printReady(out, *l.Ready)
		case l.Status != nil:
			if shown != l.Status.Name {
				end()
				shown, show = l.Status.Name, newDisplay(ctx, out, l.Status.Name)
			}
			show.status(*l.Status)
		}
	}
}

// remembering keeps the error of what it reads.
type remembering struct {
	io.ReadCloser
	mu  sync.Mutex
	err error
}

func (r *remembering) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, os.ErrClosed) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.err = err
	}
	return n, err
}

func (r *remembering) error() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
