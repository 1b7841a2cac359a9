package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// An agent that is killed, or finds damage, in the middle of an export leaves the file that was there and no other.
func TestAnExportThatIsCutOffLeavesTheFileAsItWas(t *testing.T) {
	for name, c := range map[string]struct {
		serve func(http.ResponseWriter)
		err   string
	}{
		"killed":      {func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, "the bundle was cut off: "},
		"not whole":   {func(w http.ResponseWriter) { w.Header().Set(bundleEnd, "Damaged: a file") }, "the bundle was cut off: Damaged: a file"},
		"not told so": {func(http.ResponseWriter) {}, "the bundle was cut off: the agent went away"},
		"whole":       {func(w http.ResponseWriter) { w.Header().Set(bundleEnd, bundleWhole) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			socket := filepath.Join(dir, "s")
			l, err := net.Listen("unix", socket)
			require.NoError(t, err)
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Trailer", bundleEnd)
				_, _ = w.Write([]byte("half"))
				_ = http.NewResponseController(w).Flush()
				c.serve(w)
			}))
			srv.Listener.Close()
			srv.Listener = l
			srv.Start()
			defer srv.Close()

			out := t.TempDir()
			file := filepath.Join(out, "models.tar")
			require.NoError(t, os.WriteFile(file, []byte("old"), 0o644))
			_, err = intoFile(file, func(w io.Writer) error {
				return (&socketFlag{path: socket}).client().export(t.Context(), []string{"m"}, w)
			})
			want := "old"
			if c.err == "" {
				want = "half"
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.err)
			}
			got, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, want, string(got))
			left, err := os.ReadDir(out)
			require.NoError(t, err)
			require.Len(t, left, 1, "no part of it stays behind")
		})
	}
}
