package kube

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Threshold is how little may be free of a disk before the kubelet evicts pods or deletes images.
type Threshold struct {
	What    string  // for people: nodefs.available<10%
	Images  bool    // images are deleted; else pods are evicted
	Inodes  bool    // not bytes
	Percent float64 // of the disk; 0 where Amount says it
	Amount  int64   // bytes or inodes
}

// diskSignals are what pods are evicted for that has to do with disks, and the kubelet's default for it.
var diskSignals = map[string]string{
	"nodefs.available": "10%", "nodefs.inodesFree": "5%", "imagefs.available": "15%", "imagefs.inodesFree": "5%",
}

const defaultImageGCHighPercent = 85

// thresholdsFile is what of a KubeletConfiguration (kubelet.config.k8s.io/v1beta1) has to do with disks.
type thresholdsFile struct {
	Hard        map[string]string `yaml:"evictionHard"`
	Soft        map[string]string `yaml:"evictionSoft"`
	Merge       bool              `yaml:"mergeDefaultEvictionSettings"`
	ImageGCHigh int               `yaml:"imageGCHighThresholdPercent"`
}

// DiskThresholds are those of the kubelet's configuration, as its flags --config and --config-dir name it; dir may
// be "". What cannot be read counts as if it were not there, which is the kubelet's defaults, and is the error.
func DiskThresholds(file, dir string) (thresholds []Threshold, err error) {
	c := thresholdsFile{ImageGCHigh: defaultImageGCHighPercent}
	if err = c.read(file); err != nil {
		c = thresholdsFile{ImageGCHigh: defaultImageGCHighPercent}
	}
	if c.Hard == nil { // as the kubelet does before it looks into the folder
		c.Hard = maps.Clone(diskSignals)
	}
	if dir != "" {
		err = errors.Join(err, c.readDir(dir))
	}
	if c.Merge {
		for signal, value := range diskSignals {
			if _, set := c.Hard[signal]; !set {
				c.Hard[signal] = value
			}
		}
	}
	for _, statements := range []map[string]string{c.Hard, c.Soft} {
		for _, signal := range slices.Sorted(maps.Keys(statements)) {
			if _, ofDisk := diskSignals[signal]; !ofDisk {
				continue
			}
			t, wrong := parseThreshold(signal, statements[signal])
			if wrong != nil {
				err = errors.Join(err, wrong)
			} else if t != (Threshold{}) {
				thresholds = append(thresholds, t)
			}
		}
	}
	if c.ImageGCHigh > 0 && c.ImageGCHigh < 100 {
		thresholds = append(thresholds, Threshold{What: fmt.Sprintf("imageGCHighThresholdPercent %d", c.ImageGCHigh), Images: true, Percent: float64(100 - c.ImageGCHigh)})
	}
	return thresholds, err
}

// read takes in a file. Keys of a map that it does not name stay.
func (c *thresholdsFile) read(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(data, c); err != nil {
		return fmt.Errorf("%s is not a KubeletConfiguration: %w", path, err)
	}
	return nil
}

// readDir takes in the drop-ins of a folder, in the order of their names.
func (c *thresholdsFile) readDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".conf") {
			errs = append(errs, c.read(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// parseThreshold reads a value as the kubelet does: 0% and 100% are none, the zero Threshold.
func parseThreshold(signal, value string) (Threshold, error) {
	t := Threshold{What: signal + "<" + value, Inodes: strings.HasSuffix(signal, ".inodesFree")}
	if number, isPercent := strings.CutSuffix(value, "%"); isPercent {
		percent, err := strconv.ParseFloat(number, 64)
		if err != nil || !(percent >= 0 && percent <= 100) {
			return Threshold{}, fmt.Errorf("the kubelet's threshold %s: want 0%% to 100%%", t.What)
		}
		if percent == 0 || percent == 100 {
			return Threshold{}, nil
		}
		t.Percent = percent
		return t, nil
	}
	q, err := resource.ParseQuantity(value)
	if err != nil || q.Sign() <= 0 {
		return Threshold{}, fmt.Errorf("the kubelet's threshold %s: want a share such as 10%% or a quantity such as 10Gi", t.What)
	}
	t.Amount = q.Value()
	return t, nil
}
