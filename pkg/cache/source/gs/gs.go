// Package gs reads models from Google Cloud Storage by its JSON API.
//
// The API is four fields of one listing and one read, so it is spoken here: Google's client would bring
// gRPC's cloud balancers and OpenTelemetry with it. Reads are pinned by generation.
package gs

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Config is how Cloud Storage is reached. The zero value is Google's, with the credentials of the default chain.
type Config struct {
	Endpoint        string   // http(s)://host[:port]; "" for https://storage.googleapis.com
	Anonymous       bool     // send no token: public buckets
	CredentialsFile string   // a service account's key or a workload identity's description, JSON, read anew for each request; "" for the default chain
	CAFile          string   // PEM certificates to trust beside the system's; "" for none
	Proxy           string   // http://host:port of a proxy to the store; "" for what the environment says
	Mirrors         []string // addresses below which other servers have the objects, at bucket/key: see web.ObjectMirrors
	UserAgent       string   // "" means gpu-agent
	Streams         int      // idle connections kept; 0 means 64
}

// Source reads scheme gs. Safe for concurrent use.
type Source struct {
	base      string // the endpoint, without a slash at its end
	userAgent string
	client    *http.Client
	mirrors   *web.ObjectMirrors
	login     *login // nil where anonymous
}

// New checks the configuration and the files it names. It opens no connection.
func New(c Config) (*Source, error) {
	if c.Endpoint == "" {
		c.Endpoint = "https://storage.googleapis.com"
	}
	var faults web.Faults
	u := faults.Endpoint(c.Endpoint, "http(s)://host[:port]")
	switch {
	case u == nil, c.Anonymous:
	case u.Scheme == "http" && !web.Loopback(u.Hostname()):
		faults.Wrong("endpoint", "%s: credentials are not sent over plain http: use https, or say that the buckets are anonymous", c.Endpoint)
	case c.CredentialsFile == "" && u.Hostname() != "googleapis.com" && !strings.HasSuffix(u.Hostname(), ".googleapis.com"):
		faults.Wrong("endpoint", "%s: the node's own Google token goes to Google alone: name a credentials file, or say that the buckets are anonymous", c.Endpoint)
	}
	if c.Streams <= 0 {
		c.Streams = 64
	}
	if c.UserAgent == "" {
		c.UserAgent = "gpu-agent"
	}
	transport := faults.Transport(c.CAFile, c.Proxy, c.Streams)
	mirrors, wrong := web.NewObjectMirrors(c.Mirrors, transport, c.UserAgent)
	faults = append(faults, wrong...)
	switch {
	case c.CredentialsFile == "":
	case c.Anonymous:
		faults.Wrong("credentialsFile", "%s is not used when anonymous: remove one of the two", c.CredentialsFile)
	default:
		text, err := readCredentials(c.CredentialsFile)
		if err == nil {
			_, err = parse(context.Background(), c.CredentialsFile, text)
		}
		faults.File("credentialsFile", err)
	}
	if err := faults.Of("gs"); err != nil {
		return nil, err
	}
	s := &Source{base: u.Scheme + "://" + u.Host, userAgent: c.UserAgent, mirrors: mirrors, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // tokens stay here
	}}
	if c.Anonymous {
		return s, nil
	}
	s.login = &login{file: c.CredentialsFile, client: &http.Client{
		Transport: s.client.Transport, Timeout: 30 * time.Second, CheckRedirect: s.client.CheckRedirect,
	}}
	return s, nil
}

// CloseIdle closes the connections that are kept for the next request.
func (s *Source) CloseIdle() { s.client.CloseIdleConnections() }

// get asks for path, below the bucket of ref, and returns answers of status 200 and 206 alone. Errors
// say what was tried. A header is that of a read.
func (s *Source) get(ctx context.Context, ref model.Ref, what, path string, query url.Values, header http.Header) (*http.Response, error) {
	at := fmt.Sprintf("%s: %s%s", ref, what, s.where())
	address := s.base + "/storage/v1/b/" + url.PathEscape(ref.Host) + "/o" + path + "?" + query.Encode()
	for again := false; ; again = true {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, &model.Error{Reason: "BadSource", Final: true, Text: at + ": not an address"}
		}
		maps.Copy(req.Header, header)
		req.Header.Set("Accept-Encoding", "identity")
		req.Header.Set("User-Agent", s.userAgent)
		token := ""
		if s.login != nil {
			if token, err = s.login.token(ctx); err != nil {
				return nil, web.NoAnswer(ctx, at, err)
			}
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := s.client.Do(req)
		if err != nil {
			return nil, web.NoAnswer(ctx, at, err)
		}
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			return resp, nil
		}
		err = statusError(at, resp, header != nil)
		resp.Body.Close()
		if again || resp.StatusCode != http.StatusUnauthorized || s.login == nil {
			return nil, err
		}
		s.login.drop(token) // it ended before its time, or was revoked: another may do
	}
}

// reasonForm is what Google calls a refusal.
var reasonForm = lazyregexp.New(`^[A-Za-z]{1,64}$`)

// refusal is why, in Google's word for it; "" where the answer has none.
func refusal(resp *http.Response) string {
	var answer struct {
		Error struct{ Errors []struct{ Reason string } }
	}
	err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&answer)
	if err != nil || len(answer.Error.Errors) == 0 || !reasonForm().MatchString(answer.Error.Errors[0].Reason) {
		return ""
	}
	return answer.Error.Errors[0].Reason
}

// statusError says what a status other than the wanted one means, to a read of what was resolved or not. It reads of the
// body.
func statusError(at string, resp *http.Response, read bool) error {
	e := &model.Error{Text: fmt.Sprintf("%s: %s", at, web.StatusText(resp))}
	why := refusal(resp)
	if why != "" {
		e.Text += " (" + why + ")"
	}
	if stale := web.Stale(e.Text, resp.StatusCode); read && stale != nil {
		return stale
	}
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound:
		e.Reason, e.Final = "NotFound", true
		e.Text += ": correct the bucket or the path"
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable, strings.HasSuffix(why, "ateLimitExceeded"): // also at 403
		e.Reason = "Throttled"
		e.RetryAfter = web.RetryAfter(resp.Header)
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		e.Reason, e.Final = "Forbidden", true
		e.Text += ": check the credentials and that they may list and get objects here (Storage Object Viewer)"
	case code >= 500, code == http.StatusRequestTimeout:
		e.Reason = "Unavailable"
	case code >= 400:
		e.Reason, e.Final = "Refused", true
		e.Text += web.Unexpected(resp)
	default:
		e.Reason = "WrongAnswer"
		e.Text += web.Unexpected(resp)
	}
	return e
}

// where names the endpoint in an error, where it is not Google's.
func (s *Source) where() string {
	if s.base == "https://storage.googleapis.com" {
		return ""
	}
	return " at " + s.base
}
