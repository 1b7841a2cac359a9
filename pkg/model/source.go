package model

import (
	"errors"
	"fmt"
	"time"
)

// Error is a failure of an origin or of a model's content that a person can act on.
type Error struct {
	Reason string // bounded code, CamelCase: "NotFound", "Forbidden", "WrongDigest", "RangeIgnored", …
	Text   string // what, where and what to do; no secrets
	Final  bool   // trying again cannot help until somebody changes something
	Err    error  // the cause, if any
	// RetryAfter is how long the origin asked to be left alone; 0 where it did not say.
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Text
	}
	return fmt.Sprintf("%s: %v", e.Text, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// ReasonOf is the Reason of the first *Error in err's chain, or "Failed".
func ReasonOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return "Failed"
}

// IsFinal reports whether err says that trying again cannot help.
func IsFinal(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Final
}

// RetryAfter is how long the origin of err asked to be left alone; 0 where it did not say.
func RetryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.RetryAfter
	}
	return 0
}
