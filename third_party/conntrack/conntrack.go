// Package conntrack stands in for github.com/mwitkow/go-conntrack, by a replace directive in go.mod: a dialer
// without its tracing.
//
// prometheus/common/config, which exporter-toolkit needs, imports that module for HTTP clients; the agent
// makes none of them. The real one imports golang.org/x/net/trace, which registers pages made by html/template,
// and a program that can run templates keeps every exported method of every type: 9 MB of 34, most of
// it operations of S3 that nothing calls, resident on every node.
package conntrack

import (
	"context"
	"net"
)

type dial = func(context.Context, string, string) (net.Conn, error)

// Option changes the dial function that NewDialContextFunc returns.
type Option func(dial) dial

// DialWithTracing would trace each dial with golang.org/x/net/trace; here it changes nothing.
func DialWithTracing() Option { return same }

// DialWithName would name the dialer in metrics; here it changes nothing.
func DialWithName(string) Option { return same }

// DialWithDialContextFunc dials with f.
func DialWithDialContextFunc(f dial) Option { return func(dial) dial { return f } }

func same(d dial) dial { return d }

// NewDialContextFunc is net.Dialer's DialContext as the options change it.
func NewDialContextFunc(options ...Option) dial {
	d := (&net.Dialer{}).DialContext
	for _, change := range options {
		d = change(d)
	}
	return d
}
