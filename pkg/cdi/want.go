package cdi

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// want is what the specs must be made for; the same want needs no other specs.
type want struct {
	Driver  string
	Units   []unit
	Request Request // with the units that can be asked for
	Version string
}

// unit is a whole GPU or a MIG instance.
type unit struct {
	ID   string // UUID
	Node string // its device nodes, by what names them: another node is another device
	GPU  gpu.UUID
}

// wanted is what the snapshot calls for; the answer is the same for every snapshot of the same hardware.
func (w *Writer) wanted(s *gpu.Snapshot, hook string) want {
	c := w.cfg
	now := want{Driver: s.Driver.Version, Version: c.Version, Request: Request{
		Library: c.Library, DriverRoot: c.DriverRootMount, DevRoot: c.DevRootMount,
		HostDriverRoot: c.DriverRoot, HostDevRoot: c.DevRoot, HostHook: hook,
		DisabledHooks: c.DisabledHooks, Classes: c.Classes, IMEXChannels: w.channels(),
	}}
	for i := range s.Devices {
		d := &s.Devices[i]
		units := unitsOf(d)
		now.Units = append(now.Units, units...)
		// A GPU that does not answer would hang the child. What was written of it stays.
		if d.Health.Reason == gpu.Hung || d.Health.Reason == gpu.Lost {
			continue
		}
		for _, u := range units {
			now.Request.Units = append(now.Request.Units, u.ID)
		}
	}
	return now
}

// unitsOf is what of a GPU is given to containers.
func unitsOf(d *gpu.Device) []unit {
	if d.UUID == "" {
		return nil
	}
	if !d.MIGEnabled {
		return []unit{{ID: string(d.UUID), Node: fmt.Sprintf("%d:%d", d.Index, d.Minor), GPU: d.UUID}}
	}
	var units []unit
	for _, m := range d.Instances {
		node := fmt.Sprintf("%d:%d:%d:%d:%d", d.Index, m.Index, d.Minor, m.GI, m.CI)
		units = append(units, unit{ID: string(m.UUID), Node: node, GPU: d.UUID})
	}
	return units
}

// digest names the want in the file that was made for it.
func (n want) digest() string {
	text, err := json.Marshal(n)
	if err != nil {
		return "" // of plain values: never
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// channels are the IMEX channels that are there: the fabric may come up later, or not at all.
func (w *Writer) channels() []int {
	var there []int
	for _, n := range w.cfg.IMEXChannels {
		path := fmt.Sprintf("dev/nvidia-caps-imex-channels/channel%d", n)
		if _, err := os.Stat(filepath.Join(strings.TrimSuffix(filepath.Clean(w.cfg.DevRootMount), "/dev"), path)); err == nil {
			there = append(there, n)
		}
	}
	return there
}

// classes are the classes that need a file now, ClassGPU last: it is the one that is waited for.
func (w *Writer) classes() []string {
	classes := slices.Clone(w.cfg.Classes)
	if len(w.channels()) > 0 {
		classes = append(classes, ClassIMEX)
	}
	return append(classes, ClassGPU)
}
