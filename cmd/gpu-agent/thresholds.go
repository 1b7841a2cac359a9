package main

import (
	"log/slog"
	"sync"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/kube"
)

// thresholdsEvery is how often the kubelet's file is looked at while room is sought: for each member of an archive,
// where it comes to that.
const thresholdsEvery = 10 * time.Second

// kubeletDisk is what the kubelet wants free of the cache's filesystem, as of a moment ago.
type kubeletDisk struct {
	cache   config.Cache
	kubelet string // its folder
	log     *slog.Logger

	mu     sync.Mutex
	looked time.Time
	wants  []cache.Threshold
	said   string // what could not be read, as it was logged last
}

func (d *kubeletDisk) thresholds() []cache.Threshold {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.looked.IsZero() && time.Since(d.looked) < thresholdsEvery {
		return d.wants
	}
	var err error
	d.wants, err = thresholds(d.cache, d.kubelet)
	d.looked = time.Now()
	if err != nil && err.Error() != d.said {
		d.said = err.Error()
		d.log.Info("the kubelet's eviction thresholds are not known, its defaults are kept to: see cache.kubeletConfig", "error", err)
	}
	return d.wants
}

// thresholds are what the kubelet wants free of the cache's filesystem, where that is the kubelet's, whose folder
// kubelet is. Where its images are cannot be seen from here: there too, as nearly everywhere. The error is what could
// not be read, and for which its defaults are taken.
func thresholds(c config.Cache, kubelet string) ([]cache.Threshold, error) {
	if c.KubeletConfig == "" {
		return nil, nil
	}
	if shared, err := durable.SameFilesystem(c.Root, kubelet); err != nil || !shared {
		return nil, nil // no kubelet here, or on a disk of its own
	}
	found, err := kube.DiskThresholds(c.KubeletConfig, c.KubeletConfigDir)
	assumed := ""
	if err != nil {
		assumed = " (by default: its configuration file is not seen)"
	}
	var all []cache.Threshold
	for _, t := range found {
		does := "evicts pods at "
		if t.Images {
			does = "deletes images at "
		}
		all = append(all, cache.Threshold{Why: "the kubelet " + does + t.What + assumed, Inodes: t.Inodes, Percent: t.Percent, Amount: t.Amount})
	}
	return all, err
}
