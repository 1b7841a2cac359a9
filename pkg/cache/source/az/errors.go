package az

import (
	"fmt"
	"net/http"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

var codeForm = lazyregexp.New(`^[A-Za-z]{1,64}$`)

// statusError says what a status other than the wanted one means, to a read of what was resolved or not. Azure says why
// in X-Ms-Error-Code.
func statusError(at string, resp *http.Response, read bool) error {
	e := &model.Error{Text: fmt.Sprintf("%s: %s", at, web.StatusText(resp))}
	why := resp.Header.Get("X-Ms-Error-Code")
	if codeForm().MatchString(why) {
		e.Text += " (" + why + ")"
	}
	if stale := web.Stale(e.Text, resp.StatusCode); read && stale != nil {
		return stale
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
		if until, ended := signedUntil(resp.Request); ended {
			e.Reason = "Expired" // the file may be renewed by itself
			e.Text += fmt.Sprintf(": the SharedAccessSignature in the credentials file ended at %s: put another there", until.UTC().Format(time.RFC3339))
			return e
		}
		e.Reason, e.Final = "Forbidden", true
		e.Text += ": check that the credentials are right, that they may list and read here (Storage Blob Data Reader), and that the account's firewall lets this node in"
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		e.Reason, e.RetryAfter = "Throttled", web.RetryAfter(resp.Header)
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

// signedUntil is when the signature in a request ends, and whether that is past.
func signedUntil(req *http.Request) (until time.Time, ended bool) {
	text := req.URL.Query().Get("se")
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z", time.DateOnly} {
		if until, err := time.Parse(layout, text); err == nil {
			return until, time.Now().After(until)
		}
	}
	return time.Time{}, false
}

const archivedHint = ": it is in the archive tier: rehydrate it, or name another"

func wrongAnswer(ref model.Ref) error {
	return &model.Error{Reason: "WrongAnswer", Text: fmt.Sprintf("%s: the answer is not one of Blob Storage: check the endpoint and what stands between", ref)}
}

// quoted is a name for people.
func quoted(s string) string { return fmt.Sprintf("%q", model.Printable(s)) }
