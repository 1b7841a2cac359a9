package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
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
			_, err = intoFile(file, t.Output(), func(w io.Writer) error {
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

func TestAnExportRemovesWhatAKilledOneLeft(t *testing.T) {
	dir := t.TempDir()
	killed := filepath.Join(dir, exportPrefix+"1")
	require.NoError(t, os.WriteFile(killed, make([]byte, 2048), 0o600))
	var log strings.Builder
	_, err := intoFile(filepath.Join(dir, "one.tar"), &log, func(io.Writer) error {
		require.Equal(t, "removed "+killed+", 2.0 KiB that an export left when it was killed\n", log.String())
		log.Reset()
		// Another one at the same time leaves this one alone.
		_, err := intoFile(filepath.Join(dir, "two.tar"), &log, func(io.Writer) error { return nil })
		return err
	})
	require.NoError(t, err)
	require.Empty(t, log.String())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 2)
	require.Equal(t, "one.tar", left[0].Name())
	require.Equal(t, "two.tar", left[1].Name())
}
