package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ChoiceLabel is the Node's label that names the one of NVIDIA's files that holds for it, as for NVIDIA's
// config-manager.
const ChoiceLabel = "nvidia.com/device-plugin.config"

// choose is the path of the file in dir that holds for a node with that value of ChoiceLabel. A node
// without the label has the file named default, or the only one, or none (""): what NVIDIA's
// config-manager calls the fallbacks named, single and empty.
func choose(dir, choice string) (string, error) {
	names, err := Choices(dir)
	if err != nil {
		return "", err
	}
	switch {
	case choice != "" && !slices.Contains(names, choice):
		return "", fmt.Errorf("the node's label %s is %s, and there is no such file in %s: it has %s",
			ChoiceLabel, choice, dir, strings.Join(names, ", "))
	case choice != "":
	case slices.Contains(names, "default"):
		choice = "default"
	case len(names) == 1:
		choice = names[0]
	default:
		return "", nil
	}
	return filepath.Join(dir, choice), nil
}

// Choices are the names of the files in a folder of NVIDIA's files, sorted. What begins with a dot is the
// kubelet's own, where the folder is a ConfigMap.
func Choices(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(dir, e.Name())) // a ConfigMap's are symlinks
		if err == nil && info.Mode().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (c *Config) checkChoice(f *file) {
	if c.DevicePlugin.NVIDIAConfigDir == "" {
		return
	}
	f.absolute("devicePlugin.nvidiaConfigDir", c.DevicePlugin.NVIDIAConfigDir)
	switch {
	case c.DevicePlugin.NVIDIAConfig != "":
		f.wrong("devicePlugin.nvidiaConfigDir", "want nvidiaConfig or nvidiaConfigDir, not both")
	case c.Labels.Sink != "node":
		f.wrong("devicePlugin.nvidiaConfigDir", "want labels.sink node with it: the node's label is read from the API server")
	}
}
