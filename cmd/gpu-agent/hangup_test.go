package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAnExportThatIsEndedLeavesNothing ends the real program amid an export, as a terminal that is lost does, and others.
func TestAnExportThatIsEndedLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(s) { // these tests run under nohup: the program must not
			ignored := make(chan os.Signal, 1)
			signal.Notify(ignored, s)
			t.Cleanup(func() { signal.Stop(ignored) })
		}
	}
	dir := t.TempDir()
	socket, file := filepath.Join(dir, "s"), filepath.Join(dir, "out", "x.tar")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o755))
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	asked := make(chan chan bool) // by the export; the answer is whether the bundle goes on to its end
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", bundleEnd)
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		whole := make(chan bool)
		asked <- whole
		if <-whole {
			w.Header().Set(bundleEnd, bundleWhole)
		}
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	export := func(shell string, end syscall.Signal, whole bool) (output string, err error) {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", shell+`exec gpu-agent models export m -o "$1" --socket "$2" 2>&1`, "sh", file, socket)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		answer := <-asked // its file is made before it asks
		if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)); whole && err == nil {
			require.Regexp(t, `SigIgn:\s*[0-9a-f]*[13579bdf]\n`, string(status), "the lowest bit is SIGHUP's")
		}
		require.NoError(t, cmd.Process.Signal(end))
		if whole {
			answer <- true
		}
		text, err := io.ReadAll(out)
		require.NoError(t, err)
		err = cmd.Wait()
		if !whole {
			close(answer)
		}
		return string(text), err
	}
	there := func() (names []string) {
		entries, err := os.ReadDir(filepath.Dir(file))
		require.NoError(t, err)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	for _, end := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT} {
		output, err := export("", end, false)
		require.EqualError(t, err, "exit status 1", output)
		require.Empty(t, there(), "%s: %s", end, output)
	}
	_, err = export("", syscall.SIGKILL, false)
	require.EqualError(t, err, "signal: killed")
	require.Len(t, there(), 1)
	output, err := export("trap '' HUP; ", syscall.SIGHUP, true) // as nohup does it
	require.NoError(t, err, output)
	require.Regexp(t, `^removed \S+, \d B that an export left when it was killed\n`+file+`: 4 B\n$`, output)
	require.Equal(t, []string{"x.tar"}, there())
}
