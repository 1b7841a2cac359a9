package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// unfitError is an edit that is well formed and that this node cannot follow as it is now: what it names is not
// here, or something is in the way. The node may change, so the edit is tried again.
type unfitError struct{ err error }

func (e *unfitError) Error() string {
	return e.err.Error() + "; the configuration before it stays in force"
}
func (e *unfitError) Unwrap() error { return e.err }

// retry is when an edit that ended with err is to be tried again; nil is never.
func (a *agent) retry(err error) <-chan time.Time {
	if unfit := (*unfitError)(nil); errors.As(err, &unfit) {
		return time.After(a.unfitRetry)
	}
	return nil
}

// canFollow reports what of an edit this node cannot follow and of the configuration in force it could. With such an
// edit in force pods would lose what they are offered now. The first configuration of an agent has none before it to
// stay in force: of that all that fits is offered, and the rest is shown.
func (a *agent) canFollow(w, before *wiring, policy resource.Policy) error {
	if a.group == nil || w.config.Allocation != config.AllocateByPlugin {
		return nil
	}
	if w.monitor == before.monitor { // the GPUs that another would see are not known yet
		s, _ := w.monitor.Watch()
		had := a.policy.Get().Unfit(s)
		for _, problem := range policy.Unfit(s) {
			if !slices.Contains(had, problem) {
				return &unfitError{fmt.Errorf("devicePlugin: %s", problem)}
			}
		}
	}
	if w.daemons != nil && w.daemons != before.daemons && (before.daemons == nil || before.daemons.Check() == nil) {
		if err := w.daemons.Check(); err != nil {
			return &unfitError{fmt.Errorf("devicePlugin: sharing.mps: %w", err)}
		}
	}
	if w.specs != nil && w.specs != before.specs && (before.specs == nil || before.specs.Check() == nil) {
		if err := w.specs.Check(); err != nil {
			return &unfitError{fmt.Errorf("cdi: %w", err)}
		}
	}
	return nil
}
