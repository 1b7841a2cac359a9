package nvml

import (
	"fmt"
	"slices"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// simBuses are the bus numbers of the GPUs of a DGX H100, then made up: neighbours of those.
var simBuses = [maxSimulated]int{0x1b, 0x43, 0x52, 0x61, 0x9d, 0xc3, 0xd1, 0xdf, 0x1c, 0x44, 0x53, 0x62, 0x9e, 0xc4, 0xd2, 0xe0}

// simPlace is where a made-up GPU sits.
type simPlace struct {
	numa  int // the GPUs are spread over two sockets by halves
	bus   int
	first int // index of the first GPU of its PCIe switch
	root  int // bus number of its root complex
}

// simPlaced places the i-th of n GPUs. Drivers count GPUs in the order of their buses, so a node of more than
// eight takes the buses in that order, eight a socket. Two of its GPUs share a switch, whatever the model.
func simPlaced(m simModel, i, n int) simPlace {
	node := func(i int) int { return 2 * i / n }
	first := i // of the socket
	for first > 0 && node(first-1) == node(i) {
		first--
	}
	each, buses := m.perSwitch, simBuses
	bus := func(i int) int { return buses[i] }
	if n > maxSimulated/2 {
		each = 2
		slices.Sort(buses[:])
		bus = func(i int) int { return buses[i-first+node(i)*maxSimulated/2] }
	}
	lead := i - (i-first)%each
	return simPlace{numa: node(i), bus: bus(i), first: lead, root: bus(lead) - 6}
}

// path is the way from the root complex to the i-th GPU: a root port, a switch, and the GPU. Each switch hangs
// on a root complex of its own.
func (p simPlace) path(i int) []string {
	return []string{
		fmt.Sprintf("pci0000:%02x", p.root),
		fmt.Sprintf("0000:%02x:01.0", p.root),
		fmt.Sprintf("0000:%02x:00.0", p.root+1),
		fmt.Sprintf("0000:%02x:%02x.0", p.root+2, i-p.first),
		fmt.Sprintf("0000:%02x:00.0", p.bus),
	}
}

// Links lead to NVSwitches on all simulated boards that have any.
func (c simCard) Links(d *gpu.Device) code {
	if c.model.links == 0 {
		return errNotSupported
	}
	d.NVLinks = []gpu.NVLink{{Count: c.model.links}}
	return success
}
