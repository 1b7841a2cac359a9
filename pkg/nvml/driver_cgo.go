//go:build cgo

package nvml

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/dl"
	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// defaultLibrary is the soname that every driver package installs.
const defaultLibrary = "libnvidia-ml.so.1"

// newDriver is the driver behind libnvidia-ml, empty meaning the default search path.
func newDriver(library string) driver {
	if library == "" {
		library = defaultLibrary
	}
	return &cDriver{name: library}
}

// cDriver loads libnvidia-ml and keeps it: the dynamic linker marks a library that the executable was bound
// to as never to be unloaded, so dlclose would change nothing.
type cDriver struct {
	name string

	mu      sync.Mutex // one Open at a time
	api     gonvml.Interface
	symbols map[string]bool
	path    string
	file    os.FileInfo // of path when it was loaded
	worked  bool        // it was initialised once
}

func (d *cDriver) library() string { return d.name }

func (d *cDriver) loaded() bool {
	if !d.mu.TryLock() {
		return true // it is being opened, which may take for ever
	}
	defer d.mu.Unlock()
	return d.api != nil
}

func (d *cDriver) Open() (session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.api == nil {
		if err := d.load(); err != nil {
			return nil, err
		}
	}
	if c := code(d.api.Init()); c != success {
		// In a container the file stays: the runtime mounted it when the container was made, and mounts the new one
		// with the next. A library that never worked is waited for: this process would only be the next of many.
		if c == errLibVersionMismatch && (d.worked || d.replaced()) {
			return nil, ErrLibraryReplaced
		}
		return nil, fmt.Errorf("initialise %s: %s", d.path, c.explain())
	}
	d.worked = true
	return &cSession{d}, nil
}

// load opens the library and looks its symbols up. A function that the library lacks kills the process when
// it is called (go-nvml links lazily), so none is called that was not found here.
func (d *cDriver) load() error {
	lib := dl.New(d.name, dl.RTLD_LAZY|dl.RTLD_GLOBAL)
	if err := lib.Open(); err != nil {
		return fmt.Errorf("load the NVIDIA driver library: %w", err)
	}
	symbols := map[string]bool{}
	for _, name := range symbolNames {
		symbols[name] = lib.Lookup(name) == nil
	}
	d.symbols = symbols
	for _, need := range [][]string{
		{"nvmlInit_v2", "nvmlInit"}, {"nvmlShutdown"},
		{"nvmlDeviceGetCount_v2", "nvmlDeviceGetCount"},
		{"nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex"},
		{"nvmlDeviceGetUUID"}, {"nvmlDeviceGetName"},
		{"nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetPciInfo_v2", "nvmlDeviceGetPciInfo"},
	} {
		if !d.has(need...) {
			return errors.Join(fmt.Errorf("%s is no usable NVIDIA driver library: it has no %s", d.name, need[0]), lib.Close())
		}
	}
	d.path = d.name
	if path, err := lib.Path(); err == nil {
		d.path = path
	}
	if info, err := os.Stat(d.path); err == nil {
		d.file = info
	}
	d.api = gonvml.New(gonvml.WithLibraryPath(d.name))
	return nil
}

// has reports whether the library has one of the versions of a function. go-nvml picks the newest itself.
func (d *cDriver) has(versions ...string) bool {
	for _, v := range versions {
		if d.symbols[v] {
			return true
		}
	}
	return false
}

// replaced reports whether the library's file is no longer the one that was loaded.
func (d *cDriver) replaced() bool {
	info, err := os.Stat(d.path)
	return err == nil && d.file != nil && (!os.SameFile(info, d.file) || !info.ModTime().Equal(d.file.ModTime()))
}

// cSession is an initialised NVML.
type cSession struct{ driver *cDriver }

func (s *cSession) Driver() gpu.Driver {
	var d gpu.Driver
	api := s.driver.api
	if s.driver.has("nvmlSystemGetDriverVersion") {
		if v, c := api.SystemGetDriverVersion(); c == gonvml.SUCCESS {
			d.Version = v
		}
	}
	if s.driver.has("nvmlSystemGetNVMLVersion") {
		if v, c := api.SystemGetNVMLVersion(); c == gonvml.SUCCESS {
			d.NVMLVersion = v
		}
	}
	if s.driver.has("nvmlSystemGetCudaDriverVersion") {
		if v, c := api.SystemGetCudaDriverVersion(); c == gonvml.SUCCESS {
			d.CUDAVersion = v
		}
	}
	return d
}

func (s *cSession) Count() (int, code) {
	n, c := s.driver.api.DeviceGetCount()
	return n, code(c)
}

func (s *cSession) GPU(index int) (card, code) {
	h, c := s.driver.api.DeviceGetHandleByIndex(index)
	if c != gonvml.SUCCESS {
		return nil, code(c)
	}
	return &cCard{driver: s.driver, handle: h}, success
}

func (s *cSession) Close() { s.driver.api.Shutdown() }
