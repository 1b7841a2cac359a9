//go:build cgo

package nvml

import (
	"maps"
	"slices"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// linkSymbols are all that it takes to know where NVLinks lead; since driver 470.
var linkSymbols = []string{"nvmlDeviceGetNvLinkState", "nvmlDeviceGetNvLinkRemoteDeviceType"}

var remoteSymbols = sym("nvmlDeviceGetNvLinkRemotePciInfo_v2", "nvmlDeviceGetNvLinkRemotePciInfo")

// Links counts the active links by where they lead. A link whose end the driver does not name is left out.
func (c *cCard) Links(d *gpu.Device) code {
	for _, name := range linkSymbols {
		if !c.driver.has(name) {
			return errFunctionNotFound
		}
	}
	count, supported := map[string]int{}, false
links:
	for link := range gonvml.NVLINK_MAX_LINKS {
		state, ret := c.handle.GetNvLinkState(link)
		switch {
		case ret == gonvml.ERROR_INVALID_ARGUMENT: // the GPU has no more
			break links
		case code(ret).unsupported():
			continue
		case ret != gonvml.SUCCESS:
			return code(ret)
		}
		supported = true
		if state != gonvml.FEATURE_ENABLED {
			continue
		}
		remote, known, ret := c.remote(link)
		if ret != gonvml.SUCCESS && !code(ret).unsupported() {
			return code(ret)
		}
		if known {
			count[remote]++
		}
	}
	if !supported {
		return errNotSupported
	}
	d.NVLinks = nil
	for _, remote := range slices.Sorted(maps.Keys(count)) {
		d.NVLinks = append(d.NVLinks, gpu.NVLink{Remote: remote, Count: count[remote]})
	}
	return success
}

// remote is the GPU at the other end of a link, or "" for an NVSwitch. Other ends, such as a processor, are
// not known.
func (c *cCard) remote(link int) (id string, known bool, ret gonvml.Return) {
	kind, ret := c.handle.GetNvLinkRemoteDeviceType(link)
	switch {
	case ret != gonvml.SUCCESS:
		return "", false, ret
	case kind == gonvml.NVLINK_DEVICE_TYPE_SWITCH:
		return "", true, ret
	case kind != gonvml.NVLINK_DEVICE_TYPE_GPU || !c.driver.has(remoteSymbols...):
		return "", false, ret
	}
	pci, ret := c.handle.GetNvLinkRemotePciInfo(link)
	return busID(pci), ret == gonvml.SUCCESS, ret
}
