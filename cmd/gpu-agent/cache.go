package main

import (
	"context"
	"errors"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/labels"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	// handover is how long another agent may hold the cache before that is a failure: during an upgrade the
	// one that goes is ended only once this one is ready.
	handover = 5 * time.Minute
	// handoverPoll is how often the lock is tried meanwhile.
	handoverPoll = 500 * time.Millisecond
)

// runCache opens the cache and runs it. A root that cannot be opened is this task's failure alone.
func (a *agent) runCache(ctx context.Context, c config.Cache, kubelet string, sources map[string]cache.Source) error {
	opened, err := a.openCache(ctx, c, kubelet, sources)
	if err != nil {
		if ctx.Err() == nil {
			a.promised.Set(&model.Inventory{}) // what cannot be opened is not promised
		}
		return err
	}
	defer func() {
		a.cache.Store(nil)
		a.inventory.Set(nil)
		if err := opened.Close(); err != nil {
			a.log.Error("close the cache", "error", err)
		}
	}()
	a.mu.Lock()
	opened.Want(a.models)
	a.needs.tell(opened)
	a.cache.Store(opened)
	a.mu.Unlock()

	relaying, stop := context.WithCancel(ctx)
	relayed := make(chan struct{})
	go func() {
		defer close(relayed)
		for {
			inventory, changed := opened.Watch()
			a.inventory.Set(inventory)
			a.promised.Set(inventory)
			select {
			case <-relaying.Done():
				return
			case <-changed:
			}
		}
	}()
	err = opened.Run(relaying)
	stop()
	<-relayed
	if ctx.Err() == nil {
		a.promised.Set(&model.Inventory{})
	}
	return err
}

func bandwidth(b config.Bandwidth) cache.Bandwidth {
	plan := cache.Bandwidth{Limit: int64(b.Limit)}
	for _, w := range b.Windows {
		plan.Windows = append(plan.Windows, cache.Window{
			From: time.Duration(w.From), To: time.Duration(w.To), Limit: int64(w.Limit), Paused: w.Paused})
	}
	return plan
}

// openCache waits for an agent that holds the cache and is about to go.
func (a *agent) openCache(ctx context.Context, c config.Cache, kubelet string, sources map[string]cache.Source) (*cache.Cache, error) {
	for {
		opened, err := cache.Open(cache.Config{
			Root: c.Root, Limit: int64(c.Limit), Streams: c.Streams, Keep: c.Keep, Refresh: time.Duration(c.Refresh),
			Bandwidth: bandwidth(c.Bandwidth),
			Scrub:     cache.Scrub{Every: time.Duration(c.Scrub.Interval), Rate: int64(c.Scrub.Rate)},
			KeepFree:  int64(c.KeepFree.Bytes), KeepFreePercent: c.KeepFree.Percent, Existing: a.cacheAt == c.Root,
			Thresholds: func() []cache.Threshold { of, _ := thresholds(c, kubelet); return of }, // said below
			Unlabelled: a.unlabelled, Log: a.log.With("part", "cache"),
		}, sources)
		if !errors.Is(err, durable.ErrLocked) {
			a.cacheHeld = time.Time{}
			if err == nil {
				a.cacheAt = c.Root
				if _, err := thresholds(c, kubelet); err != nil {
					a.log.Info("the kubelet's eviction thresholds are not known, its defaults are kept to: see cache.kubeletConfig", "error", err)
				}
			}
			return opened, err
		}
		if a.cacheHeld.IsZero() {
			a.log.Info("the cache is held by another agent: waiting until it goes", "root", c.Root)
			a.cacheHeld = time.Now()
		}
		if time.Since(a.cacheHeld) >= handover {
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
