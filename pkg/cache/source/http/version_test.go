package http

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAVersionIsWhatTellsOfEachChange(t *testing.T) {
	const at, later, tag = "Mon, 30 Nov 2026 12:00:00 GMT", "Mon, 30 Nov 2026 12:00:01 GMT", `"1"`
	for name, tc := range map[string]struct {
		etag, modified, date, want string
	}{
		"a strong ETag":            {tag, at, at, tag},
		"a weak ETag":              {"W/" + tag, "", later, ""},
		"a weak ETag and a time":   {"W/" + tag, at, later, at},
		"a time":                   {"", at, later, at},
		"a time that may not last": {"", at, at, ""},
		"a time to come":           {"", later, at, ""},
		"no clock":                 {"", at, "", ""},
		"no time":                  {"", "yesterday", later, ""},
	} {
		h := http.Header{"Etag": {tc.etag}, "Last-Modified": {tc.modified}, "Date": {tc.date}}
		require.Equal(t, tc.want, version(h), name)
	}
}
