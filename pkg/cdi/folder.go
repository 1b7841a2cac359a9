package cdi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cdilib "tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/gpu-agent/gpu-agent/internal/durable"
)

// What our files say of themselves. Annotations of a spec do not reach containers.
const (
	ownerKey   = "gpu-agent.dev/owner"    // ours
	madeForKey = "gpu-agent.dev/made-for" // digest of the want; absent when something is missing
	driverKey  = "gpu-agent.dev/driver"   // version of the driver whose files the spec names
	nodeKey    = "gpu-agent.dev/node"     // of a device: unit.Node
	ours       = "gpu-agent"
)

// folder is the folder of specs.
type folder struct {
	path string
	disk durable.Disk
}

// file is where the spec of a class is; the name is the one that NVIDIA's plugin uses.
func (f folder) file(class string) string {
	return filepath.Join(f.path, cdilib.GenerateSpecName(Vendor, class)+".json")
}

// read is our spec of a class, or nil when there is none that can be used.
func (f folder) read(class string) *specs.Spec {
	data, err := os.ReadFile(f.file(class))
	if err != nil {
		return nil
	}
	s, err := cdilib.ParseSpec(data)
	if err != nil || s == nil || s.Annotations[ownerKey] != ours {
		return nil
	}
	return s
}

// foreign is an error when a file that is not ours describes one of our kinds or bears one of our names. Two
// files with one device name make that name unusable for every container.
func (f folder) foreign(classes []string) error {
	entries, err := os.ReadDir(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not there: mount the host's folder of CDI specs", f.path)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(f.path, e.Name())
		if ext := filepath.Ext(path); ext != ".json" && ext != ".yaml" {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			continue // gone meanwhile, or a folder: nothing that the runtime could read
		}
		s, err := cdilib.ParseSpec(data)
		for _, class := range classes {
			claims := path == f.file(class) || err == nil && s != nil && s.Kind == Vendor+"/"+class
			if claims && (err != nil || s == nil || s.Annotations[ownerKey] != ours) {
				return fmt.Errorf("%s is in the way and was not written by this agent (NVIDIA's device plugin leaves such a file): it describes %s/%s; remove it", path, Vendor, class)
			}
		}
	}
	return nil
}

// write replaces our spec of s's class, after the runtime's own parser has accepted it.
func (f folder) write(s *specs.Spec) error {
	_, class, _ := strings.Cut(s.Kind, "/")
	version, err := specs.MinimumRequiredVersion(s)
	if err != nil {
		return err
	}
	s.Version = version
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := f.file(class)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	stage := filepath.Join(f.path, ".gpu-agent-"+class) // no suffix that the runtime would read
	if err := f.disk.WriteFile(stage, data, 0o644); err != nil {
		return err
	}
	if _, err := cdilib.ReadSpec(stage, 0); err != nil {
		return errors.Join(fmt.Errorf("spec of %s: %w", s.Kind, err), f.disk.Remove(stage))
	}
	if err := f.disk.Rename(stage, path); err != nil {
		return err
	}
	return f.disk.SyncDir(f.path)
}

// merge marks the devices of fresh with their nodes, and adds those of old that are wanted and could not be
// described now: of the same driver and on the same nodes, they are what they would be.
func merge(fresh, old *specs.Spec, now want) {
	node := map[string]string{}
	for _, u := range now.Units {
		node[u.ID] = u.Node
	}
	taken := map[string]bool{}
	for i := range fresh.Devices {
		d := &fresh.Devices[i]
		taken[d.Name] = true
		d.Annotations[nodeKey] = node[d.Annotations[unitKey]]
	}
	if old != nil && old.Annotations[driverKey] == now.Driver {
		for _, d := range old.Devices {
			u := d.Annotations[unitKey]
			if !taken[d.Name] && node[u] != "" && node[u] == d.Annotations[nodeKey] {
				fresh.Devices = append(fresh.Devices, d)
			}
		}
	}
	slices.SortFunc(fresh.Devices, func(a, b specs.Device) int { return strings.Compare(a.Name, b.Name) })
}

// stamp changes when any file of the folder does.
func (f folder) stamp() string {
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			fmt.Fprintf(&b, "/%s %d %d", e.Name(), info.Size(), info.ModTime().UnixNano())
		}
	}
	return b.String()
}
