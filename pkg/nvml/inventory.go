package nvml

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// inventory is every GPU ever identified, and what is known of it. It outlives sessions. Owned by the loop.
type inventory struct {
	driver       gpu.Driver
	gpus         []*tracked
	unidentified int // GPUs that the driver counts and that have never said who they are
}

// tracked is one physical GPU.
type tracked struct {
	device gpu.Device // Health, Stats, XIDs and ReadErrors are filled in when a snapshot is made

	access gpu.Health // lost, hung, unreadable; healthy as soon as it answers
	xid    gpu.Health // sticky until the driver is opened anew

	stats      *gpu.Stats
	lastSample time.Time
	nvlink     nvlinkCount

	xids   map[uint64]gpu.XIDCount
	errors map[failure]uint64
}

// nvlinkCount is the last sum of both NVLink counters, to make a rate of.
type nvlinkCount struct {
	at    time.Time
	bytes uint64
}

// missedDeadline is the code counted for a sample that did not come back; NVML has none.
const missedDeadline code = 1 << 31

// byUUID returns the GPU with this identity, remembering it when it is new.
func (inv *inventory) byUUID(d gpu.Device) *tracked {
	for _, g := range inv.gpus {
		if g.device.UUID == d.UUID {
			return g
		}
	}
	g := &tracked{device: d, xids: map[uint64]gpu.XIDCount{}, errors: map[failure]uint64{}}
	inv.gpus = append(inv.gpus, g)
	return g
}

// byIndex returns the GPU last seen at an index, or nil.
func (inv *inventory) byIndex(index int) *tracked {
	for _, g := range inv.gpus {
		if g.device.Index == index {
			return g
		}
	}
	return nil
}

// opened starts a new session with the driver. An initialisation follows every reset and driver reload,
// so it is what ends an XID's verdict.
func (inv *inventory) opened(d gpu.Driver) {
	inv.driver = d
	inv.unidentified = 0
	for _, g := range inv.gpus {
		g.xid = gpu.Health{}
		g.nvlink = nvlinkCount{}
	}
}

// closed says that there is no driver, and so no GPU that a pod could use.
func (inv *inventory) closed(why string, now time.Time) {
	inv.driver = gpu.Driver{Error: why}
	for _, g := range inv.gpus {
		g.stats = nil
		g.setAccess(gpu.Health{Reason: gpu.Lost, Text: "no driver: " + why}, now)
	}
}

// setAccess changes the access health; Since is kept while the reason is.
func (g *tracked) setAccess(h gpu.Health, now time.Time) (changed bool) {
	if h.OK() {
		changed = !g.access.OK()
		g.access = gpu.Health{}
		return changed
	}
	changed = g.access.Reason != h.Reason || g.access.Text != h.Text
	h.Since = now
	if g.access.Reason == h.Reason {
		h.Since = g.access.Since
	}
	g.access = h
	return changed
}

// health is the verdict that counts: a GPU that cannot be reached first, then what its XIDs say.
func (g *tracked) health() gpu.Health {
	if !g.access.OK() {
		return g.access
	}
	return g.xid
}

// read takes over the readings, or why there are none.
func (g *tracked) read(a answer, now time.Time) (changed bool) {
	for _, f := range a.failures {
		g.errors[f]++
	}
	if a.stats == nil {
		g.stats = nil
		return g.setAccess(faultHealth(a), now)
	}
	g.stats, g.lastSample = a.stats, a.taken
	g.rateNVLink(a.taken)
	return g.setAccess(gpu.Health{}, now)
}

// faultHealth is the verdict on a GPU that gave no readings.
func faultHealth(a answer) gpu.Health {
	what := "every call on it fails"
	if n := len(a.failures); n > 0 {
		what = string(a.failures[n-1].op)
	}
	h := gpu.Health{Reason: gpu.Lost, Text: fmt.Sprintf("%s: %s", what, a.fault.explain())}
	switch {
	case a.fault == errGPULost:
		h.Needs = gpu.RebootNode
	case a.fault == errResetRequired:
		h.Needs = gpu.ResetGPU
	case !a.identified || a.failures[len(a.failures)-1].op == opMIG:
		// It has a handle or an index, but does not say who it is or how it is split.
		h.Reason = gpu.Unreadable
	}
	return h
}

// hung takes note of a sample that missed its deadline.
func (g *tracked) hung(after time.Duration, now time.Time) {
	g.stats = nil
	g.errors[failure{opSample, missedDeadline}]++
	g.setAccess(gpu.Health{
		Reason: gpu.Hung,
		Text:   fmt.Sprintf("a driver call has not come back for more than %s", after),
		Needs:  gpu.RebootNode,
	}, now)
}

// unlisted takes note that the driver no longer counts this GPU.
func (g *tracked) unlisted(now time.Time) {
	g.stats = nil
	g.setAccess(gpu.Health{Reason: gpu.Lost, Text: "the driver no longer lists it", Needs: gpu.RebootNode}, now)
}

// countXID takes note of an XID and judges it.
func (g *tracked) countXID(xid uint64, now time.Time) (changed bool) {
	n := g.xids[xid]
	n.Code, n.Count, n.Last = xid, n.Count+1, now
	g.xids[xid] = n
	h := judgeXID(xid)
	if h.OK() || !g.xid.OK() && severity(g.xid.Needs) >= severity(h.Needs) {
		return false
	}
	h.Since = now
	if !g.xid.OK() {
		h.Since = g.xid.Since
	}
	g.xid = h
	return true
}

// rateNVLink turns the two counters into a rate. They go back to 0 with the driver: then there is no rate.
func (g *tracked) rateNVLink(now time.Time) {
	s := g.stats
	if s.NVLinkTransmit == nil || s.NVLinkReceive == nil {
		g.nvlink = nvlinkCount{}
		return
	}
	cur, last := nvlinkCount{now, *s.NVLinkTransmit + *s.NVLinkReceive}, g.nvlink
	g.nvlink = cur
	if dt := cur.at.Sub(last.at).Seconds(); !last.at.IsZero() && dt > 0 && cur.bytes >= last.bytes {
		rate := float64(cur.bytes-last.bytes) / dt
		s.NVLinkBytesPerSecond = &rate
	}
}

// snapshot is an immutable copy.
func (inv *inventory) snapshot(simulated bool, now time.Time) *gpu.Snapshot {
	s := &gpu.Snapshot{Time: now, Driver: inv.driver, Simulated: simulated, Unidentified: inv.unidentified}
	for _, g := range inv.gpus {
		d := g.device
		if d.Fabric != nil {
			f := *d.Fabric
			d.Fabric = &f
		}
		if g.stats == nil {
			d.Instances = unread(d.Instances)
		}
		d.Health, d.Stats, d.LastSample = g.health(), g.stats, g.lastSample
		d.XIDs = slices.SortedFunc(maps.Values(g.xids), func(a, b gpu.XIDCount) int { return cmp.Compare(a.Code, b.Code) })
		for f, n := range g.errors {
			d.ReadErrors = append(d.ReadErrors, gpu.ReadError{Op: string(f.op), Return: f.code.String(), Count: n})
		}
		slices.SortFunc(d.ReadErrors, func(a, b gpu.ReadError) int {
			return cmp.Or(cmp.Compare(a.Op, b.Op), cmp.Compare(a.Return, b.Return))
		})
		s.Devices = append(s.Devices, d)
	}
	slices.SortFunc(s.Devices, func(a, b gpu.Device) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.UUID, b.UUID))
	})
	return s
}

// unread is the instances without their readings: they go with the GPU's.
func unread(instances []gpu.Instance) []gpu.Instance {
	instances = slices.Clone(instances)
	for i := range instances {
		instances[i].Stats = nil
	}
	return instances
}
