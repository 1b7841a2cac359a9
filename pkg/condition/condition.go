// Package condition is what the Node object says about its GPUs' health: one condition, GPUsHealthy,
// and an Event for each GPU whose health changed. Both carry the reason and the text of gpu.Health, the
// same words as the metrics, the status page and `gpu-agent status`.
package condition

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// Kind is the type of the Node's condition. As with Ready, True is good.
const Kind = "GPUsHealthy"

// maxMessage bounds the condition's message, in bytes: sixteen GPUs with long stories must not make
// every read of the Node longer.
const maxMessage = 1024

// The reasons of the condition, beside gpu.Reason's own for one kind of trouble.
const (
	allHealthy  = "AllHealthy"
	several     = "SeveralReasons" // the unhealthy GPUs have different ones
	noDriver    = "DriverNotLoaded"
	noGPUs      = "NoGPUs"
	statusTrue  = "True"
	statusFalse = "False"
	statusDunno = "Unknown"
)

// verdict is the condition as far as it is derived: the times are the sink's. The zero verdict is no
// condition at all.
type verdict struct {
	status, reason, message string
}

// judge is a pure function of the snapshot. Without a driver, or without one GPU, nothing is known; unless an
// operator had the driver released.
func judge(s *gpu.Snapshot) verdict {
	switch {
	case s == nil:
		return verdict{statusDunno, noDriver, "the driver was not asked yet"}
	case !s.Driver.Loaded && !released(s):
		return verdict{statusDunno, noDriver, cut(fmt.Sprintf("the driver is not loaded: %s", s.Driver.Error))}
	case len(s.Devices) == 0 && len(s.Unidentified) == 0:
		return verdict{statusDunno, noGPUs, "the driver is loaded and names no GPU"}
	}
	total := len(s.Devices) + len(s.Unidentified)
	var sick []string
	reason := ""
	for i := range s.Devices {
		d := &s.Devices[i]
		if d.Health.OK() {
			continue
		}
		sick = append(sick, describe(d))
		reason = join(reason, string(d.Health.Reason))
	}
	for _, u := range s.Unidentified {
		sick = append(sick, fmt.Sprintf("GPU %d never said who it is: %s", u.Index, u.Why))
		reason = join(reason, string(gpu.Unreadable))
	}
	if len(sick) == 0 {
		return verdict{statusTrue, allHealthy, fmt.Sprintf("%d of %d GPUs are healthy", total, total)}
	}
	message := fmt.Sprintf("%d of %d GPUs are healthy; %s", s.HealthyCount(), total, strings.Join(sick, "; "))
	return verdict{statusFalse, reason, cut(message)}
}

// released reports whether the driver is away because an operator said so. Then it is known why no GPU can be
// used, and that somebody has to act.
func released(s *gpu.Snapshot) bool {
	return slices.ContainsFunc(s.Devices, func(d gpu.Device) bool { return d.Health.Reason == gpu.Released })
}

// join is the reason of two GPUs together.
func join(a, b string) string {
	if a == "" || a == b {
		return b
	}
	return several
}

// describe is one sick GPU in one line.
func describe(d *gpu.Device) string {
	line := fmt.Sprintf("GPU %d (%s): %s: %s", d.Index, d.UUID, d.Health.Reason, d.Health.Text)
	if d.Health.Needs != gpu.NoRemedy {
		line += ", needs " + string(d.Health.Needs)
	}
	return line
}

func cut(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	const more = " …"
	end := maxMessage - len(more)
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + more
}
