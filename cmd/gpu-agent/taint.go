package main

import (
	"context"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/kube"
)

// startupTaint keeps pods off a node that registers with it until its GPUs can be given out.
const startupTaint = "gpu-agent.dev/not-ready"

const (
	taintLook  = time.Second      // between looks at whether the GPUs can be given out
	taintAgain = 10 * time.Second // after a failure
)

// runTaint takes the startup taint off once, when there is a healthy GPU that pods can get. It is never put
// back: what ails a node later is said by its labels, its condition and its capacity.
func (a *agent) runTaint(ctx context.Context, node *kube.Node) error {
	failing := false
	for {
		wait := taintLook
		if a.gives() {
			removed, err := node.Untaint(ctx, startupTaint)
			if err == nil {
				if removed {
					a.log.Info("startup taint taken off the node", "taint", startupTaint)
				}
				<-ctx.Done()
				return nil
			}
			if ctx.Err() == nil && !failing {
				a.log.Warn("startup taint not taken off the node, tried again until it is", "taint", startupTaint, "error", err)
			}
			failing, wait = true, taintAgain
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// gives reports whether pods can get a GPU of this node now.
func (a *agent) gives() bool {
	s := a.gate.Get()
	if s == nil || !s.Driver.Loaded || s.HealthyCount() == 0 {
		return false
	}
	plugin := a.now().plugin
	return plugin == nil || plugin.Status().Registered
}
