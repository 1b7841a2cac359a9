package main

import (
	"context"
	"errors"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/labels"
)

const (
	// handover is how long another agent may hold the cache before that is a failure: during an upgrade the
	// one that goes is ended only once this one is ready.
	handover = 5 * time.Minute
	// handoverPoll is how often the lock is tried meanwhile.
	handoverPoll = 500 * time.Millisecond
)

// span says on which disks the cache is.
func (a *agent) span(c config.Cache) {
	if !c.Enabled {
		a.caches.Span(nil)
		return
	}
	roots := []cache.Root{{Path: c.Root}}
	for _, d := range c.Disks {
		roots = append(roots, cache.Root{Name: d.Name, Path: d.Root})
	}
	a.caches.Span(roots)
}

// runCache opens the cache of a disk and runs it. A root that cannot be opened is this task's failure alone. apart are
// the roots before it.
func (a *agent) runCache(ctx context.Context, disk string, c config.Cache, kubelet string, o origins, apart []string) error {
	for {
		err := a.runCacheOnce(ctx, disk, c, kubelet, o, apart)
		if !errors.Is(err, cache.ErrWritable) {
			return err
		}
		a.log.Info("the cache is opened again: its disk is not read-only any more", "root", c.Root)
	}
}

func (a *agent) runCacheOnce(ctx context.Context, disk string, c config.Cache, kubelet string, o origins, apart []string) error {
	opened, err := a.openCache(ctx, disk, c, kubelet, o, apart)
	if err != nil {
		if ctx.Err() == nil {
			a.caches.Down(disk, err)
		}
		return err
	}
	defer func() {
		if err := opened.Close(); err != nil {
			a.log.Error("close the cache", "error", err)
		}
	}()
	return a.caches.Run(ctx, disk, opened)
}

func bandwidth(b config.Bandwidth) cache.Bandwidth {
	plan := cache.Bandwidth{Limit: int64(b.Limit)}
	for _, w := range b.Windows {
		plan.Windows = append(plan.Windows, cache.Window{
			From: time.Duration(w.From), To: time.Duration(w.To), Limit: int64(w.Limit), Paused: w.Paused})
	}
	return plan
}

func warm(w config.Warm) cache.Warm {
	return cache.Warm{OnReady: w.OnReady, OnPod: w.OnPod, Limit: int64(w.Limit.Bytes), LimitPercent: w.Limit.Percent,
		KeepFree: int64(w.KeepFree.Bytes), KeepFreePercent: w.KeepFree.Percent}
}

// opening is what is remembered of a disk from one try to open its cache to the next, by runCache alone.
type opening struct {
	root string    // that was opened
	held time.Time // since when another agent holds it
}

func (a *agent) opening(disk string) *opening {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.opened[disk] == nil {
		a.opened[disk] = &opening{}
	}
	return a.opened[disk]
}

// openCache waits for an agent that holds the cache and is about to go.
func (a *agent) openCache(ctx context.Context, disk string, c config.Cache, kubelet string, o origins, apart []string) (*cache.Cache, error) {
	was := a.opening(disk)
	shared := &kubeletDisk{cache: c, kubelet: kubelet, log: a.log}
	for {
		opened, err := cache.Open(cache.Config{
			Root: c.Root, Limit: int64(c.Limit), Streams: c.Streams, Line: o.line, Keep: c.Keep, Refresh: time.Duration(c.Refresh),
			Scrub:    cache.Scrub{Every: time.Duration(c.Scrub.Interval), Rate: int64(c.Scrub.Rate)},
			KeepFree: int64(c.KeepFree.Bytes), KeepFreePercent: c.KeepFree.Percent, Apart: apart, Existing: was.root == c.Root,
			Thresholds: shared.thresholds,
			Warm:       warm(c.Warm), Memory: a.memory,
			Unlabelled: func(ctx context.Context, name string) error {
				if a.caches.Elsewhere(disk, name) {
					return nil
				}
				return a.unlabelled(ctx, name)
			},
			Log: a.log.With("part", diskPart(disk)),
		}, o.sources)
		if !errors.Is(err, durable.ErrLocked) {
			was.held = time.Time{}
			if err == nil {
				was.root = c.Root
			}
			return opened, err
		}
		if was.held.IsZero() {
			a.log.Info("the cache is held by another agent: waiting until it goes", "root", c.Root)
			was.held = time.Now()
		}
		if time.Since(was.held) >= handover {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(handoverPoll):
		}
	}
}

// unlabelPatience bounds the wait for a label to go. Without an API server it never goes, and a model
// must be removable all the same.
const unlabelPatience = 30 * time.Second

// unlabelled waits until the node no longer promises the named model.
func (a *agent) unlabelled(ctx context.Context, name string) error {
	if a.now().sink == nil {
		return nil
	}
	patience := time.After(unlabelPatience)
	for {
		now, changed := a.applied.Watch()
		// Before the first Apply the node may promise what an earlier run promised.
		if _, promised := now[labels.ModelKey(name)]; now != nil && !promised {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-patience:
			a.log.Warn("removing a model whose node label is still there: the labels could not be applied", "model", name)
			return nil
		}
	}
}
