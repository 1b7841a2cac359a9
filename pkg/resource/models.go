package resource

import (
	"path"
	"slices"
	"strings"
)

// modelsVariable tells a container where the models are. The hub's own HF_HUB_CACHE is left to the pod: set
// for every GPU container, it would send the downloads of those that fetch for themselves to a read-only folder.
const modelsVariable = "MODEL_CACHE_DIR"

// ModelsDisk is the folder of models of a further disk.
type ModelsDisk struct {
	Name     string
	HostPath string // the same here
	Point    string // on which it is mounted, as the agent sees it in the first folder
}

// modelsEdits mount the models. A pod that mounts something there itself, or sets the variable, wins: the
// kubelet puts what the pod asks for after what the plugin gives.
func (p Policy) modelsEdits(e *Edits) {
	if p.cfg.Models == "" {
		return
	}
	e.Env[modelsVariable] = p.cfg.ModelsPath
	e.Mounts = append(e.Mounts, Mount{HostPath: p.cfg.Models, ContainerPath: p.cfg.ModelsPath, ReadOnly: true})
	for _, d := range p.cfg.ModelsDisks {
		// With a disk that is gone, or nothing to mount it on, the container would not start.
		if p.cfg.Exists(d.HostPath) && p.cfg.Exists(d.Point) {
			e.Mounts = append(e.Mounts, Mount{HostPath: d.HostPath, ContainerPath: path.Join(p.cfg.ModelsPath, "disks", d.Name), ReadOnly: true})
		}
	}
}

// modelsFaults refuse a place where the mount would hide what a container needs to start.
func (c *Config) modelsFaults(f *Faults) {
	const such = "want a clean absolute path in the container, such as /models"
	if !path.IsAbs(c.ModelsPath) || path.Clean(c.ModelsPath) != c.ModelsPath || strings.ContainsAny(c.ModelsPath, ":,") {
		f.add("injectModelsMount.path", "%q: "+such, c.ModelsPath)
		return
	}
	first, rest, _ := strings.Cut(c.ModelsPath[1:], "/")
	hidden := []string{"bin", "boot", "etc", "home", "lib", "lib32", "lib64", "opt", "root", "sbin", "tmp", "usr", "var", "run"}
	if slices.Contains([]string{"", "dev", "proc", "sys"}, first) || rest == "" && slices.Contains(hidden, first) {
		f.add("injectModelsMount.path", "%q: it would hide what containers need there: "+such, c.ModelsPath)
	}
}
