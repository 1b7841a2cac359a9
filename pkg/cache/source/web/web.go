// Package web is what the sources that speak HTTP share: how they connect, what they hold an answer to,
// and how they speak of one without its secrets.
package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Transport speaks HTTP/1.1, one connection a range: HTTP/2 would put all parallel ranges on one. It has
// no total timeout: the fetcher watches the progress of each body. It keeps streams idle connections to a host.
// Requests go through proxy, as Proxy made it.
func Transport(trust *x509.CertPool, proxy func(*http.Request) (*url.URL, error), streams int) *http.Transport {
	var only1 http.Protocols
	only1.SetHTTP1(true)
	return &http.Transport{
		Proxy:                 proxy,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConns:          4 * streams,
		MaxIdleConnsPerHost:   streams,
		DisableCompression:    true, // a range of compressed bytes is not a range of the file
		Protocols:             &only1,
	}
}

// Proxy says which requests go through a proxy: with an address all but those to this machine and to what NO_PROXY
// names; without one those that the environment says, HTTPS_PROXY and so on.
func Proxy(address string) (func(*http.Request) (*url.URL, error), error) {
	if address == "" {
		return http.ProxyFromEnvironment, nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" ||
		u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" {
		return nil, errors.New("want http://host:port, https://host:port or socks5://host:port; one that asks for a login goes into HTTPS_PROXY")
	}
	given := httpproxy.FromEnvironment()
	given.HTTPProxy, given.HTTPSProxy, given.CGI = address, address, false
	choose := given.ProxyFunc()
	return func(req *http.Request) (*url.URL, error) { return choose(req.URL) }, nil
}

// Transport is one by a source's settings caFile and proxy.
func (f *Faults) Transport(caFile, proxy string, streams int) *http.Transport {
	trust, err := Roots(caFile)
	f.File("caFile", err)
	choose, err := Proxy(proxy)
	f.Add("proxy", err)
	return Transport(trust, choose, streams)
}

// Endpoint checks a source's setting endpoint, which is a server and no path on it; want says in which
// form. It is nil where it is wrong.
func (f *Faults) Endpoint(text, want string) *url.URL {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" ||
		u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		f.Wrong("endpoint", "want %s and nothing more", want)
		return nil
	}
	return u
}

// Roots is the system's trust with the certificates of file; nil, the system's, where file is "".
func Roots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: want PEM certificates, there is none in it", file)
	}
	return pool, nil
}

// Token is the one token in file. The error does not show it.
func Token(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("token file %s: want one token and nothing else", file)
	}
	return token, nil
}

// Loopback says whether host, without a port, is this machine: what is sent there cannot be overheard.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Bare is u for people: no query, which may hold a signature.
func Bare(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }

// SendError says what a request to u without an answer means.
func SendError(u *url.URL, err error) error { return NoAnswer(context.Background(), Bare(u), err) }

// NoAnswer says what a request without an answer means, or an answer that broke off; at is what was tried. Nothing of
// err is repeated that may hold an address with its query.
func NoAnswer(ctx context.Context, at string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%s: %w", at, cause)
	}
	if e, ok := errors.AsType[*model.Error](err); ok {
		return e
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &model.Error{Reason: "Untrusted", Final: true, Err: model.NetworkError(err),
			Text: at + ": the server's certificate is not trusted: correct it, or name its CA file in the config"}
	}
	return &model.Error{Reason: "Unreachable", Text: at, Err: model.NetworkError(err)}
}
