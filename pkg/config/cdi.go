package config

import (
	"cmp"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// CDI is how CDI specs are written; its zero value writes none.
type CDI struct {
	Enabled         bool     `yaml:"enabled"`
	Dir             string   `yaml:"dir"`
	DriverRoot      string   `yaml:"driverRoot"`
	DriverRootMount string   `yaml:"driverRootMount"`
	DevRoot         string   `yaml:"devRoot"`
	DevRootMount    string   `yaml:"devRootMount"`
	Hook            string   `yaml:"hook"`
	DisabledHooks   []string `yaml:"disabledHooks"`
}

// checkCDI refuses what would write specs that nobody names, or name devices that nobody describes.
func (c *Config) checkCDI(f *file) {
	if !c.CDI.Enabled {
		return
	}
	f.absolute("cdi.dir", c.CDI.Dir)
	f.absolute("cdi.driverRoot", c.CDI.DriverRoot)
	f.absolute("cdi.driverRootMount", c.CDI.DriverRootMount)
	f.absolute("cdi.devRoot", cmp.Or(c.CDI.DevRoot, "/"))
	f.absolute("cdi.devRootMount", cmp.Or(c.CDI.DevRootMount, "/"))
	f.absolute("cdi.hook", cmp.Or(c.CDI.Hook, "/"))
	d := c.DevicePlugin
	switch {
	case c.NVML.Simulate.On():
		f.wrong("cdi.enabled", "want false with nvml.simulate: made-up GPUs have no device nodes")
	case c.Allocation != AllocateByPlugin || !slices.ContainsFunc(d.Strategies, func(s string) bool { return strings.HasPrefix(s, "cdi-") }):
		f.wrong("cdi.enabled", "want cdi-cri or cdi-annotations in devicePlugin.strategies, and allocation device-plugin: without it nothing names the devices that are described")
	case d.CDIKind != "" && d.CDIKind != resource.OwnCDIKind:
		f.wrong("devicePlugin.cdiKind", "want none, or %s, with cdi.enabled: that is what the specs describe", resource.OwnCDIKind)
	}
}
