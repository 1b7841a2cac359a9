package http_test

import (
	"fmt"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/http"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSource(t *testing.T, c http.Config) *http.Source {
	s, err := http.New(c)
	require.NoError(t, err)
	t.Cleanup(s.CloseIdle)
	return s
}

// served is the contract's view of a directory that base serves.
func served(t *testing.T, base, dir string) sourcetest.Origin {
	put := func(name string, files map[string][]byte, at time.Time) {
		for p, b := range files {
			file := filepath.Join(dir, name, p)
			require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
			require.NoError(t, os.WriteFile(file, b, 0o644))
			require.NoError(t, os.Chtimes(file, at, at))
		}
	}
	then := time.Now().Add(-time.Hour)
	all := map[string]map[string][]byte{}
	return sourcetest.Origin{
		Source: newSource(t, http.Config{}),
		Put: func(t *testing.T, name string, files map[string][]byte) model.Ref {
			all[name] = files
			put(name, files, then)
			put(name, map[string][]byte{model.SumsName: sourcetest.Sums(files)}, then)
			return sourcetest.Ref(t, base+"/"+name+"/")
		},
		Change: func(t *testing.T, name, path string, content []byte) {
			then = then.Add(2 * time.Second) // Last-Modified counts in seconds
			all[name][path] = content
			put(name, map[string][]byte{path: content, model.SumsName: sourcetest.Sums(all[name])}, then)
			then = then.Add(2 * time.Second)
		},
		File:    func(t *testing.T, name, path string) model.Ref { return sourcetest.Ref(t, base+"/"+name+"/"+path) },
		Missing: sourcetest.Ref(t, base+"/missing/model.bin"),
		Digests: true,
	}
}

func TestContractOnNetHTTP(t *testing.T) {
	dir := t.TempDir()
	srv := httptest.NewServer(nethttp.FileServer(nethttp.Dir(dir)))
	defer srv.Close()
	sourcetest.Contract(t, served(t, srv.URL, dir))
}

func TestContractOnNginx(t *testing.T) {
	bin, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("no nginx on PATH: apt-get install nginx-light")
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	conf := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "www"), 0o755))
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, `daemon off; pid %[1]s/pid; error_log %[1]s/error.log;
worker_processes 1; events {}
http { access_log off; client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3;
uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5; gzip on; gzip_types *;
server { listen %[2]s; root %[1]s/www; } }`, dir, addr), 0o644))
	// In the foreground with one worker and no master there is one process to end.
	cmd := exec.CommandContext(t.Context(), bin, "-c", conf, "-p", dir, "-e", dir+"/error.log", "-g", "master_process off;")
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, 10*time.Second, 20*time.Millisecond)
	sourcetest.Contract(t, served(t, "http://"+addr, filepath.Join(dir, "www")))
}
