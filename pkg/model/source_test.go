package model_test

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestPrintableHasNothingForATerminalToObey(t *testing.T) {
	for in, want := range map[string]string{
		"plain: ü, 模型":           "plain: ü, 模型",
		"\x1b[31mPWNED":          "\ufffd[31mPWNED",
		"a\nb\tc\r":              "a b c ",
		"c1 \u009b31m":           "c1 \ufffd31m",
		"\u202edesrever":         "\ufffddesrever",
		"\xff\x00\x7f":           "\ufffd\ufffd\ufffd",
		strings.Repeat("x", 2e3): strings.Repeat("x", 1000) + "…",
	} {
		require.Equal(t, want, model.Printable(in))
	}
	require.True(t, utf8.ValidString(model.Printable("x"+strings.Repeat("é", 1000))))
}

func TestNetworkErrorTellsOnlyWhatHoldsNoSecret(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for want, err := range map[string]error{
		"connect: connection refused": &url.Error{Op: "Get", URL: "http://h/?sig=SECRET", Err: refused},
		"no such host":                &net.DNSError{Name: "h", Err: "no such host"},
		"no answer in time":           &url.Error{Op: "Get", URL: "http://h/?sig=SECRET", Err: os.ErrDeadlineExceeded},
		"is not valid HTTP":           fmt.Errorf("failed to parse Location header %q: %w", "http://h:x/?sig=SECRET", errors.New("bad port")),
	} {
		text := model.NetworkError(err).Error()
		require.Contains(t, text, want)
		require.NotContains(t, text, "SECRET")
	}
}
