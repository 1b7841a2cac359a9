package cdi

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Config is where the driver is and what is described. The zero value is a driver that is installed on the
// host itself, whose root is mounted at /driver-root.
type Config struct {
	Dir string // the folder that the runtime reads; default /var/run/cdi

	DriverRoot      string // on the host; default "/"
	DevRoot         string // on the host, holds dev/; default DriverRoot
	DriverRootMount string // where DriverRoot is mounted here; default "/driver-root"
	DevRootMount    string // where DevRoot is mounted here; default DriverRootMount

	// Hook is the path on the host of nvidia-cdi-hook or nvidia-ctk, which the runtime calls for each
	// container; default the first of hooks that is there.
	Hook          string
	DisabledHooks []string // names of nvcdi's hooks that are left out
	Library       string   // of the driver, as nvml.Config has it

	Classes      []string // ClassGDS, ClassMOFED, ClassGDRCopy
	IMEXChannels []int

	Generator Generator // required
	Version   string    // of the agent: another one writes the specs anew
	Changed   func()    // if set, is told when Missing may answer otherwise; it must not block
	Log       *slog.Logger

	Deadline time.Duration // of one generation; default 30 s: the first NVML call after boot can take several
}

// hooks are where NVIDIA's packages and its toolkit container put them.
var hooks = []string{ // read-only
	"/usr/bin/nvidia-cdi-hook", "/usr/bin/nvidia-ctk",
	"/usr/local/nvidia/toolkit/nvidia-cdi-hook", "/usr/local/nvidia/toolkit/nvidia-ctk",
}

// hookNames are the hooks that nvcdi 1.20 writes into specs; it ignores names that it does not know.
var hookNames = []string{ // read-only
	"apply-cuda-memory-limits", "create-symlinks", "disable-device-node-modification",
	"enable-cuda-compat", "update-application-profile", "update-ldcache",
}

// finished is cfg with its defaults; its errors are for the administrator.
func (c Config) finished() (Config, error) {
	c.Dir = cmp.Or(c.Dir, "/var/run/cdi")
	c.DriverRoot = cmp.Or(c.DriverRoot, "/")
	c.DevRoot = cmp.Or(c.DevRoot, c.DriverRoot)
	c.DriverRootMount = cmp.Or(c.DriverRootMount, "/driver-root")
	c.DevRootMount = cmp.Or(c.DevRootMount, c.DriverRootMount)
	c.Deadline = cmp.Or(c.Deadline, 30*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, p := range []string{c.Dir, c.DriverRoot, c.DevRoot, c.DriverRootMount, c.DevRootMount, cmp.Or(c.Hook, "/")} {
		if !filepath.IsAbs(p) {
			return c, fmt.Errorf("path %q: want an absolute path", p)
		}
	}
	if c.DevRoot != c.DriverRoot && c.DevRootMount == c.DriverRootMount {
		return c, fmt.Errorf("devRoot %q is not driverRoot %q: want devRootMount too, where it is mounted here", c.DevRoot, c.DriverRoot)
	}
	for _, class := range c.Classes {
		if !slices.Contains([]string{ClassGDS, ClassMOFED, ClassGDRCopy}, class) {
			return c, fmt.Errorf("class %q: want %s, %s or %s", class, ClassGDS, ClassMOFED, ClassGDRCopy)
		}
	}
	for _, name := range c.DisabledHooks {
		if !slices.Contains(hookNames, name) {
			return c, fmt.Errorf("disabledHooks: %q: want some of %s", name, strings.Join(hookNames, ", "))
		}
	}
	if c.Generator == nil {
		return c, errors.New("no generator")
	}
	return c, nil
}

// hook is the hook's path on the host, once it is seen there.
func (c Config) hook() (string, error) {
	candidates := hooks
	if c.Hook != "" {
		candidates = []string{c.Hook}
	}
	for _, path := range candidates {
		if info, err := os.Stat(c.here(path)); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	if c.Hook != "" {
		return "", fmt.Errorf("hook %s is not an executable file of the host (looked at %s): install NVIDIA's container toolkit, or set cdi.hook", c.Hook, c.here(c.Hook))
	}
	return "", fmt.Errorf("none of %v is on the host (looked at %s, …): install NVIDIA's container toolkit, or set cdi.hook", hooks, c.here(hooks[0]))
}

// here is where a path of the host can be seen. A driver container's root is not the host's: the hook must
// then be mounted here under its path of the host.
func (c Config) here(path string) string {
	switch "/" {
	case c.DriverRoot:
		return filepath.Join(c.DriverRootMount, path)
	case c.DevRoot:
		return filepath.Join(c.DevRootMount, path)
	}
	return path
}
