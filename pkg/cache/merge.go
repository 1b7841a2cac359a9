package cache

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// notLinked is why a model that is complete cannot be promised.
const notLinked = "NotLinked"

// Get is the newest inventory of all disks, nil while none is open.
func (s *Set) Get() *model.Inventory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get()
}

func (s *Set) get() *model.Inventory {
	if len(s.disks) == 1 && s.disks[0].cache != nil {
		return s.disks[0].cache.Get()
	}
	return s.merge()
}

// merge is what all disks hold. Of a single one it is its own. s.mu is held.
func (s *Set) merge() *model.Inventory {
	open := s.open()
	if len(open) == 0 {
		return nil
	}
	if len(s.disks) == 1 {
		return open[0].cache.Get()
	}
	inv := &model.Inventory{Time: time.Now(), Root: s.disks[0].Path, Models: []model.Status{}}
	for _, d := range s.disks {
		disk := model.Disk{Name: d.label(), Root: d.Path}
		if d.cache == nil {
			disk.Error = "it is not open yet"
			if d.err != nil {
				disk.Error = model.Printable(d.err.Error())
				inv.Problems = append(inv.Problems, model.Problem{Reason: "DiskGone", Message: d.called() + ": " + disk.Error})
			}
			inv.Disks = append(inv.Disks, disk)
			continue
		}
		of := d.cache.Get()
		disk.Limit, disk.Used, disk.Reserved, disk.Scrub = of.Limit, of.Used, of.Reserved, of.Scrub
		inv.Disks = append(inv.Disks, disk)
		s.add(inv, d, of)
	}
	inv.Scrub.Ended = slices.MinFunc(inv.Disks, func(a, b model.Disk) int { return a.Scrub.Ended.Compare(b.Scrub.Ended) }).Scrub.Ended
	for _, text := range s.split {
		inv.Problems = append(inv.Problems, model.Problem{Reason: "HubSplit", Message: text})
	}
	for _, m := range s.specs {
		if p, waits := s.waiting[m.Name]; waits {
			inv.Models = append(inv.Models, model.Status{Name: m.Name, Source: m.Source.String(), State: model.Pending,
				Reason: p.Reason, Message: p.Message, Pinned: m.Pinned, Wanted: !m.OnDemand && m.Unfit == "", Disk: s.links[m.Name]})
		}
	}
	slices.SortFunc(inv.Models, func(a, b model.Status) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(inv.Problems, func(a, b model.Problem) int { return strings.Compare(a.Reason, b.Reason) })
	inv.Problems = slices.Compact(inv.Problems)
	slices.Sort(inv.Refused)
	return inv
}

// add puts what one disk holds into the inventory. s.mu is held.
func (s *Set) add(inv *model.Inventory, d *disk, of *model.Inventory) {
	inv.Limit, inv.Used, inv.Reserved = inv.Limit+of.Limit, inv.Used+of.Used, inv.Reserved+of.Reserved
	inv.Fetched, inv.Evicted = inv.Fetched+of.Fetched, inv.Evicted+of.Evicted
	inv.ReadAhead += of.ReadAhead
	inv.Scrub.Bytes, inv.Scrub.Damaged = inv.Scrub.Bytes+of.Scrub.Bytes, inv.Scrub.Damaged+of.Scrub.Damaged
	for reason, n := range of.Failures {
		if inv.Failures == nil {
			inv.Failures = map[string]int64{}
		}
		inv.Failures[reason] += n
	}
	inv.Problems = append(inv.Problems, of.Problems...)
	inv.Refused = append(inv.Refused, of.Refused...)
	for _, m := range of.Models {
		if home := s.homes[m.Name]; home != d && home != nil {
			continue // a copy, which goes
		}
		m.Disk = d.label()
		if d != s.disks[0] && m.State == model.Ready {
			m = s.asLinked(m)
		}
		inv.Models = append(inv.Models, m)
	}
}

// asLinked is a model of another disk than the root as pods can see it. s.mu is held.
func (s *Set) asLinked(m model.Status) model.Status {
	why := s.faults[m.Name]
	if s.disks[0].cache == nil {
		why = fmt.Sprintf("cache.root %s, which leads to it, is not open", s.disks[0].Path)
	} else if why == "" && s.links[m.Name] != m.Disk {
		why = "the link to it is about to be made"
	}
	if why == "" {
		return m
	}
	m.State, m.Path, m.Reason, m.Message = model.Failed, "", notLinked, "it is complete on disk "+m.Disk+", and pods do not find it: "+why
	return m
}
