// Package already answers gpu-agent models wait where the model is there, before the rest of the program is initialised.
//
// That command runs in each init container, most often for a model that has long been there, and for it the packages
// of the whole agent are initialised: most of its time. Go initialises first, of the packages whose imports are all
// initialised, the one whose import path sorts first (Go's specification, "Program initialization"). So this package,
// which needs os alone, comes before nearly everything: any further import may move it behind half of the program.
// A test of cmd/gpu-agent sees that it does not.
//
// It says yes or nothing: what is not as plain as "models wait NAME" is for the command in cmd/gpu-agent, which
// gives the same answer, later.
package already

import (
	"os"
	"path"
	"time"
)

func init() {
	if dir := Waited(os.Args[1:]); dir != "" {
		if _, err := os.Stdout.WriteString(dir + "\n"); err != nil {
			os.Stderr.WriteString("gpu-agent: " + err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// Waited is the directory that the command line args prints if it is a models wait for a model that is there, and
// otherwise, or where it would take more than a look to know, "".
func Waited(args []string) string {
	if len(args) < 3 || args[0] != "models" || args[1] != "wait" {
		return ""
	}
	args = args[2:]
	root, timeout, name := os.Getenv("GPU_AGENT_ROOT"), os.Getenv("GPU_AGENT_TIMEOUT"), ""
	for len(args) > 0 {
		if value, rest := flag("--root", args); value != "" {
			root, args = value, rest
		} else if value, rest := flag("--timeout", args); value != "" {
			timeout, args = value, rest
		} else if name == "" && plain(args[0]) {
			name, args = args[0], args[1:]
		} else {
			return ""
		}
	}
	if root == "" {
		root = "/models"
	}
	if timeout == "" {
		timeout = "0"
	}
	if _, err := time.ParseDuration(timeout); err != nil || name == "" {
		return ""
	}
	dir := path.Join(root, "by-name", name)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return ""
	}
	return dir
}

// flag is the value of the flag that args begin with, if it is the named one, and what follows.
func flag(name string, args []string) (value string, rest []string) {
	switch arg, n := args[0], len(name); {
	case arg == name && len(args) > 1:
		return args[1], args[2:]
	case len(arg) > n && arg[:n] == name && arg[n] == '=':
		return arg[n+1:], args[1:]
	}
	return "", args
}

// plain reports whether name is surely the name of a model, or NAME@ and twelve digits of a revision: pkg/model
// says what all may be one.
func plain(name string) bool {
	const revision = len("@0123456789ab")
	if at := len(name) - revision; at > 0 && name[at] == '@' {
		for _, c := range []byte(name[at+1:]) {
			if !(c >= 'a' && c <= 'f' || c >= '0' && c <= '9') {
				return false
			}
		}
		name = name[:at]
	}
	for i, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case (c == '.' || c == '_' || c == '-') && i > 0 && i < len(name)-1:
		default:
			return false
		}
	}
	return name != "" && len(name) <= 63
}
