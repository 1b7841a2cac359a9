package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/already"
)

// TestWhatAlreadyAnswersTheCommandAnswers has both answer one line. Where already says nothing it need not know
// whether the command would.
func TestWhatAlreadyAnswersTheCommandAnswers(t *testing.T) {
	const rev = "0123456789ab"
	long := strings.Repeat("m", 63)
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"m", "m@" + rev, "a.b_c-9", long, long + "m", "Upper", ".hidden", "tail-", "m@short", "m@" + strings.ToUpper(rev), "m@unknown", "@" + rev} {
		require.NoError(t, os.MkdirAll(filepath.Join("models", "by-name", name), 0o755))
	}
	require.NoError(t, os.WriteFile("models/by-name/file", nil, 0o644))
	require.NoError(t, os.Symlink("m", "models/by-name/link"))
	require.NoError(t, os.Symlink("gone", "models/by-name/dangling"))
	for _, c := range []struct {
		line    string
		env     string // GPU_AGENT_ROOT, GPU_AGENT_TIMEOUT
		already string
	}{
		{"m --root models", "", "models/by-name/m"},
		{"m --root=models", "", "models/by-name/m"},
		{"--root models m", "", "models/by-name/m"},
		{"m --root " + dir + "/models/", "", dir + "/models/by-name/m"},
		{"m --root ./models//", "", "models/by-name/m"},
		{"m --root nowhere --root models", "", "models/by-name/m"},
		{"m --root models --timeout 30m", "", "models/by-name/m"},
		{"m --root models --timeout=1ms", "", "models/by-name/m"},
		{"m", "models", "models/by-name/m"},
		{"m --root models", "nowhere", "models/by-name/m"},
		{"m --timeout 1s", "models soon", "models/by-name/m"},
		{"m@" + rev + " --root models", "", "models/by-name/m@" + rev},
		{"a.b_c-9 --root models", "", "models/by-name/a.b_c-9"},
		{long + " --root models", "", "models/by-name/" + long},
		{"link --root models", "", "models/by-name/link"},

		{"m --root models --timeout soon", "", ""},
		{"m --root models --timeout=", "", ""},
		{"m --root models --timeout", "", ""},
		{"m --root models", " soon", ""},
		{"m --root", "models", ""},
		{"m --root=", "models", ""},
		{"m --root nowhere", "models", ""},
		{"m --rooted models", "models", ""},
		{"m m --root models", "", ""},
		{"m --help", "models", ""},
		{"-- m", "models", ""},
		{"", "models", ""},
		{"--timeout 1s", "models", ""},
		{". --root models", "", ""},
		{"../by-name/m --root models", "", ""},
		{"Upper --root models", "", ""},
		{".hidden --root models", "", ""},
		{"tail- --root models", "", ""},
		{long + "m --root models", "", ""},
		{"m@short --root models", "", ""},
		{"m@" + strings.ToUpper(rev) + " --root models", "", ""},
		{"m@unknown --root models", "", ""},
		{"@" + rev + " --root models", "", ""},
		{"file --root models --timeout 1ms", "", ""},
		{"dangling --root models --timeout 1ms", "", ""},
		{"none --root models --timeout 1ms", "", ""},
	} {
		t.Run(c.line+" "+c.env, func(t *testing.T) {
			root, timeout, _ := strings.Cut(c.env, " ")
			t.Setenv("GPU_AGENT_ROOT", root)
			t.Setenv("GPU_AGENT_TIMEOUT", timeout)
			args := append([]string{"models", "wait"}, strings.Fields(c.line)...)
			require.Equal(t, c.already, already.Waited(args))
			if c.already == "" {
				return
			}
			var stdout, stderr bytes.Buffer
			require.Equal(t, exitDone, run(t.Context(), args, &stdout, &stderr), stderr.String())
			require.Equal(t, c.already+"\n", stdout.String())
			require.Empty(t, stderr.String())
		})
	}
	require.Empty(t, already.Waited([]string{"models", "rm", "m", "--root", "models"}))
	require.Empty(t, already.Waited([]string{"wait", "m", "--root", "models"}))

	cmd, _, err := command().Find([]string{"models", "wait"})
	require.NoError(t, err)
	var flags []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, f.Name) })
	require.Equal(t, []string{"root", "timeout"}, flags, "already knows no other, nor that its variable may be set")
}

// TestAReadyModelIsAnsweredBeforeTheProgramIsInitialised counts what is initialised until then.
func TestAReadyModelIsAnsweredBeforeTheProgramIsInitialised(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "by-name", "m"), 0o755))
	exe, err := os.Executable()
	require.NoError(t, err)
	initialised := func(args ...string) (packages []string, bytes int) {
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Args = append([]string{"gpu-agent"}, args...) // what TestMain goes by
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		stderr, err := cmd.StderrPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			var name string
			var at, clock float64
			var size int
			if _, err := fmt.Sscanf(lines.Text(), "init %s @%f ms, %f ms clock, %d bytes", &name, &at, &clock, &size); err == nil {
				packages, bytes = append(packages, name), bytes+size
			}
		}
		require.NoError(t, cmd.Wait())
		return packages, bytes
	}
	imports, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.Imports}}", ".").Output()
	require.NoError(t, err)
	require.Contains(t, string(imports), "internal/already", "not by this test alone")

	all, most := initialised("--version")
	require.Contains(t, all, "github.com/gpu-agent/gpu-agent/pkg/cache")
	few, little := initialised("models", "wait", "m", "--root", dir)
	require.Less(t, len(few), len(all)/5, few)
	require.Less(t, little, most/20, "bytes allocated")
}
