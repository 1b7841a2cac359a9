package resource

import "github.com/gpu-agent/gpu-agent/pkg/gpu"

// How good two GPUs are for one container, by the nearest way between them; each NVLink between them
// counts above all of these. The scale is that of NVIDIA's go-gpuallocator, so that orders agree, but
// links to the node's NVSwitches count too: behind them every GPU is every other's peer.
const (
	acrossNodes   = 10 // through the interconnect between CPUs
	sameNode      = 20 // one CPU, several of its host bridges
	sameBridge    = 30 // one PCIe host bridge
	severalSwitch = 40 // several PCIe switches, none of them the CPU's
	oneSwitch     = 50
	sameBoard     = 60
	perNVLink     = 100
)

// affinity is the score of a pair; higher is better. It is symmetric also where the two GPUs report
// different numbers of links, and it is never negative.
func affinity(a, b *gpu.Device) int {
	if a == nil || b == nil {
		return 0
	}
	direct := max(links(a, b.PCIBusID), links(b, a.PCIBusID))
	switched := min(links(a, ""), links(b, ""))
	return way(a, b) + perNVLink*(direct+switched)
}

func links(d *gpu.Device, remote string) int {
	if remote == "" && d.PCIBusID == "" {
		return 0
	}
	n := 0
	for _, l := range d.NVLinks {
		if l.Remote == remote {
			n += l.Count
		}
	}
	return n
}

// way is the score of the PCIe way, from the part of their PCI paths that two GPUs share, which starts
// with the host bridge; by NUMA nodes where they share none.
func way(a, b *gpu.Device) int {
	shared := 0
	for shared < min(len(a.PCIPath), len(b.PCIPath)) && a.PCIPath[shared] == b.PCIPath[shared] {
		shared++
	}
	below := max(len(a.PCIPath), len(b.PCIPath)) - shared // the GPU itself and the switch ports above it
	switch {
	case shared > 1 && below <= 1:
		return sameBoard
	case shared > 1 && below == 2:
		return oneSwitch
	case shared > 1:
		return severalSwitch
	case shared == 1:
		return sameBridge
	case a.NUMANode == b.NUMANode:
		return sameNode
	}
	return acrossNodes
}
