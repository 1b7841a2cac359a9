package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// RootDisk is what the root goes by among the names of disks.
const RootDisk = "root"

// Root is where one of the caches of a Set is.
type Root struct {
	Name string // "" is the first: pods mount its models/, and what the others have they find by links in there
	Path string // absolute
}

// Set is the caches of a node, each on a disk of its own and complete in itself, as one. A name is on one disk at a
// time. Its methods are safe for concurrent use; those of a Cache that Run was given are for nobody else.
//
// What is where follows from the disks alone, and is reckoned anew with each change: a model belongs to the disk that
// has the most of it, else to where there is the most room; the links follow from that, and the inventory from both.
type Set struct {
	log      *slog.Logger
	promised watch.Value[*model.Inventory]

	mu      sync.Mutex // guards what follows; taken before the mutex of a Cache
	disks   []*disk    // the first is the root
	specs   []model.Spec
	uses    []model.Use
	blind   string
	unseen  string
	homes   map[string]*disk               // of all names that somebody has or asks for; nil: waits for a disk
	waiting map[string]model.Problem       // why those wait
	links   map[string]string              // by-name links in the root as they were last seen: names of disks
	faults  map[string]string              // why a model of another disk is not where pods look for it
	split   []string                       // repositories of the hub of which the root shows a part, for people
	refused map[string]map[*disk]time.Time // when a disk had no room for a model, whatever it would evict
}

// disk is one of a Set. Guarded by its mu.
type disk struct {
	Root
	cache   *Cache       // nil: not open
	err     error        // why, once it was tried
	since   time.Time    // when that was found
	wants   []model.Spec // as the cache was told last
	uses    []model.Use
	blind   string
	told    bool
	work    context.Context // of what is done beside Run
	group   *sync.WaitGroup
	dropped map[string]time.Time // copies that were taken away
}

// NewSet makes one of no disks.
func NewSet(log *slog.Logger) *Set {
	return &Set{log: log, homes: map[string]*disk{}, links: map[string]string{}, faults: map[string]string{}, refused: map[string]map[*disk]time.Time{}}
}

// Span says which disks there are, the root first. What is open on others is known of no more.
func (s *Set) Span(roots []Root) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var disks []*disk
	for _, r := range roots {
		i := slices.IndexFunc(s.disks, func(d *disk) bool { return d.Root == r })
		if i >= 0 {
			disks = append(disks, s.disks[i])
		} else {
			disks = append(disks, &disk{Root: r})
		}
	}
	s.disks = disks
	s.settle()
}

// Down says that a disk cannot be opened, and why.
func (s *Set) Down(name string, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.disk(name); d != nil && d.cache == nil {
		if d.err == nil {
			d.since = time.Now()
		}
		d.err = why
		s.settle()
	}
}

// Run runs an open cache as that of the named disk, as Cache.Run does. The caller closes it then.
func (s *Set) Run(ctx context.Context, name string, c *Cache) error {
	work, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	s.mu.Lock()
	d := s.disk(name)
	if d == nil {
		s.mu.Unlock()
		stop()
		return fmt.Errorf("cache disk %s is not configured any more", name)
	}
	c.elsewhere = func(name string, files []model.File, refused bool) bool { return s.elsewhere(d, name, files, refused) }
	d.cache, d.err, d.told, d.work, d.group, d.dropped = c, nil, false, work, &group, map[string]time.Time{}
	s.readLinks(d)
	s.settle()
	s.mu.Unlock()
	group.Go(func() {
		for {
			_, changed := c.Watch()
			s.mu.Lock()
			s.settle()
			s.mu.Unlock()
			select {
			case <-work.Done():
				return
			case <-changed:
			case <-time.After(settleEvery):
			}
		}
	})
	if name == "" && !c.sealed {
		group.Go(func() { s.notices(work, c.at.join("models")) })
	}
	err := c.Run(work)
	s.mu.Lock()
	d.cache = nil
	if ctx.Err() == nil && !errors.Is(err, ErrWritable) {
		d.err, d.since = cmp.Or(err, errors.New("it ended before it was asked to")), time.Now()
	}
	s.settle()
	s.mu.Unlock()
	stop()
	group.Wait()
	return err
}

// settleEvery is how often it is looked whether somebody has waited long enough.
const settleEvery = time.Minute

func (s *Set) disk(name string) *disk {
	for _, d := range s.disks {
		if d.Name == name {
			return d
		}
	}
	return nil
}

// open are the disks whose cache runs. s.mu is held.
func (s *Set) open() []*disk {
	return slices.DeleteFunc(slices.Clone(s.disks), func(d *disk) bool { return d.cache == nil })
}

// tried reports whether it is known of all disks what they have, or that they have nothing to give. s.mu is held.
func (s *Set) tried() bool {
	return !slices.ContainsFunc(s.disks, func(d *disk) bool { return d.cache == nil && d.err == nil })
}

// settle brings all to what follows from the disks. s.mu is held.
func (s *Set) settle() {
	copies := s.house()
	s.tell()
	for _, c := range copies {
		s.drop(c)
	}
	s.link()
	if len(s.disks) > 0 && s.tried() {
		inv := s.merge()
		if inv == nil {
			inv = &model.Inventory{} // what cannot be opened is not promised
		}
		s.promised.Set(inv)
	}
}

// tell has each cache know what is its own. s.mu is held.
func (s *Set) tell() {
	open := s.open()
	for _, d := range open {
		wants := slices.DeleteFunc(slices.Clone(s.specs), func(m model.Spec) bool { return s.homes[m.Name] != d })
		uses := slices.DeleteFunc(slices.Clone(s.uses), func(u model.Use) bool {
			if u.Repo != "" {
				return false // it uses what is of that, wherever it is
			}
			home, known := s.homes[u.Model]
			return home != d && (known || d != open[0])
		})
		d.cache.Unseen(s.unseen)
		if d.told && slices.Equal(d.wants, wants) && slices.Equal(d.uses, uses) && d.blind == s.blind {
			continue
		}
		if !d.told || !slices.Equal(d.wants, wants) {
			d.cache.Want(wants)
		}
		if s.blind != "" {
			d.cache.Unsure(s.blind)
		} else if !d.told || !slices.Equal(d.uses, uses) || d.blind != "" {
			d.cache.InUse(uses)
		}
		d.told, d.wants, d.uses, d.blind = true, wants, uses, s.blind
	}
}

// Promised is what may be said to be here. It stays as it was while it is not known what one of the disks has, as
// when one is opened, and is nil before it was known.
func (s *Set) Promised() *watch.Value[*model.Inventory] { return &s.promised }

// Want is Cache.Want.
func (s *Set) Want(specs []model.Spec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.specs = slices.Clone(specs)
	s.settle()
}

// InUse is Cache.InUse.
func (s *Set) InUse(pods []model.Use) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uses, s.blind = slices.Clone(pods), ""
	s.settle()
}

// Unsure is Cache.Unsure.
func (s *Set) Unsure(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blind = why
	s.settle()
}

// Unseen is Cache.Unseen.
func (s *Set) Unseen(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unseen = why
	s.settle()
}

// Elsewhere reports whether a model that leaves a disk is on another, and so may stay promised.
func (s *Set) Elsewhere(from, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	home := s.homes[name]
	return home != nil && home.Name != from && home.cache != nil && home.cache.holdings()[name] == current
}

// Open reports whether a disk is open.
func (s *Set) Open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open()) > 0
}

// of is the cache that has, or is to have, a name, with or without a revision: the first where there is none, which says so.
func (s *Set) of(name string) (*Cache, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name = bare(name)
	if p, waits := s.waiting[name]; waits {
		return nil, &model.Error{Reason: p.Reason, Text: fmt.Sprintf("model %s: %s", name, p.Message)}
	}
	if home := s.homes[name]; home != nil {
		return home.cache, nil
	}
	if open := s.open(); len(open) > 0 {
		return open[0].cache, nil
	}
	return nil, &model.Error{Reason: "CacheClosed", Text: "the model cache is not open"}
}

// Pull is Cache.Pull.
func (s *Set) Pull(ctx context.Context, spec model.Spec) (int64, error) {
	s.mu.Lock()
	if _, waits := s.waiting[spec.Name]; !waits && s.homes[spec.Name] == nil && spec.Source != (model.Ref{}) {
		s.homes[spec.Name] = s.roomiest(spec.Source)
	}
	s.mu.Unlock()
	c, err := s.of(spec.Name)
	if err != nil {
		return 0, err
	}
	asked, err := c.Pull(ctx, spec)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	return asked, err
}

// Remove is Cache.Remove.
func (s *Set) Remove(ctx context.Context, name string, force bool) error {
	c, err := s.of(name)
	if err != nil {
		return err
	}
	return c.Remove(ctx, name, force)
}

// Pin is Cache.Pin.
func (s *Set) Pin(name string) error {
	c, err := s.of(name)
	if err != nil {
		return err
	}
	return c.Pin(name)
}

// Unpin is Cache.Unpin.
func (s *Set) Unpin(name string) error {
	c, err := s.of(name)
	if err != nil {
		return err
	}
	return c.Unpin(name)
}

// Rollback is Cache.Rollback.
func (s *Set) Rollback(ctx context.Context, name, revision string) (model.Rollback, error) {
	c, err := s.of(name)
	if err != nil {
		return model.Rollback{}, err
	}
	return c.Rollback(ctx, name, revision)
}

// Verify is Cache.Verify.
func (s *Set) Verify(ctx context.Context, name string) ([]string, error) {
	c, err := s.of(name)
	if err != nil {
		return nil, err
	}
	return c.Verify(ctx, name)
}

// Explain is Cache.Explain. Room is that of the model's disk.
func (s *Set) Explain(name string) (model.Explanation, error) {
	s.mu.Lock()
	_, waits := s.waiting[name]
	status := s.get().Model(name)
	s.mu.Unlock()
	if waits && status != nil {
		return model.Explanation{Status: *status}, nil
	}
	c, err := s.of(name)
	if err != nil {
		return model.Explanation{}, err
	}
	x, err := c.Explain(name)
	if err == nil && status != nil {
		x.Disk = status.Disk
		if status.Reason == notLinked {
			x.Status = *status
		}
	}
	return x, err
}

// Export is Cache.Export, of models of any disk.
func (s *Set) Export(ctx context.Context, names []string, w io.Writer) error {
	var caches []*Cache
	given := map[*Cache][]string{}
	for _, name := range names {
		c, err := s.of(name)
		if err != nil {
			return err
		}
		if given[c] == nil {
			caches = append(caches, c)
		}
		given[c] = append(given[c], name)
	}
	return export(ctx, caches, given, w)
}

// Import is Cache.Import: each model comes to where it is, or there is the most room for it.
func (s *Set) Import(ctx context.Context, r io.Reader, interrupt func(), done func(model.Status)) error {
	return importInto(ctx, r, interrupt, func(b bundled) (*Cache, error) {
		s.mu.Lock()
		if _, waits := s.waiting[b.Name]; !waits && s.homes[b.Name] == nil {
			s.homes[b.Name] = s.roomFor(b.Name, b.Files, nil, true)
		}
		s.mu.Unlock()
		return s.of(b.Name)
	}, done)
}

// Importing is Cache.Importing.
func (s *Set) Importing() *model.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.open() {
		if m := d.cache.Importing(); m != nil {
			return m
		}
	}
	return nil
}
