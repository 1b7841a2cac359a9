package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Config is how the cache is set up. Only Root must be given.
type Config struct {
	Root string // absolute; created where missing
	// Limit is how many bytes the cache may take. 0 means 80 % of the filesystem.
	Limit     int64
	Streams   int // concurrent reads from origins at most, all models together; 0 means 64
	Bandwidth Bandwidth
	Line      *Line // shared with other caches, in the place of Streams and Bandwidth; nil: one of its own
	RangeSize int64 // bytes per read of a large file; 0 means 16 MiB
	// Unlabelled, if set, returns once nothing sends pods to this node for the named model any more. It
	// is called before a visible model goes away, when the inventory says Removing.
	Unlabelled func(ctx context.Context, name string) error
	Log        *slog.Logger // nil discards
	// Keep is how many old revisions of a model stay although nobody uses them, until room is needed.
	Keep int
	// Refresh is how often the origin of a model that Pull asked for is looked at again, if what it names
	// can move; 0 is never. Models of the config have it in their Spec.
	Refresh time.Duration
	Scrub   Scrub
	Warm    Warm
	// Memory is shared with other caches, so that Warm's limits hold for all of them together; nil: one of its own.
	Memory *Memory
	// KeepFree is how many bytes of the filesystem stay free, and KeepFreePercent how much of it; the larger counts.
	KeepFree        int64
	KeepFreePercent int
	// Thresholds, if set, says what others want to be free of the filesystem: it is asked each time that room is
	// sought, and must not block.
	Thresholds func() []Threshold
	// Apart are roots of other caches: Open refuses a root on the filesystem of one of them, which is what there is where
	// a disk is not mounted.
	Apart []string
	// Existing has Open refuse a root in which there is no cache, as the folder is below which one was mounted.
	Existing bool

	disk  durable.Disk          // tests inject faults
	opens func() (opens, error) // tests say what was opened; nil for the real one
	// system is where /proc and /sys are; "" is where they are.
	system string
}

const (
	defaultStreams   = 64
	defaultRangeSize = 16 << 20
	minRangeSize     = 64 << 10
)

func (cfg *Config) check() error {
	if !filepath.IsAbs(cfg.Root) || filepath.Clean(cfg.Root) == "/" {
		return fmt.Errorf("cache root %q: want an absolute directory of its own, such as /var/lib/gpu-agent", cfg.Root)
	}
	if cfg.Limit < 0 {
		return fmt.Errorf("cache limit %d bytes: want more than 0, or 0 for 80 %% of the filesystem", cfg.Limit)
	}
	if cfg.Streams < 0 || cfg.RangeSize < 0 {
		return fmt.Errorf("cache streams %d, range size %d: want 0 (default) or more", cfg.Streams, cfg.RangeSize)
	}
	if cfg.KeepFree < 0 || cfg.KeepFreePercent < 0 || cfg.KeepFreePercent > 99 {
		return fmt.Errorf("cache keeps free %d bytes, %d %%: want 0 or more bytes, and 0 to 99 %%", cfg.KeepFree, cfg.KeepFreePercent)
	}
	if cfg.Keep < 0 || cfg.Refresh < 0 {
		return fmt.Errorf("cache keep %d, refresh %s: want 0 or more", cfg.Keep, cfg.Refresh)
	}
	if cfg.Scrub.Every < 0 || cfg.Scrub.Rate < 0 {
		return fmt.Errorf("cache scrub every %s, %d bytes a second: want 0 or more", cfg.Scrub.Every, cfg.Scrub.Rate)
	}
	if err := cfg.Warm.check(); err != nil {
		return err
	}
	if cfg.Scrub.Rate == 0 {
		cfg.Scrub.Rate = DefaultScrubRate
	}
	if cfg.RangeSize > 0 && cfg.RangeSize < minRangeSize {
		return fmt.Errorf("cache range size %d: want at least %d bytes", cfg.RangeSize, minRangeSize)
	}
	cfg.Root = filepath.Clean(cfg.Root)
	if cfg.Streams == 0 {
		cfg.Streams = defaultStreams
	}
	if cfg.RangeSize == 0 {
		cfg.RangeSize = defaultRangeSize
	}
	if cfg.Memory == nil {
		cfg.Memory = NewMemory()
	}
	if cfg.Line == nil {
		cfg.Line = NewLine(cfg.Streams, cfg.Bandwidth)
	}
	if cfg.opens == nil {
		cfg.opens = watchOpens
	}
	if cfg.Thresholds == nil {
		cfg.Thresholds = func() []Threshold { return nil }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Open takes the directory, finishes or undoes what a crash left, and reads what is there. It starts
// nothing: see Run. sources are keyed by scheme. The caller closes the Cache. While another process has
// the directory, the error is durable.ErrLocked. On a disk that is read-only it takes what is there as it is, changes
// nothing, and Run ends with ErrWritable once that has passed.
func Open(cfg Config, sources map[string]Source) (*Cache, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	l := layout(cfg.Root)
	lock, err := cfg.take(l)
	if err != nil {
		return nil, err
	}
	c := &Cache{
		cfg: cfg, disk: cfg.disk, at: l, sources: sources, log: cfg.Log, lock: lock,
		wake:     make(chan struct{}, 1),
		asked:    time.Now().UnixMicro(), // beyond the numbers of an earlier life
		streams:  cfg.Line.streams,
		pace:     cfg.Line.pace,
		models:   map[string]*entry{},
		blobs:    map[model.Digest]int64{},
		failures: map[string]int64{},
		warmth:   map[*record]warmth{},
	}
	if err := c.open(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return c, nil
}

// take makes the directories and locks them. The lock is the first file in store/, and stays: a store/
// that holds something and no lock is somebody else's, and nothing in it is touched.
func (cfg *Config) take(l layout) (*os.File, error) {
	unusable := func(err error) error {
		return fmt.Errorf("cache root %s is not usable: %w: mount a writable directory there or set another root", cfg.Root, err)
	}
	if cfg.Existing && !exists(l.lock()) {
		return nil, fmt.Errorf("cache root %s: the cache that was here is not: mount its disk back, or restart the agent for a new one", cfg.Root)
	}
	for _, other := range cfg.Apart {
		// One that is gone is on no filesystem.
		if same, err := durable.SameFilesystem(nearest(cfg.Root), nearest(other)); err == nil && same {
			return nil, fmt.Errorf("cache root %s is on the filesystem of cache root %s: mount its own disk there, or take it out of cache.disks", cfg.Root, other)
		}
	}
	if err := cfg.disk.MkdirAll(l.store(), 0o755); err != nil {
		return nil, unusable(err)
	}
	entries, err := os.ReadDir(l.store())
	if err != nil {
		return nil, unusable(err)
	}
	if len(entries) > 0 && !exists(l.lock()) {
		return nil, fmt.Errorf("cache root %s: %s is not of this cache, %q is in it: set another root, or move it away",
			cfg.Root, l.store(), entries[0].Name())
	}
	lock, err := durable.Lock(l.lock())
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("cache root %s is in use by another gpu-agent: %w: stop it or set another root", cfg.Root, err)
	}
	if err != nil {
		return nil, unusable(err)
	}
	for _, dir := range l.dirs() {
		if err := cfg.disk.MkdirAll(dir, 0o755); err != nil {
			return nil, errors.Join(unusable(err), lock.Close())
		}
	}
	return lock, nil
}

// nearest is path, or the folder that is there in which it will be made.
func nearest(path string) string {
	for !exists(path) && path != filepath.Dir(path) {
		path = filepath.Dir(path)
	}
	return path
}

func (c *Cache) open() error {
	if err := c.probe(); errors.Is(err, syscall.EROFS) {
		c.sealed, c.ails = true, c.readOnlyProblem()
		c.log.Error("the disk of the cache", "reason", c.ails.Reason, "message", c.ails.Message)
	} else if err != nil {
		return err
	}
	size, _, err := durable.Space(c.cfg.Root)
	if err != nil {
		return fmt.Errorf("cache root %s: %w", c.cfg.Root, err)
	}
	c.limit = c.cfg.Limit
	if c.limit == 0 {
		c.limit = size / 10 * 8
	}
	if c.limit > size {
		return fmt.Errorf("cache limit of %s is more than the %s of the filesystem at %s: lower the limit or mount a larger disk",
			model.FormatBytes(c.limit), model.FormatBytes(size), c.cfg.Root)
	}
	if err := c.scan(); err != nil {
		return fmt.Errorf("read cache at %s: %w", c.cfg.Root, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setRight(time.Now())
	c.publish()
	return nil
}

// probe writes a file in the store and links it into the models, which is what publishing does.
func (c *Cache) probe() error {
	from, to := filepath.Join(c.at.store(), ".probe"), filepath.Join(c.at.byName(), ".probe")
	if err := errors.Join(c.disk.Remove(from), c.disk.Remove(to)); err != nil {
		return fmt.Errorf("cache root %s is not writable: %w: mount it read-write", c.cfg.Root, err)
	}
	if err := c.disk.WriteFile(from, []byte("gpu-agent\n"), 0o600); err != nil {
		return fmt.Errorf("cache root %s is not writable: %w: mount it read-write", c.cfg.Root, err)
	}
	err := c.disk.Link(from, to)
	if err := errors.Join(c.disk.Remove(from), c.disk.Remove(to)); err != nil {
		return fmt.Errorf("cache root %s is not writable: %w: mount it read-write", c.cfg.Root, err)
	}
	if err != nil {
		return fmt.Errorf("cache root %s: %w: models/ and store/ must be on one filesystem with hard links", c.cfg.Root, err)
	}
	return nil
}

// Close ends imports and lets go of the directory. Run must have returned.
func (c *Cache) Close() error {
	c.endImports()
	return c.lock.Close()
}

// layout says where things are under the root.
type layout string

func (l layout) join(parts ...string) string {
	return filepath.Join(append([]string{string(l)}, parts...)...)
}
func (l layout) store() string     { return l.join("store") }
func (l layout) lock() string      { return l.join("store", "lock") }
func (l layout) blobs() string     { return l.join("store", "blobs", "sha256") }
func (l layout) partials() string  { return l.join("store", "partial") }
func (l layout) manifests() string { return l.join("store", "manifests") }
func (l layout) states() string    { return l.join("store", "state") }
func (l layout) revisions() string { return l.join("store", "revisions") }
func (l layout) byName() string    { return l.join("models", "by-name") }
func (l layout) hub() string       { return l.join("models", "hub") }
func (l layout) disks() string     { return l.join("models", "disks") }

func (l layout) dirs() []string {
	return []string{l.byName(), l.hub(), l.blobs(), l.partials(), l.manifests(), l.states(), l.revisions()}
}

func (l layout) blob(d model.Digest) string {
	return filepath.Join(l.blobs(), string(d[:2]), string(d))
}
func (l layout) visible(name string) string { return filepath.Join(l.byName(), name) }

// revision uses a letter that CheckName keeps out of names.
func (l layout) revision(r *record) string {
	return l.visible(r.Name) + "@" + model.Revision12(r.Revision)
}

// old is where it is written down what r holds once it is not current any more.
func (l layout) old(r *record) string {
	return filepath.Join(l.revisions(), filepath.Base(l.revision(r))+".json")
}

const repositoryPrefix = "models--"

// repository is where clients of the hub look for one.
func (l layout) repository(name string) string {
	return filepath.Join(l.hub(), repositoryPrefix+strings.ReplaceAll(name, "/", "--"))
}

// snapshot is where clients of the hub look for what r holds.
func (l layout) snapshot(r *record) string {
	return filepath.Join(l.repository(r.Hub.Repo), "snapshots", r.Revision)
}
func (l layout) partial(name string) string  { return filepath.Join(l.partials(), name) }
func (l layout) manifest(name string) string { return filepath.Join(l.manifests(), name+".json") }

// next uses a letter that CheckName keeps out of names.
func (l layout) next(name string) string  { return filepath.Join(l.manifests(), name+"+next.json") }
func (l layout) state(name string) string { return filepath.Join(l.states(), name+".json") }

// isScratch reports whether a name in by-name or hub is one of scratch's, or probe's.
func isScratch(name string) bool {
	of, n, ok := strings.Cut(strings.TrimPrefix(name, "."), ".tmp-")
	of, _, _ = strings.Cut(of, "@")
	_, err := strconv.Atoi(n)
	ours := model.CheckName(of) == nil || strings.HasPrefix(of, repositoryPrefix)
	return name == ".probe" || strings.HasPrefix(name, ".") && ok && err == nil && ours
}

// scratch is a name beside a visible directory that nobody has; a dot first, so that Open sweeps it.
func (l layout) scratch(dir string) (string, error) {
	in, name := filepath.Split(dir)
	for i := range 1000 {
		p := filepath.Join(in, fmt.Sprintf(".%s.tmp-%d", name, i))
		if _, err := os.Lstat(p); errors.Is(err, os.ErrNotExist) {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is full of leftovers of %s", in, name)
}
