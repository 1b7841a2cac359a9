package nvml

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// inventory is every GPU ever identified, and what is known of it. It outlives sessions. Owned by the loop.
type inventory struct {
	driver       gpu.Driver
	gpus         []*tracked
	unidentified []gpu.Unidentified // never changed in place: snapshots share it

	rules       rules
	boot        string // id of this boot of the node
	sessions    int    // that were opened
	released    *release
	releaseSaid time.Time              // when an operator said release or resume last
	closedByUs  bool                   // the driver is let go of
	remembered  map[gpu.UUID]gpuRecord // kept from before this start, of GPUs not seen since
	// present says why a GPU may be on the node, or nil if it is not; itself nil while no session has heard of
	// every GPU that the driver counts.
	present    func(gpu.UUID, gpu.Device) error
	stateError string // why what was kept could not be read
}

// tracked is one physical GPU.
type tracked struct {
	device gpu.Device // Health, Stats, XIDs and ReadErrors are filled in when a snapshot is made

	away    gpu.Health // there is no driver to ask, for all GPUs alike; healthy otherwise
	state   health
	binding uint64 // see marks
	unasked bool   // the recovery action could not be read in the last sample, for once

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
	if kept, ok := inv.remembered[d.UUID]; ok {
		g.state.restore(kept)
		delete(inv.remembered, d.UUID)
	}
	inv.gpus = append(inv.gpus, g)
	return g
}

// change changes a GPU, also one that is known from before this start alone: its driver may be away.
func (inv *inventory) change(id gpu.UUID, f func(*tracked)) error {
	for _, g := range inv.gpus {
		if g.device.UUID == id {
			f(g)
			return nil
		}
	}
	kept, ok := inv.remembered[id]
	if !ok {
		return inv.unknown(id)
	}
	g := &tracked{device: gpu.Device{UUID: id, Index: -1}, away: gpu.Health{Reason: gpu.Lost, Text: "the driver has not named it since the agent started"}}
	g.state.restore(kept)
	f(g)
	changed := g.state.record(id)
	changed.Device = kept.Device
	inv.remember(changed)
	return nil
}

func (inv *inventory) unknown(id gpu.UUID) error {
	ids := inv.uuids()
	if len(ids) == 0 {
		return fmt.Errorf("there is no GPU %s here: no GPU is known, as the driver has named none (%s)", id, cmp.Or(inv.driver.Error, "it is loaded"))
	}
	return fmt.Errorf("there is no GPU %s here: want one of %s", id, strings.Join(ids, ", "))
}

// remember keeps the record of a GPU that is not in the list.
func (inv *inventory) remember(r gpuRecord) {
	if r.empty() {
		delete(inv.remembered, r.UUID)
		return
	}
	if inv.remembered == nil {
		inv.remembered = map[gpu.UUID]gpuRecord{}
	}
	inv.remembered[r.UUID] = r
}

// uuids are the identities of all GPUs that are known, sorted.
func (inv *inventory) uuids() []string {
	var ids []string
	for id := range inv.remembered {
		ids = append(ids, string(id))
	}
	for _, g := range inv.gpus {
		ids = append(ids, string(g.device.UUID))
	}
	slices.Sort(ids)
	return ids
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

// opened starts a new session with the driver. That by itself heals nothing.
func (inv *inventory) opened(d gpu.Driver) {
	inv.driver = d
	inv.sessions++
	inv.unidentified = nil
	for _, g := range inv.gpus {
		g.nvlink = nvlinkCount{}
	}
}

// closed says that there is no driver, and so no GPU that a pod could use.
func (inv *inventory) closed(why string, now time.Time) {
	inv.leave(gpu.Driver{Error: why}, gpu.Health{Reason: gpu.Lost, Text: "no driver: " + why, Since: now})
}

// rest says that an operator had us let go of the driver.
func (inv *inventory) rest(now time.Time) {
	why := fmt.Sprintf("released by an operator until %s: gpu-agent devices resume ends it sooner",
		inv.released.until.UTC().Format(time.RFC3339))
	inv.leave(gpu.Driver{Error: why}, gpu.Health{Reason: gpu.Released, Text: why, Since: now, Needs: gpu.Operator})
}

// leave takes all GPUs out of use until they are read again.
func (inv *inventory) leave(d gpu.Driver, why gpu.Health) {
	inv.driver = d
	for _, g := range inv.gpus {
		h := why
		if g.away.Reason == h.Reason {
			h.Since = g.away.Since
		}
		g.stats, g.away = nil, h
	}
}

// verdict is the health that counts.
func (g *tracked) verdict() gpu.Health {
	if !g.away.OK() {
		return g.away
	}
	return g.state.verdict()
}

// marks are what is known of a GPU that only a reset or a reboot changes, its readings apart.
func (inv *inventory) marks(g *tracked) marks {
	m := marks{Boot: inv.boot, Driver: inv.driver.Version, Binding: g.binding}
	if g.stats != nil {
		m = factsOf(g.stats, m, true).marks
	}
	return m
}

// read takes over the readings, or why there are none. round is the sample's number.
func (inv *inventory) read(g *tracked, a answer, round int, now time.Time) (changed bool) {
	before := g.verdict()
	g.away = gpu.Health{}
	for _, f := range a.failures {
		g.errors[f]++
	}
	if a.stats == nil {
		g.stats = nil
		inv.rules.unreached(&g.state, faultHealth(a), inv.marks(g), now)
		inv.rules.answer(&g.state, round, nil, inv.marks(g))
		return g.verdict() != before
	}
	g.stats, g.lastSample = a.stats, a.taken
	g.unasked = slices.ContainsFunc(a.failures, func(f failure) bool { return f.op == opRecoveryAction })
	g.rateNVLink(a.taken)
	held := g.state.session == inv.sessions || g.state.persistent && is(a.stats.PersistenceMode)
	f := facts{marks: inv.marks(g), stats: a.stats, held: held}
	inv.rules.answer(&g.state, round, a.stats.RecoveryAction, f.marks)
	inv.rules.sampled(&g.state, f, inv.sessions, now)
	return g.verdict() != before
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
	case !a.identified || a.fault.driverGone() || a.failures[len(a.failures)-1].op == opMIG:
		// It has a handle or an index, but does not say who it is or how it is split, or speaks of the driver.
		h.Reason = gpu.Unreadable
	}
	return h
}

// hung takes note of a sample that missed its deadline.
func (inv *inventory) hung(g *tracked, after time.Duration, now time.Time) {
	g.stats, g.away = nil, gpu.Health{}
	g.errors[failure{opSample, missedDeadline}]++
	inv.rules.unreached(&g.state, gpu.Health{
		Reason: gpu.Hung,
		Text:   fmt.Sprintf("a driver call has not come back for more than %s", after),
		Needs:  gpu.RebootNode,
	}, inv.marks(g), now)
}

// unlisted takes note that the driver no longer counts this GPU.
func (inv *inventory) unlisted(g *tracked, now time.Time) {
	g.stats, g.away = nil, gpu.Health{}
	inv.rules.unreached(&g.state, gpu.Health{
		Reason: gpu.Lost, Text: "the driver no longer lists it", Needs: gpu.RebootNode,
	}, inv.marks(g), now)
}

// countXID takes note of an XID and judges it. It reports whether the driver is to be asked about it, which
// the sample of that round answers.
func (inv *inventory) countXID(g *tracked, xid uint64, round int, now time.Time) (ask bool) {
	n := g.xids[xid]
	n.Code, n.Count, n.Last = xid, n.Count+1, now
	g.xids[xid] = n
	ask = inv.rules.xid(&g.state, xid, round, inv.marks(g), now)
	if ask && g.stats != nil && g.stats.RecoveryAction == nil && !g.unasked {
		inv.rules.answer(&g.state, round, nil, inv.marks(g)) // this driver has no answer
		return false
	}
	return ask
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
	s := &gpu.Snapshot{Time: now, Driver: inv.driver, Simulated: simulated, Unidentified: inv.unidentified, StateError: inv.stateError}
	for _, g := range inv.gpus {
		d := g.device
		if d.Fabric != nil {
			f := *d.Fabric
			d.Fabric = &f
		}
		if g.stats == nil {
			d.Instances = unread(d.Instances)
		}
		d.Health, d.Notices, d.Stats, d.LastSample = g.verdict(), g.state.noticed(), g.stats, g.lastSample
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
