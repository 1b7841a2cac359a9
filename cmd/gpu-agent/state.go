package main

import (
	"time"

	"github.com/gpu-agent/gpu-agent/internal/supervise"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// state is all that the agent knows at one moment: /debug/snapshot, the page and `status` show it.
type state struct {
	Version  string                    `json:"version"`
	Node     string                    `json:"node"`
	Started  time.Time                 `json:"started"`
	Config   configState               `json:"config"`
	Tasks    map[string]supervise.Task `json:"tasks"`
	Snapshot *gpu.Snapshot             `json:"snapshot"`

	// Allocation is how pods get GPUs: by the device plugin, or by somebody else (none).
	Allocation string           `json:"allocation"`
	Offers     []resource.Offer `json:"offers"`
	Problems   []string         `json:"problems,omitempty"` // what of the configuration cannot hold on this node
	Plugin     *pluginState     `json:"plugin,omitempty"`   // nil: the device plugin is off
	CDIError   string           `json:"cdiError,omitempty"` // why no CDI specs could be written

	// Owners holds who uses each GPU, as the kubelet says; PodsKnown is false when it does not answer.
	Owners    map[gpu.UUID][]resource.Owner `json:"owners,omitempty"`
	PodsKnown bool                          `json:"podsKnown"`

	Cache  *model.Inventory  `json:"cache,omitempty"` // nil: the cache is off or not open
	Labels map[string]string `json:"labels"`
	// Foreign are label keys that somebody else owns and that are left alone.
	Foreign []string `json:"foreignLabels,omitempty"`
}

// configState says whether the file in force is the file on disk.
type configState struct {
	File  string `json:"file,omitempty"`
	Error string `json:"error,omitempty"` // of the newest file, which is then not in force
}

type pluginState struct {
	Registered  bool      `json:"registered"`
	Since       time.Time `json:"since,omitzero"`
	Error       string    `json:"error,omitempty"`
	Allocations uint64    `json:"allocations"`
}

// ready says of each part why it is not ready; "" is ready.
func (s *state) ready() map[string]string {
	parts := map[string]string{"driver": "", "config": s.Config.Error}
	if !s.Snapshot.Driver.Loaded {
		parts["driver"] = "not loaded: " + s.Snapshot.Driver.Error
	}
	for name, task := range s.Tasks {
		parts[name] = task.Error
		if !task.Up && task.Error == "" {
			parts[name] = "not running"
		}
	}
	if _, asked := s.Tasks["pods"]; asked && !s.PodsKnown && parts["pods"] == "" {
		parts["pods"] = "the kubelet does not say which pod holds which GPU: see podResources.socket"
	}
	// Without a driver there is nothing to register, and the part of that name has said so.
	registers := s.Snapshot.Driver.Loaded || s.Snapshot.Driver.Error == gpu.NotAsked
	if s.Plugin != nil && !s.Plugin.Registered && registers && parts["deviceplugin"] == "" {
		parts["deviceplugin"] = "not registered with the kubelet: " + s.Plugin.Error
	}
	if s.CDIError != "" && parts["cdi"] == "" {
		parts["cdi"] = s.CDIError
	}
	return parts
}

// Holders are the pods that use a GPU, for people.
func (s *state) Holders(id gpu.UUID) string {
	text := ""
	for i, o := range s.Owners[id] {
		if i > 0 {
			text += ", "
		}
		text += o.Namespace + "/" + o.Pod
	}
	return text
}

// memoryUsed is how much of its memory a device uses, for people.
func memoryUsed(st *gpu.Stats) string {
	if st == nil || st.MemoryUsed == nil {
		return "-"
	}
	return model.FormatBytes(*st.MemoryUsed)
}

func formatAge(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Truncate(time.Second).String()
}
