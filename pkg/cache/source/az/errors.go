package az

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// wrap says what a request without an answer means.
func wrap(ctx context.Context, at string, err error) error {
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

var codeForm = lazyregexp.New(`^[A-Za-z]{1,64}$`)

// statusError says what a status other than the wanted one means. Azure says why in X-Ms-Error-Code.
func statusError(at string, resp *http.Response) error {
	e := &model.Error{Text: fmt.Sprintf("%s: %s", at, web.StatusText(resp))}
	why := resp.Header.Get("X-Ms-Error-Code")
	if codeForm().MatchString(why) {
		e.Text += " (" + why + ")"
	}
	switch code := resp.StatusCode; {
	case why == "BlobArchived", why == "BlobBeingRehydrated":
		e.Reason, e.Final = "Archived", true
		e.Text += archivedHint
	case code == http.StatusNotFound:
		e.Reason, e.Final = "NotFound", true
		e.Text += ": correct the account, the container or the path"
	case why == "PublicAccessNotPermitted", why == "NoAuthenticationInformation":
		e.Reason, e.Final = "Forbidden", true
		e.Text += ": not public: give credentials in the config"
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		if e := web.ClockOff(at, resp); e != nil {
			return e
		}
		e.Reason, e.Final = "Forbidden", true
		e.Text += ": check that the credentials are right and not expired, and that they may list and read here (Storage Blob Data Reader)"
	case code == http.StatusPreconditionFailed, code == http.StatusRequestedRangeNotSatisfiable:
		e.Reason = "Changed"
		e.Text += ": changed since it was resolved"
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		e.Reason, e.RetryAfter = "Throttled", web.RetryAfter(resp.Header)
	case code >= 500, code == http.StatusRequestTimeout:
		e.Reason = "Unavailable"
	case code >= 400:
		e.Reason, e.Final = "Refused", true
	default:
		e.Reason = "WrongAnswer"
	}
	return e
}

const archivedHint = ": it is in the archive tier: rehydrate it, or name another"

func wrongAnswer(ref model.Ref) error {
	return &model.Error{Reason: "WrongAnswer", Text: fmt.Sprintf("%s: the answer is not one of Blob Storage: check the endpoint and what stands between", ref)}
}

// quoted is a name for people.
func quoted(s string) string { return fmt.Sprintf("%q", model.Printable(s)) }
