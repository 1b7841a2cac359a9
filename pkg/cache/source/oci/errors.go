package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const loginHint = ": it is not there, or not for this login: correct the source, or the credentials file in the config"

// sendError says what a request without an answer means, or one for which no login could be had.
func sendError(u *url.URL, err error) error {
	if e, ok := errors.AsType[*model.Error](err); ok {
		return e
	}
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return &model.Error{Reason: "Forbidden", Final: true,
			Text: web.Bare(u) + ": the registry asks for a login, and the credentials file in the config has none for it"}
	}
	if e, ok := errors.AsType[*errcode.ErrorResponse](err); ok { // of the token service
		return tokenError(u, e.StatusCode)
	}
	if _, ok := errors.AsType[*json.SyntaxError](err); ok {
		return &model.Error{Reason: "WrongAnswer", Text: web.Bare(u) + ": its token service does not answer with a token: check what stands between"}
	}
	_, sent := errors.AsType[*url.Error](err)
	_, network := errors.AsType[net.Error](err)
	cut := errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
	if !sent && !network && !cut { // a challenge that must not or cannot be met; its text is the registry's
		return &model.Error{Reason: "BadLogin", Final: true,
			Text: web.Bare(u) + ": the registry asks for a login in a way that is not safe or not understood: check the address of its token service"}
	}
	return web.SendError(u, err)
}

func tokenError(u *url.URL, status int) error {
	text := strings.TrimSpace(fmt.Sprintf("%s: its token service answers %d %s", web.Bare(u), status, http.StatusText(status)))
	switch {
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return &model.Error{Reason: "Throttled", Text: text}
	case status >= 500, status == http.StatusRequestTimeout:
		return &model.Error{Reason: "Unavailable", Text: text}
	}
	return &model.Error{Reason: "Forbidden", Final: true, Text: text + loginHint}
}

// statusError says what a status other than the wanted one means; moved says that what is not there may have been, when it
// was resolved.
func statusError(u *url.URL, resp *http.Response, moved bool) error {
	status := web.StatusText(resp)
	e := &model.Error{Text: fmt.Sprintf("%s: %s", web.Bare(u), status)}
	away := resp.Request != nil && resp.Request.URL.Host != u.Host
	switch code := resp.StatusCode; {
	case away && code >= 400 && code < 500 && code != http.StatusTooManyRequests:
		// A signed address that is no longer good, as after a jump of a clock: the next try gets another.
		e.Reason = "Refused"
		e.Text = fmt.Sprintf("%s: the storage that it redirects to, %s, answers %s", web.Bare(u), resp.Request.URL.Host, status)
	case moved && (code == http.StatusNotFound || code == http.StatusGone):
		return web.Stale(e.Text, code)
	case code == http.StatusNotFound, code == http.StatusGone:
		e.Reason, e.Final = "NotFound", true
		e.Text += ": no such repository, tag or digest: correct the source"
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		e.Reason, e.Final = "Forbidden", true
		e.Text += loginHint
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		e.Reason, e.RetryAfter = "Throttled", web.RetryAfter(resp.Header)
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooEarly:
		e.Reason = "Unavailable"
	case code >= 400:
		e.Reason, e.Final = "Refused", true
		e.Text += ": not an answer to expect there: check the address and what stands between"
	default:
		e.Reason = "WrongAnswer"
		e.Text += ": not an answer to expect there: check the address and what stands between"
	}
	return e
}
