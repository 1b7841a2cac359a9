package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Open reads length bytes of f from offset, pinned to f.Version.
func (s *Source) Open(ctx context.Context, ref model.Ref, f model.File, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || length < 0 || offset > f.Size-length {
		return nil, fmt.Errorf("open %s: %d bytes at %d are not within its %d", f.Path, length, offset, f.Size)
	}
	key, version, _ := strings.Cut(f.Key, versioned)
	if body := s.mirrors.Open(ctx, ref.Host, key, f, web.Part{Offset: offset, Length: length, Size: f.Size}); body != nil {
		return body, nil
	}
	in := &s3.GetObjectInput{Bucket: aws.String(ref.Host), Key: aws.String(key)}
	whole := offset == 0 && length == f.Size
	if !whole && length == 0 {
		return http.NoBody, nil // no Range header can ask for nothing
	}
	if !whole {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	}
	if f.Version != "" {
		in.IfMatch = aws.String(`"` + f.Version + `"`)
	}
	if _, refused := s.unversioned.Load(ref.Host); version != "" && !refused {
		in.VersionId = aws.String(version)
	}
	out, err := s.client.GetObject(ctx, in)
	if err != nil {
		err = s.explain(ctx, ref, "read "+key, err, true)
	}
	if in.VersionId != nil && model.ReasonOf(err) == "Forbidden" { // s3:GetObject may be there without s3:GetObjectVersion
		s.unversioned.Store(ref.Host, true)
		return s.Open(ctx, ref, f, offset, length)
	}
	if err != nil {
		return nil, err
	}
	f.Key = key
	if err := checkAnswer(ref, out, f, offset, length, whole); err != nil {
		out.Body.Close()
		return nil, err
	}
	return out.Body, nil
}

// checkAnswer lets only an answer pass that is the very range of the very version.
func checkAnswer(ref model.Ref, out *s3.GetObjectOutput, f model.File, offset, length int64, whole bool) error {
	at := fmt.Sprintf("%s: object %s", ref, f.Key)
	if got := bareTag(out.ETag); f.Version != "" && got != f.Version {
		return &model.Error{Reason: "Changed", Text: fmt.Sprintf("%s: changed since it was resolved (ETag %q, was %q)", at, got, f.Version)}
	}
	if err := encoded(ref, f.Key, out.ContentEncoding); err != nil {
		return err
	}
	got := aws.ToString(out.ContentRange)
	switch want := fmt.Sprintf("bytes %d-%d/%d", offset, offset+length-1, f.Size); {
	case !whole && got == "":
		return &model.Error{Reason: "RangeIgnored",
			Text: at + ": the store sends the whole object where a range is asked: check what stands between"}
	case !whole && got != want, whole && got != "":
		return &model.Error{Reason: "WrongRange", Text: fmt.Sprintf("%s: want %q, the store answers with %q", at, want, got)}
	}
	if out.ContentLength == nil || *out.ContentLength != length {
		return &model.Error{Reason: "WrongLength",
			Text: fmt.Sprintf("%s: want %d bytes, the store announces %d", at, length, aws.ToInt64(out.ContentLength))}
	}
	return nil
}

// encoded refuses an object that clients would unpack: its bytes are not those of the file. aws-chunked is of an upload, and
// some stores keep it.
func encoded(ref model.Ref, key string, encoding *string) error {
	for one := range strings.SplitSeq(aws.ToString(encoding), ",") {
		switch strings.ToLower(strings.TrimSpace(one)) {
		case "", "identity", "aws-chunked":
			continue
		}
		return &model.Error{Reason: "Encoded", Final: true,
			Text: fmt.Sprintf("%s: object %s is stored with Content-Encoding %q: upload it without", ref, key, model.Printable(*encoding))}
	}
	return nil
}

// explain maps an error of the SDK to one that a person can act on; what is what was tried, and known says that the
// store named it before.
func (s *Source) explain(ctx context.Context, ref model.Ref, what string, err error, known bool) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%s: %s: %w", ref, what, cause)
	}
	if e, ok := errors.AsType[*model.Error](err); ok {
		return e
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &model.Error{Reason: "Untrusted", Final: true, Err: err,
			Text: fmt.Sprintf("%s%s: the server's certificate is not trusted: correct it, or name its CA file in the config", ref, s.where())}
	}
	resp, answered := errors.AsType[*smithyhttp.ResponseError](err)
	status := 0
	if answered {
		status = resp.HTTPStatusCode()
	}
	at, code := fmt.Sprintf("%s: %s%s", ref, what, s.where()), ""
	_, network := errors.AsType[net.Error](err)
	switch api, ok := errors.AsType[smithy.APIError](err); {
	case ok:
		code = api.ErrorCode()
		err = errors.New(said(status, code, api.ErrorMessage()))
	case status/100 == 2 && (network || errors.Is(err, io.ErrUnexpectedEOF)):
		return web.NoAnswer(ctx, at, err)
	case status/100 == 2, errors.Is(err, errNotS3): // the SDK's words repeat what came
		return &model.Error{Reason: "WrongAnswer", Text: at + ": the answer is not one of S3: check the endpoint and what stands between"}
	case status == 0:
		err = model.NetworkError(err)
	}
	e := &model.Error{Text: at, Err: err}
	switch e.Reason, e.Final = classify(code, status); {
	case known && e.Reason == "NotFound":
		return &model.Error{Reason: "Changed", Text: e.Text + ": changed since it was resolved: it is gone", Err: err}
	case !known && e.Reason == "Changed": // nothing was asked for that could
		e.Reason, e.Final = "Refused", true
	}
	if s.cached != nil && (e.Reason == "Forbidden" || e.Reason == "Expired") {
		s.cached.Invalidate() // the next try may get others
	}
	switch e.Reason {
	case "Throttled":
		e.RetryAfter = retryAfter(resp)
	case "Forbidden":
		if off := clockOff(e.Text, resp); off != nil {
			return off
		}
		e.Text += ": check the credentials and that they may list and get here"
	case "WrongRegion":
		e.Text += ": the bucket is in another region: set the region" + quoted(header(resp, "X-Amz-Bucket-Region"))
	case "Archived":
		e.Text += ": the object is in an archive: restore it first"
	case "Expired":
		e.Text += ": the credentials have expired: renew them"
	case "ClockSkew":
		if off := clockOff(e.Text, resp); off != nil {
			return off
		}
		e.Text += ": this node's clock is off: correct it"
	case "Changed":
		e.Text += ": changed since it was resolved"
	case "Refused", "WrongAnswer":
		if resp != nil && resp.Response != nil && resp.Response.Response != nil && resp.Response.Request != nil {
			e.Text += web.Unexpected(resp.Response.Response)
		}
	}
	return e
}

// said is an answer for people: an empty one has its status for code and message.
func said(status int, code, message string) string {
	why := strings.TrimSuffix(code+": "+message, ": ")
	switch name := http.StatusText(status); {
	case name == "":
		return why
	case message == name:
		return fmt.Sprintf("%d %s", status, name)
	default:
		return fmt.Sprintf("%d %s: %s", status, name, why)
	}
}

// classify turns S3's error code, or the status of an answer without one, into a reason.
func classify(code string, status int) (reason string, final bool) {
	switch code {
	case "NoSuchBucket", "NoSuchKey", "NotFound", "NoSuchVersion", "InvalidBucketName":
		return "NotFound", true
	case "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled",
		"InvalidToken", "Unauthorized":
		return "Forbidden", true
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired":
		return "Expired", false // they may rotate by themselves
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
		"MovedPermanently", "TemporaryRedirect":
		return "WrongRegion", true
	case "SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded":
		return "Throttled", false
	case "PreconditionFailed", "InvalidRange":
		return "Changed", false
	case "InvalidObjectState":
		return "Archived", true
	case "RequestTimeTooSkewed":
		return "ClockSkew", false
	}
	switch {
	case status == 0:
		return "Unreachable", false
	case status == http.StatusNotFound, status == http.StatusGone:
		return "NotFound", true
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return "Forbidden", true
	case status == http.StatusMovedPermanently, status == http.StatusTemporaryRedirect, status == http.StatusPermanentRedirect:
		return "WrongRegion", true
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return "Throttled", false
	case status == http.StatusPreconditionFailed, status == http.StatusRequestedRangeNotSatisfiable:
		return "Changed", false
	case status >= 500, status == http.StatusRequestTimeout:
		return "Unavailable", false
	case status >= 400:
		return "Refused", true
	}
	return "WrongAnswer", false
}

// retryAfter is what the answer says in seconds, as S3 and its kin do; 0 where it does not.
func retryAfter(resp *smithyhttp.ResponseError) time.Duration {
	s, err := strconv.ParseUint(header(resp, "Retry-After"), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(s) * time.Second
}

func header(resp *smithyhttp.ResponseError, name string) string {
	if resp == nil || resp.Response == nil {
		return ""
	}
	return resp.Response.Header.Get(name)
}

// clockOff is the error for a refusal that the clocks explain, nil where they do not.
func clockOff(at string, resp *smithyhttp.ResponseError) error {
	if resp == nil || resp.Response == nil || resp.Response.Response == nil {
		return nil
	}
	return web.ClockOff(at, resp.Response.Response)
}

func quoted(s string) string {
	if s == "" {
		return ""
	}
	return fmt.Sprintf(" to %q", s)
}

// where names the endpoint in an error, where it is not AWS.
func (s *Source) where() string {
	if s.endpoint == "" {
		return ""
	}
	return " at " + s.endpoint
}
