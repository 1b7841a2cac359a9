package deviceplugin

import (
	"fmt"
	"slices"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// farewell is how long a resource that is no longer offered stays registered: the kubelet is sent an empty
// list first, so that its capacity is 0 at once. Without that its devices would stay in the node's status
// as unhealthy ones for the five minutes that a kubelet waits for a plugin to come back.
const farewell = time.Second

// learn follows what is offered. Nothing is announced before a driver was there. What is no longer
// offered, because of a new policy or because GPUs were split anew, leaves after its farewell; pods that
// hold units of it run on. But as long as the policy is the same and nothing else is offered, what there
// was stays registered: what became of it is said on its streams.
func (p *Plugin) learn(policy resource.Policy, s *gpu.Snapshot, now time.Time) {
	// While an operator has the driver released it is known which GPUs there are, also to an agent that starts then.
	if s == nil || !s.Driver.Loaded && !released(s) {
		return
	}
	p.tell(policy.Problems(s))
	var offered []string // sorted, as Offers are
	for _, o := range policy.Offers(s) {
		offered = append(offered, o.Resource)
	}
	if p.edited || len(offered) > 0 {
		p.known, p.edited = offered, false
	}
	for name := range p.endpoints {
		if slices.Contains(p.known, name) {
			delete(p.leaving, name)
		} else if p.leaving[name].IsZero() {
			p.leaving[name] = now
		}
	}
	for name, since := range p.leaving {
		if now.Sub(since) < farewell && p.endpoints[name] != nil {
			continue
		}
		delete(p.leaving, name)
		if p.endpoints[name] != nil {
			p.cfg.Log.Info("not offered any more", "resource", name)
			p.drop(name)
		}
	}
}

// waiting says why there is nothing to register.
func (p *Plugin) waiting(s *gpu.Snapshot) error {
	switch {
	case s == nil || s.Driver.Loaded && len(s.Devices) == 0:
		return errNoDevices
	case !s.Driver.Loaded && s.Driver.Error != "":
		return fmt.Errorf("%w: driver not loaded: %s", errNoDevices, s.Driver.Error)
	case s.Driver.Loaded && len(p.problems) > 0:
		return fmt.Errorf("%w: %s", errNoneOffered, p.problems[0])
	case s.Driver.Loaded:
		return errNoneOffered
	}
	return errNoDevices
}

// missing reports whether a known resource is not registered.
func (p *Plugin) missing() bool {
	return slices.ContainsFunc(p.known, func(name string) bool { return p.endpoints[name] == nil })
}

// wait is how long to wait for a sign, at most next.
func (p *Plugin) wait(next time.Duration) time.Duration {
	if len(p.leaving) > 0 {
		return min(next, farewell)
	}
	return next
}

// tell logs what of the configuration cannot hold on this node, each line once while it is so.
func (p *Plugin) tell(problems []string) {
	for _, problem := range problems {
		if !slices.Contains(p.problems, problem) {
			p.cfg.Log.Warn("not as configured", "problem", problem)
		}
	}
	p.problems = problems
}

func released(s *gpu.Snapshot) bool {
	return slices.ContainsFunc(s.Devices, func(d gpu.Device) bool { return d.Health.Reason == gpu.Released })
}
