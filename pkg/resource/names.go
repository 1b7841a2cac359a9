package resource

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// matches reports whether s is of the pattern's form, in which * stands for any text and all else for
// itself: a model's name has no other character that patterns use.
func matches(pattern, s string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	s, ok := strings.CutPrefix(s, first)
	if !wild || !ok {
		return ok && s == ""
	}
	parts := strings.Split(rest, "*")
	last := len(parts) - 1
	for _, part := range parts[:last] {
		if _, s, ok = strings.Cut(s, part); !ok {
			return false
		}
	}
	return strings.HasSuffix(s, parts[last])
}

// Matches reports whether a pattern such as *H100* is of a GPU's model.
func Matches(pattern, model string) bool { return matches(pattern, model) }

var ( // read-only
	pciAddress = lazyregexp.New(`^([0-9a-fA-F]{4}|[0-9a-fA-F]{8}):[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]$`)
	number     = lazyregexp.New(`^[0-9]{1,4}$`)
)

func (f *Faults) selectors(path string, list []string) {
	for i, s := range list {
		if s == "" || strings.HasPrefix(s, "MIG-") {
			f.add(fmt.Sprintf("%s[%d]", path, i), "%q names no GPU: want a UUID, an index, a PCI address or a model such as *T4*", s)
		}
	}
}

// selects reports whether the selector names the GPU.
func selects(selector string, d *gpu.Device) bool {
	switch {
	case number().MatchString(selector):
		index, err := strconv.Atoi(selector)
		return err == nil && index == d.Index
	case strings.HasPrefix(selector, "GPU-"):
		return gpu.UUID(selector) == d.UUID
	case pciAddress().MatchString(selector):
		if len(selector) < len("00000000:00:00.0") {
			selector = "0000" + selector // as sysfs and lspci write it
		}
		return strings.EqualFold(selector, d.PCIBusID)
	}
	return matches(selector, d.Name)
}

// exact: the selector names one GPU, so that none is a mistake; a model may well be on other nodes only.
func exact(selector string) bool {
	return number().MatchString(selector) || strings.HasPrefix(selector, "GPU-") || pciAddress().MatchString(selector)
}

// visible are the GPUs that the administrator has left in. One whose UUID could not be read has no
// name that would survive a restart.
func (p Policy) visible(s *gpu.Snapshot, found *findings) []*gpu.Device {
	used := map[string]bool{}
	named := func(list []string, d *gpu.Device) bool {
		hit := false
		for _, selector := range list {
			if selects(selector, d) {
				used[selector], hit = true, true
			}
		}
		return hit
	}
	var devices []*gpu.Device
	for i := range s.Devices {
		d := &s.Devices[i]
		in := named(p.cfg.Include, d) || len(p.cfg.Include) == 0
		if out := named(p.cfg.Exclude, d); in && !out && d.UUID != "" {
			devices = append(devices, d)
		}
	}
	for _, list := range []struct {
		path      string
		selectors []string
	}{{"include", p.cfg.Include}, {"exclude", p.cfg.Exclude}} {
		for i, selector := range list.selectors {
			if exact(selector) && !used[selector] {
				found.unfit("%s[%d]: there is no GPU %s on this node", list.path, i, selector)
			}
		}
	}
	if len(devices) == 0 && len(s.Devices) > 0 && len(p.cfg.Include)+len(p.cfg.Exclude) > 0 {
		found.unfit("include, exclude: they leave none of this node's GPUs to offer")
	}
	return devices
}

// Visible is the snapshot without the GPUs that are excluded, for who describes what pods can get.
func (p Policy) Visible(s *gpu.Snapshot) *gpu.Snapshot {
	if s == nil || len(p.cfg.Include)+len(p.cfg.Exclude) == 0 {
		return s
	}
	seen := *s
	seen.Devices = nil
	for _, d := range p.visible(s, &findings{}) {
		seen.Devices = append(seen.Devices, *d)
	}
	return &seen
}

// named is the resource name by the first pattern that matches text, or the one given. A later pattern
// with another name is said, unless it is the * that catches the rest.
func named(names []Name, text, otherwise, path string, found *findings) string {
	match := -1
	for i, n := range names {
		switch {
		case !matches(n.Pattern, text):
		case match < 0:
			match = i
		case n.Pattern != "*" && n.Resource != names[match].Resource:
			found.unfit("%s[%d]: two names for %q: it goes by %s of %s[%d], not by %s", path, i, text, names[match].Resource, path, match, n.Resource)
		}
	}
	if match < 0 {
		return otherwise
	}
	return names[match].Resource
}
