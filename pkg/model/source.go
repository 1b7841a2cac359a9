package model

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
	"unicode"
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

// maxText bounds what of an origin's words is shown, in bytes.
const maxText = 1000

// Printable is text for a terminal, a log or a page: what an origin puts into its answers may be an
// escape sequence. Control characters (C0, DEL, C1), those that turn the direction of writing and what
// is not UTF-8 become spaces or U+FFFD, and what is too long is cut.
func Printable(text string) string {
	cut := ""
	if len(text) > maxText {
		text, cut = strings.ToValidUTF8(text[:maxText], ""), "…"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r), r == '\u2028', r == '\u2029':
			return unicode.ReplacementChar
		}
		return r
	}, text) + cut
}

// NetworkError is what may be told of a request that got no answer. Errors of net/http repeat addresses,
// with queries that may be signatures, and what a server sent: only the kinds whose text is known to
// hold neither pass. The others become one that says so.
func NetworkError(err error) error {
	for _, sentinel := range []error{io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, sentinel) {
			return errors.New("the connection ended in the middle of an answer")
		}
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return e
	}
	if e, ok := errors.AsType[x509.SystemRootsError](err); ok {
		return e
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return errors.New("the server does not speak TLS on this port")
	}
	if e, ok := errors.AsType[tls.AlertError](err); ok {
		return e
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return errors.New("no answer in time")
	}
	return errors.New("the server's answer, or the address it redirects to, is not valid HTTP")
}
