package cache

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// bound is memory that what is read ahead must fit into, in bytes.
type bound struct {
	free     int64  // that nobody has
	inactive int64  // page cache that the kernel takes back first
	keep     int64  // that must stay free of it
	text     string // what it is, for people
}

// room is how much more may come in. What is held is of models that are to stay: it is taken for part of what the
// kernel would take back first, which it is until somebody reads it twice.
func (b bound) room(held int64) int64 { return b.free + b.inactive - min(held, b.inactive) - b.keep }

// Memory is what caches have in the page cache of what is to be there. It is safe for concurrent use.
type Memory struct {
	mu   sync.Mutex
	held map[*warmer]int64 // bytes that are there, or that may come
}

// NewMemory makes one of nothing.
func NewMemory() *Memory { return &Memory{held: map[*warmer]int64{}} }

// hold says what the cache of w has there.
func (m *Memory) hold(w *warmer, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held[w] = n
}

func (m *Memory) leave(w *warmer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.held, w)
}

// ownMemory is how much of its own memory limit the agent keeps for itself: what it has now counts, and may grow by
// a download's buffers and the pages that it writes.
const ownMemory = 128 << 20

// ram is the node's memory, and that of the control groups that the agent is in: pages count in the group of whoever
// reads them first, and a group at its limit gives up the oldest of its own.
type ram struct {
	root   string  // "/", but in tests
	groups []group // that may have a limit, the agent's own first
}

// group is a directory of a memory controller.
type group struct {
	dir string
	v1  bool
}

// findRAM finds out which control groups count the agent's memory. In a container those above its own are not
// to be seen; of a pod with a limit that is all the same, unless it has several containers.
func findRAM(root string) (ram, error) {
	m := ram{root: root}
	of, v1, err := m.controlGroup()
	if err != nil {
		return m, err
	}
	top, below, err := m.mount(v1, of)
	if err != nil {
		return m, err
	}
	dir := filepath.Join(top, below)
	if _, err := os.Stat(dir); err != nil { // the mount is of the container, and the path of the host
		dir = top
	}
	for ; ; dir = filepath.Dir(dir) {
		m.groups = append(m.groups, group{dir: dir, v1: v1})
		if dir == top || v1 { // v1 has the limits of those above in the file of the group
			return m, nil
		}
	}
}

// controlGroup is the path of the agent's group in the hierarchy that counts memory.
func (m ram) controlGroup() (path string, v1 bool, err error) {
	data, err := os.ReadFile(filepath.Join(m.root, "proc/self/cgroup"))
	if err != nil {
		return "", false, err
	}
	found := false
	for line := range strings.Lines(string(data)) { // number:controllers:path
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(part) != 3:
		case slices.Contains(strings.Split(part[1], ","), "memory"):
			return part[2], true, nil
		case part[0] == "0" && part[1] == "":
			path, found = part[2], true
		}
	}
	if !found {
		return "", false, errors.New("/proc/self/cgroup names no control group for memory")
	}
	return path, false, nil
}

// mount is where the hierarchy is mounted, and where the group is below that.
func (m ram) mount(v1 bool, of string) (top, below string, err error) {
	data, err := os.ReadFile(filepath.Join(m.root, "proc/self/mountinfo"))
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(data)) { // id parent major:minor root mountpoint options… - type source options
		mount, rest, ok := strings.Cut(strings.TrimSpace(line), " - ")
		field, super := strings.Fields(mount), strings.Fields(rest)
		if !ok || len(field) < 5 || len(super) < 3 {
			continue
		}
		if v1 && (super[0] != "cgroup" || !slices.Contains(strings.Split(super[2], ","), "memory")) || !v1 && super[0] != "cgroup2" {
			continue
		}
		below, ok := strings.CutPrefix(of, strings.TrimSuffix(field[3], "/"))
		if !ok {
			below = ""
		}
		return filepath.Join(m.root, field[4]), below, nil
	}
	return "", "", errors.New("no control groups are mounted, so the agent's memory limit is not known")
}

// node is what /proc/meminfo says, in a container too: the node's memory in all, and the bound of what is to be had.
func (m ram) node() (total int64, b bound, err error) {
	at := filepath.Join(m.root, "proc/meminfo")
	v, err := numbers(at)
	if err != nil {
		return 0, b, err
	}
	for _, key := range []string{"MemTotal:", "MemFree:", "Inactive(file):"} {
		if _, ok := v[key]; !ok {
			return 0, b, fmt.Errorf("%s has no %s", at, key)
		}
	}
	return v["MemTotal:"] << 10, bound{free: v["MemFree:"] << 10, inactive: v["Inactive(file):"] << 10}, nil // in kB
}

// limits are the bounds of the groups that have one.
func (m ram) limits() ([]bound, error) {
	var bounds []bound
	for _, g := range m.groups {
		limit, b, err := g.read()
		if err != nil {
			return nil, fmt.Errorf("the agent's memory limit is not known: %w", err)
		}
		if limit < unlimited {
			b.keep = ownMemory
			b.text = fmt.Sprintf("the agent's own memory limit of %s, in which what it reads ahead counts: give its container no limit, or one that is larger by cache.warm.limit",
				model.FormatBytes(limit))
			bounds = append(bounds, b)
		}
	}
	return bounds, nil
}

// unlimited is more than any limit; v1 writes the largest number of pages where there is none.
const unlimited = 1 << 60

func (g group) read() (limit int64, b bound, err error) {
	stat, err := numbers(filepath.Join(g.dir, "memory.stat"))
	if err != nil {
		return 0, b, err
	}
	usage := "memory.current"
	if g.v1 {
		usage, limit, b.inactive = "memory.usage_in_bytes", stat["hierarchical_memory_limit"], stat["total_inactive_file"]
	} else {
		b.inactive = stat["inactive_file"]
		limit = unlimited
		for _, name := range []string{"memory.max", "memory.high"} { // at the latter it is slowed down instead
			n, err := number(filepath.Join(g.dir, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue // the root of all groups has no limit
			}
			if err != nil {
				return 0, b, err
			}
			limit = min(limit, n)
		}
	}
	if limit >= unlimited {
		return unlimited, b, nil
	}
	used, err := number(filepath.Join(g.dir, usage))
	b.free = limit - used
	return limit, b, err
}

// number reads a file of one number, or "max".
func number(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(data))
	if text == "max" {
		return unlimited, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: want a number, got %q", path, text)
	}
	return n, nil
}

// numbers reads a file whose lines are a name and a number.
func numbers(path string) (map[string]int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	v := map[string]int64{}
	in := bufio.NewScanner(f)
	for in.Scan() {
		if field := strings.Fields(in.Text()); len(field) >= 2 {
			if n, err := strconv.ParseInt(field[1], 10, 64); err == nil {
				v[field[0]] = n
			}
		}
	}
	return v, in.Err()
}
