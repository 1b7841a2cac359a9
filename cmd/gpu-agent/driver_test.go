package main

import (
	"os"
	"os/exec"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// driver makes a driver root with test/fakenvml as its library, the device nodes of two GPUs, and the
// stand-ins of pkg/mps for the driver's programs. A script that uses it begins with [!driver] skip.
func driver(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: driver ROOT")
	}
	root := ts.MkAbs(args[0])
	lib, bin, dev := filepath.Join(root, "usr/lib/x86_64-linux-gnu"), filepath.Join(root, "usr/bin"), filepath.Join(root, "dev")
	for _, dir := range []string{lib, bin, dev} {
		ts.Check(os.MkdirAll(dir, 0o755))
	}
	for i, name := range []string{"nvidia0", "nvidia1", "nvidiactl"} {
		ts.Check(unix.Mknod(filepath.Join(dev, name), unix.S_IFCHR|0o666, int(unix.Mkdev(195, uint32(i)))))
	}
	library := filepath.Join(lib, "libnvidia-ml.so.550.163.01")
	out, err := exec.Command("../../test/fakenvml/build.sh", library).CombinedOutput()
	if err != nil {
		ts.Fatalf("%v: %s", err, out)
	}
	ts.Check(os.Symlink(filepath.Base(library), filepath.Join(lib, "libnvidia-ml.so.1")))
	ts.Check(os.WriteFile(filepath.Join(lib, "libcuda.so.550.163.01"), nil, 0o755))
	for _, name := range []string{"nvidia-cuda-mps-control", "nvidia-smi"} {
		script, err := os.ReadFile(filepath.Join("../../pkg/mps/testdata", name))
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(bin, name), script, 0o755))
	}
	ts.Check(os.WriteFile(filepath.Join(bin, "nvidia-cuda-mps-server"), nil, 0o755))
}

// canMakeDrivers reports whether the command driver works here: it needs a C compiler, and root for nodes.
func canMakeDrivers(dir string) bool {
	if _, err := exec.LookPath("gcc"); err != nil {
		return false
	}
	node := filepath.Join(dir, "node")
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(195, 0))); err != nil {
		return false
	}
	return os.Remove(node) == nil
}
