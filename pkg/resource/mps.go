package resource

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// The most clients of one MPS server: since Volta, and before it. From NVIDIA's MPS guide, "Limitations".
const (
	mpsClients    = 48
	mpsClientsOld = 16
)

func (c *Config) mpsFaults(f *Faults, at string) {
	if c.MIGStrategy == MIGMixed {
		f.add(at, "MPS cannot share MIG instances: want migStrategy none or single, or sharing by timeSlicing")
	}
	if !path.IsAbs(c.MPSRoot) {
		f.add("mpsRoot", "%q: want an absolute path of the host, such as /run/nvidia/mps", c.MPSRoot)
	}
	for i, r := range c.MPS.Resources {
		if r.Replicas > mpsClients {
			f.add(fmt.Sprintf("%s.resources[%d].replicas", at, i), "an MPS server has at most %d clients, got %d", mpsClients, r.Replicas)
		}
	}
}

// unshareable says why the thing cannot be shared in the way and as often as asked for; "" when it can.
func (t thing) unshareable(kind string, replicas int) string {
	switch {
	case kind != ByMPS:
	case t.instance != nil:
		return "MPS cannot share a MIG instance"
	case t.device.ComputeMajor > 0 && t.device.ComputeMajor < 7 && replicas > mpsClientsOld:
		return fmt.Sprintf("an MPS server on a GPU older than Volta has at most %d clients, not %d", mpsClientsOld, replicas)
	}
	return ""
}

// MPS is one resource that is shared by MPS: what its control daemon must be told.
type MPS struct {
	Resource string // as it is offered
	PipeDir  string // of the host: CUDA_MPS_PIPE_DIRECTORY of the daemon
	LogDir   string // of the host
	ShmDir   string // of the host, one for all resources: /dev/shm of the daemon and of its clients
	Devices  []MPSDevice
}

// MPSDevice is one GPU of an MPS resource.
type MPSDevice struct {
	UUID        gpu.UUID
	Index       int // NVML's
	Replicas    int
	MemoryLimit uint64 // bytes that one share may pin; 0 when the GPU's memory is unknown
	Healthy     bool
}

// MPS are the resources that need a control daemon, sorted by name. The folders are laid out as NVIDIA's
// daemon lays them out below its root.
func (p Policy) MPS(s *gpu.Snapshot) []MPS {
	if p.cfg.MPS == nil {
		return nil
	}
	items, _ := p.items(s)
	var all []MPS
	for _, it := range items {
		if it.kind != ByMPS || it.ID != share(it.uuid(), 0) {
			continue
		}
		i, found := slices.BinarySearchFunc(all, it.resource, func(m MPS, name string) int { return strings.Compare(m.Resource, name) })
		if !found {
			all = slices.Insert(all, i, MPS{
				Resource: it.resource, PipeDir: p.mpsPipeDir(it.resource), LogDir: path.Join(p.cfg.MPSRoot, it.resource, "log"), ShmDir: p.mpsShmDir(),
			})
		}
		all[i].Devices = append(all[i].Devices, MPSDevice{
			UUID: it.Device, Index: it.device.Index, Replicas: it.replicas,
			MemoryLimit: it.device.Memory / uint64(it.replicas), Healthy: it.Healthy,
		})
	}
	return all
}

func (p Policy) mpsPipeDir(resource string) string { return path.Join(p.cfg.MPSRoot, resource, "pipe") }

func (p Policy) mpsShmDir() string { return path.Join(p.cfg.MPSRoot, "shm") }

// mpsEdits lets a container reach the control daemon of its resource. The paths inside are those of
// NVIDIA's plugin.
func (p Policy) mpsEdits(e *Edits, resource string) {
	inside := path.Join("/mps", resource, "pipe")
	e.Env["CUDA_MPS_PIPE_DIRECTORY"] = inside
	e.Mounts = append(e.Mounts,
		Mount{HostPath: p.mpsPipeDir(resource), ContainerPath: inside},
		Mount{HostPath: p.mpsShmDir(), ContainerPath: "/dev/shm"})
}
