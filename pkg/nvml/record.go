package nvml

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// recordVersion is that of the file's form. A file of another one is not read: half of what it says may be
// worse than nothing.
const recordVersion = 1

// record is what of the health is kept across restarts: what no driver would say again.
type record struct {
	Version       int         `json:"version"`
	ReleasedUntil time.Time   `json:"releasedUntil,omitzero"`
	ReleaseSaid   time.Time   `json:"releaseSaid,omitzero"` // when release or resume was said last
	GPUs          []gpuRecord `json:"gpus"`
	// Devices are all GPUs while the driver is let go of: who starts then must not ask it which there are.
	Devices []gpu.Device `json:"devices,omitempty"`
}

// gpuRecord is one GPU about which there is something to keep.
type gpuRecord struct {
	UUID         gpu.UUID     `json:"uuid"`
	Troubles     []trouble    `json:"troubles,omitempty"`
	Cordon       *cordon      `json:"cordon,omitempty"`
	Uncordoned   time.Time    `json:"uncordoned,omitzero"` // within the last day; for another agent, see meet
	Acknowledged []gpu.Reason `json:"acknowledged,omitempty"`
	Recoveries   []time.Time  `json:"recoveries,omitempty"`
	Persistent   bool         `json:"persistenceMode,omitempty"`
	// Device is what the GPU is, of one that is out of use.
	Device *gpu.Device `json:"device,omitempty"`
}

// empty says that there is nothing to keep.
func (r gpuRecord) empty() bool {
	return len(r.Troubles) == 0 && r.Cordon == nil && len(r.Acknowledged) == 0 && len(r.Recoveries) == 0 &&
		r.Uncordoned.IsZero()
}

func (h *health) record(id gpu.UUID) gpuRecord {
	r := gpuRecord{
		UUID: id, Troubles: h.troubles, Cordon: h.cordon, Acknowledged: h.acknowledged,
		Recoveries: h.recoveries, Persistent: h.persistent,
	}
	if time.Since(h.uncordoned) < day {
		r.Uncordoned = h.uncordoned
	}
	return r
}

func (h *health) restore(r gpuRecord) {
	h.troubles, h.cordon, h.acknowledged = r.Troubles, r.Cordon, r.Acknowledged
	h.recoveries, h.persistent, h.uncordoned = r.Recoveries, r.Persistent, r.Uncordoned
}

// encode is the file that keeps the inventory's health. GPUs that were not seen since the start are kept as
// they were found: one that is away is not healed.
func (inv *inventory) encode() []byte {
	r := record{Version: recordVersion, ReleaseSaid: inv.releaseSaid, GPUs: slices.AppendSeq([]gpuRecord{}, maps.Values(inv.remembered))}
	if inv.released != nil {
		r.ReleasedUntil = inv.released.until
	}
	for _, g := range inv.gpus {
		if inv.released != nil {
			r.Devices = append(r.Devices, g.device)
		}
		if one := g.record(); !one.empty() {
			r.GPUs = append(r.GPUs, one)
		}
	}
	slices.SortFunc(r.GPUs, func(a, b gpuRecord) int { return cmp.Compare(a.UUID, b.UUID) })
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic(err) // plain values only
	}
	return append(data, '\n')
}

func decodeRecord(data []byte) (record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, err
	}
	if r.Version != recordVersion {
		return record{}, fmt.Errorf("version %d: want %d", r.Version, recordVersion)
	}
	for _, one := range r.GPUs {
		if one.UUID == "" {
			return record{}, errors.New("a GPU without a UUID")
		}
		for _, t := range one.Troubles {
			if t.Reason == gpu.Healthy || t.Until == "" {
				return record{}, fmt.Errorf("GPU %s: a trouble without a reason or an end", one.UUID)
			}
		}
	}
	return r, nil
}

// recall takes over what was kept.
func (inv *inventory) recall(r record, now time.Time) {
	inv.remembered, inv.releaseSaid = map[gpu.UUID]gpuRecord{}, r.ReleaseSaid
	for _, one := range r.GPUs {
		inv.remembered[one.UUID] = one
	}
	if r.ReleasedUntil.After(now) {
		inv.released = &release{until: r.ReleasedUntil}
		for _, d := range r.Devices {
			inv.byUUID(d)
		}
	}
}
