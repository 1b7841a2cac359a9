//go:build cgo

// Package generate makes CDI specs with NVIDIA's nvcdi. It calls the driver without a guard: a call may hang,
// and a function that the driver lacks ends the process. It is for a child process alone; see pkg/cdi.
package generate

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi/transform"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi/transform/root"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/gpu-agent/gpu-agent/pkg/cdi"
)

// Run reads a cdi.Request from in and writes a cdi.Result to out.
func Run(in io.Reader, out io.Writer) error {
	var q cdi.Request
	if err := json.NewDecoder(in).Decode(&q); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	result, err := generate(q)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(result)
}

func generate(q cdi.Request) (cdi.Result, error) {
	g := generator{q: q, nvml: nvml.New(nvml.WithLibraryPath(cmp.Or(q.Library, "libnvidia-ml.so.1"))), failed: map[string]string{}}
	gpus, err := g.gpus()
	if err != nil {
		return cdi.Result{}, err
	}
	all := []*specs.Spec{gpus}
	for _, class := range q.Classes {
		if devices := g.addOn(class); devices != nil {
			all = append(all, spec(class, devices))
		}
	}
	if len(q.IMEXChannels) > 0 {
		if devices := g.channels(); devices != nil {
			all = append(all, spec(cdi.ClassIMEX, devices))
		}
	}
	hosts := hostPaths(q)
	for _, s := range all {
		if err := hosts.Transform(s); err != nil {
			return cdi.Result{}, err
		}
	}
	return cdi.Result{Specs: all, Failed: g.failed}, nil
}

type generator struct {
	q      cdi.Request
	nvml   nvml.Interface
	failed map[string]string // why, by unit and class
}

func (g *generator) lib(mode nvcdi.Mode) (nvcdi.Interface, error) {
	byUUID, _ := nvcdi.NewDeviceNamer(nvcdi.DeviceNameStrategyUUID) // fails for unknown strategies alone
	byIndex, _ := nvcdi.NewDeviceNamer(nvcdi.DeviceNameStrategyIndex)
	return nvcdi.New(
		nvcdi.WithMode(mode),
		nvcdi.WithNvmlLib(g.nvml),
		nvcdi.WithDriverRoot(g.q.DriverRoot),
		nvcdi.WithDevRoot(g.q.DevRoot),
		nvcdi.WithNVIDIACDIHookPath(g.q.HostHook),
		nvcdi.WithDisabledHooks(g.q.DisabledHooks...),
		nvcdi.WithDeviceNamers(byUUID, byIndex),
	)
}

// gpus describes the units, each asked for by itself: one that fails is left out, where nvcdi's "all" would
// describe none.
func (g *generator) gpus() (*specs.Spec, error) {
	lib, err := g.lib(nvcdi.ModeNvml)
	if err != nil {
		return nil, err
	}
	var devices []specs.Device
	for _, unit := range g.q.Units {
		found, err := lib.GetDeviceSpecsByID(unit)
		if err == nil {
			err = usable(found)
		}
		if err != nil {
			g.failed[unit] = err.Error()
			continue
		}
		for _, d := range found {
			d.Annotations = cdi.UnitAnnotation(unit)
			devices = append(devices, d)
		}
	}
	common, err := lib.GetCommonEdits()
	if err != nil {
		return nil, err
	}
	s := spec(cdi.ClassGPU, devices)
	s.ContainerEdits = *common.ContainerEdits
	return s, nil
}

// usable: nvcdi leaves out device nodes that it does not see, and would describe a GPU without one.
func usable(devices []specs.Device) error {
	for _, d := range devices {
		if len(d.ContainerEdits.DeviceNodes) == 0 {
			return errors.New("it has no device node: is the host's /dev below cdi.devRoot mounted here?")
		}
	}
	return nil
}

func (g *generator) addOn(class string) []specs.Device {
	lib, err := g.lib(nvcdi.Mode(class))
	var devices []specs.Device
	if err == nil {
		devices, err = lib.GetDeviceSpecsByID("all")
	}
	if err == nil {
		err = usable(devices)
	}
	if err != nil {
		g.failed[class] = err.Error()
		return nil
	}
	return devices
}

func (g *generator) channels() []specs.Device {
	ids := make([]string, len(g.q.IMEXChannels))
	for i, channel := range g.q.IMEXChannels {
		ids[i] = strconv.Itoa(channel)
	}
	lib, err := g.lib(nvcdi.ModeImex)
	var devices []specs.Device
	if err == nil {
		devices, err = lib.GetDeviceSpecsByID(ids...)
	}
	if err != nil {
		g.failed[cdi.ClassIMEX] = err.Error()
		return nil
	}
	return devices
}

func spec(class string, devices []specs.Device) *specs.Spec {
	return &specs.Spec{Kind: cdi.Vendor + "/" + class, Devices: devices}
}

// hostPaths replaces the paths of this container by the host's, the deeper root first.
func hostPaths(q cdi.Request) transform.Transformer {
	driver := root.New(root.WithRoot(q.DriverRoot), root.WithTargetRoot(q.HostDriverRoot), root.WithRelativeTo("host"))
	if q.DevRoot == q.DriverRoot && q.HostDevRoot == q.HostDriverRoot {
		return driver
	}
	dev := root.New(root.WithRoot(devFolder(q.DevRoot)), root.WithTargetRoot(devFolder(q.HostDevRoot)), root.WithRelativeTo("host"))
	return transform.Merge(dev, driver)
}

// devFolder accepts both "/" and "/dev", as NVIDIA's tools do.
func devFolder(path string) string {
	return filepath.Join(strings.TrimSuffix(filepath.Clean(path), "/dev"), "/dev")
}
