package az

import (
	"context"
	"errors"
	"net"
	"net/http"
)

// DialMetadata has s look for the node's metadata service at addr.
func DialMetadata(s *Source, addr string) {
	s.identity.local.Transport = dialTo(addr)
}

// DialAzure has s take addr, on this machine, for every server of Azure. What it serves must be trusted.
func DialAzure(s *Source, addr string) {
	t := transport(s)
	t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

// DialFails has s reach nobody.
func DialFails(s *Source, err error) {
	transport(s).DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, err }
}

func transport(s *Source) *http.Transport { return s.client.Transport.(*http.Transport) }

func dialTo(addr string) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, to string) (net.Conn, error) {
		if to != "169.254.169.254:80" {
			return nil, errors.New(to)
		}
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}}
}

// TrustAs has s take every server for name, whose certificate it has to have.
func TrustAs(s *Source, name string) { transport(s).TLSClientConfig.ServerName = name }
