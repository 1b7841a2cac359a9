package main

import (
	"context"
	"os"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin/kubelettest"
)

type kubeletKey struct{}

// kubelet start makes DIR and runs a kubelet in it that knows nothing, in place of the one before; kubelet has N HEALTHY
// waits until it was told of N units, HEALTHY of which may be given to pods.
func kubelet(ts *testscript.TestScript, neg bool, args []string) {
	running, _ := ts.Value(kubeletKey{}).(**kubelettest.Kubelet)
	switch {
	case !neg && len(args) == 2 && args[0] == "start":
		if *running != nil {
			(*running).Stop()
		} else {
			ts.Defer(func() { (*running).Stop() })
		}
		dir := ts.MkAbs(args[1])
		ts.Check(os.MkdirAll(dir, 0o755))
		*running = kubelettest.New(dir)
		ts.Check((*running).Start())
	case !neg && len(args) == 3 && args[0] == "has":
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		healthy, err := strconv.Atoi(args[2])
		ts.Check(err)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		s, err := (*running).Wait(ctx, func(s kubelettest.State) bool {
			return s.Streams > 0 && len(s.Devices) == n && s.Healthy() == healthy
		})
		if err != nil {
			ts.Fatalf("%v: %d units, %d healthy, %d streams", err, len(s.Devices), s.Healthy(), s.Streams)
		}
	default:
		ts.Fatalf("usage: kubelet start DIR | kubelet has N HEALTHY")
	}
}
