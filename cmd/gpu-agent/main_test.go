package main

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin/kubelettest"
)

func TestMain(m *testing.M) {
	_ = flag.Set("test.parallel", "6") // for -parallel to raise or lower: scripts wait more than they work
	testscript.Main(m, map[string]func(){"gpu-agent": main})
}

// TestScripts runs the real program. $ORIGIN serves a model; $DIGEST is its sha256.
func TestScripts(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", 1<<16)
	mux := http.NewServeMux()
	mux.HandleFunc("/model.bin", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "model.bin", time.Time{}, strings.NewReader(content))
	})
	mux.HandleFunc("/forbidden.bin", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) })
	var flaky atomic.Int32
	mux.HandleFunc("/flaky.bin", func(w http.ResponseWriter, r *http.Request) {
		if flaky.Add(1) == 1 {
			http.Error(w, "not now", http.StatusInternalServerError)
			return
		}
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "flaky.bin", time.Time{}, strings.NewReader(content))
	})
	var lost atomic.Bool
	mux.HandleFunc("/lost.bin", func(w http.ResponseWriter, r *http.Request) {
		if lost.Load() {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "lost.bin", time.Time{}, strings.NewReader(content))
	})
	handleHub(mux, content)
	branch := handleMoving(mux)
	split := newShards()
	mux.Handle("/shards/", split)
	origin := httptest.NewServer(mux)
	t.Cleanup(origin.Close) // the scripts are parallel subtests

	fake, err := filepath.Abs("../../test/fakenvml/build.sh")
	require.NoError(t, err)
	drivers := t.TempDir()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", "atexit_sleep_ms=50") // it is a second for each of 300 commands
			env.Setenv("ORIGIN", origin.URL)
			env.Setenv("DIGEST", fmt.Sprintf("%x", sha256.Sum256([]byte(content))))
			env.Setenv("NODE_NAME", "node-1")
			env.Setenv("FAKENVML", fake)
			env.Values[kubeletKey{}] = new(*kubelettest.Kubelet)
			return nil
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "driver":
				return canMakeDrivers(drivers), nil
			case "mount": // tmpfs, by root
				return exec.Command("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", drivers).Run() == nil, nil
			case "userns":
				return exec.Command("unshare", "--user", "--map-root-user", "true").Run() == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"eventually": eventually,
			"expand":     expand,
			"disk":       disk,
			"driver":     driver,
			"kubelet":    kubelet,
			"lose":       func(*testscript.TestScript, bool, []string) { lost.Store(true) }, // lost.bin at the origin
			"move":       branch.move,
			"release":    split.release,
			"sent":       split.sent,
		},
	})
}

// disk mounts a disk of its own at a folder, or makes that read-only or writable, as a kernel and a person do.
func disk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: disk DIR new|ro|rw")
	}
	dir := ts.MkAbs(args[0])
	if args[1] == "new" {
		ts.Check(os.Mkdir(dir, 0o755))
		ts.Check(ts.Exec("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", dir))
		ts.Defer(func() { _ = exec.Command("umount", "-l", dir).Run() })
		return
	}
	ts.Check(ts.Exec("mount", "-o", "remount,"+args[1], dir))
}

// eventually runs a command until it succeeds and, with -match TEXT, prints TEXT; at most 20 s.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	want := ""
	if len(args) > 2 && args[0] == "-match" {
		want, args = args[1], args[2:]
	}
	if neg || len(args) == 0 {
		ts.Fatalf("usage: eventually [-match TEXT] COMMAND [ARG...]")
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := ts.Exec(args[0], args[1:]...)
		out := ts.ReadFile("stdout") + ts.ReadFile("stderr")
		if err == nil && strings.Contains(out, want) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("not within 20 s: %v (%v); last:\n%s", args, err, out)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// expand replaces $VARIABLES in files.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: expand FILE...")
	}
	for _, name := range args {
		text := ts.ReadFile(name)
		for _, v := range []string{"WORK", "ORIGIN", "DIGEST"} {
			text = strings.ReplaceAll(text, "$"+v, ts.Getenv(v))
		}
		ts.Check(writeFile(ts.MkAbs(name), text))
	}
}

func writeFile(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }
