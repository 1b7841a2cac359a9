package labels

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Sink is where labels go. Apply makes labels the whole set that this agent answers for: a key that
// it applied before, also in an earlier run, and that is missing now is gone when Apply returns nil,
// unless it starts with keep: such keys stay as they are, for their truth is not known yet. keep "" is
// none. Keys of others are left alone. Run calls it from one goroutine and retries after an error.
type Sink interface {
	Apply(ctx context.Context, labels map[string]string, keep string) error
}

// FileSink writes the labels to a file, one key=value a line, for runs without a cluster and for node
// feature discovery's features.d. NFD publishes only namespaces that it was told to allow.
type FileSink struct {
	Path string // its directory must exist
}

// Apply replaces the file whole and durably: a reader sees the old labels or the new, never half.
func (f FileSink) Apply(_ context.Context, labels map[string]string, keep string) (err error) {
	if labels, err = f.kept(labels, keep); err != nil {
		return fmt.Errorf("write labels to %s: %w", f.Path, err)
	}
	// Same directory, so that the rename is atomic; a leading dot, which NFD skips.
	tmp, err := os.CreateTemp(filepath.Dir(f.Path), ".labels-*")
	if err != nil {
		return fmt.Errorf("write labels to %s: %w", f.Path, err)
	}
	defer func() {
		if err != nil {
			_ = tmp.Close() // closed twice at worst
			_ = os.Remove(tmp.Name())
			err = fmt.Errorf("write labels to %s: %w", f.Path, err)
		}
	}()
	if err := Write(tmp, labels); err != nil {
		return err
	}
	if err := tmp.Chmod(0o644); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), f.Path)
}

// kept is labels and those of the file that start with keep.
func (f FileSink) kept(labels map[string]string, keep string) (map[string]string, error) {
	if keep == "" {
		return labels, nil
	}
	content, err := os.ReadFile(f.Path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	all := map[string]string{}
	for line := range strings.Lines(string(content)) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok && strings.HasPrefix(key, keep) {
			all[key] = value
		}
	}
	maps.Copy(all, labels)
	return all, nil
}

// Write writes labels as key=value lines, sorted by key.
func Write(w io.Writer, labels map[string]string) error {
	b := bufio.NewWriter(w)
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprintf(b, "%s=%s\n", key, labels[key])
	}
	return b.Flush()
}

// Machine reads the machine's product name from path, by default DMI's
// /sys/class/dmi/id/product_name; "unknown" where that cannot be read or is empty.
func Machine(path string) string {
	if path == "" {
		path = "/sys/class/dmi/id/product_name"
	}
	content, err := os.ReadFile(path)
	if name := strings.TrimSpace(string(content)); err == nil && name != "" {
		return name
	}
	return unknown
}
