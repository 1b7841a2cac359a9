//go:build cgo

package generate_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	cdilib "tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/gpu-agent/gpu-agent/internal/watch"
	"github.com/gpu-agent/gpu-agent/pkg/cdi"
	"github.com/gpu-agent/gpu-agent/pkg/cdi/generate"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// The tests run the generation as the agent does: in a child, which is the test program itself.
func TestMain(m *testing.M) {
	if os.Getenv("GENERATE_TEST_CHILD") == "" {
		code := m.Run()
		_ = os.RemoveAll(built)
		os.Exit(code)
	}
	if err := generate.Run(os.Stdin, os.Stdout); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}

const driver = "550.163.01"

// The UUIDs of test/fakenvml.
const (
	gpu0 = "GPU-23300000-5140-4000-8000-000000000000"
	gpu1 = "GPU-23300001-5140-4000-8000-000000000001"
)

// built is the folder of the fake library, once it was asked for.
var built string

// fakeLibrary builds test/fakenvml, once for all tests.
var fakeLibrary = sync.OnceValues(func() (string, error) {
	var err error
	if built, err = os.MkdirTemp("", "fakenvml"); err != nil {
		return "", err
	}
	return build(filepath.Join(built, "libnvidia-ml.so.1"))
})

func build(library string, flags ...string) (string, error) {
	if msg, err := exec.Command("../../../test/fakenvml/build.sh", append([]string{library}, flags...)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, msg)
	}
	return library, nil
}

// driverRoot is a host with a driver whose library answers, and with device nodes. Making nodes needs root.
func driverRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	lib := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	for _, dir := range []string{"dev", "usr/bin", "usr/lib/x86_64-linux-gnu", "etc"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for i, name := range []string{"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "gdrdrv"} {
		if err := unix.Mknod(filepath.Join(root, "dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(195, uint32(i)))); err != nil {
			t.Skipf("device nodes cannot be made here: %v", err)
		}
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skipf("no C compiler to build the fake driver with: %v", err)
	}
	library := filepath.Join(lib, "libnvidia-ml.so."+driver)
	fake, err := fakeLibrary()
	require.NoError(t, err)
	content, err := os.ReadFile(fake)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(library, content, 0o755))
	require.NoError(t, os.Symlink(filepath.Base(library), filepath.Join(lib, "libnvidia-ml.so.1")))
	require.NoError(t, os.WriteFile(filepath.Join(lib, "libcuda.so."+driver), nil, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "usr/bin/nvidia-smi"), nil, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "usr/bin/nvidia-cdi-hook"), nil, 0o755))
	return root
}

func config(t *testing.T, root string) cdi.Config {
	t.Setenv("GENERATE_TEST_CHILD", "1")
	return cdi.Config{
		Dir: t.TempDir(), DriverRootMount: root, Library: filepath.Join(root, "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"),
		Generator: &cdi.Child{Path: os.Args[0]}, Deadline: 20 * time.Second,
	}
}

func snapshot() *gpu.Snapshot {
	return &gpu.Snapshot{Driver: gpu.Driver{Loaded: true, Version: driver}, Devices: []gpu.Device{
		{UUID: gpu0}, {UUID: gpu1, Index: 1, Minor: 1},
	}}
}

// written runs a writer until it has dealt with the snapshot.
func written(t *testing.T, cfg cdi.Config, s *gpu.Snapshot) *cdi.Writer {
	t.Helper()
	done := make(chan struct{}, 1)
	cfg.Changed = func() {
		select {
		case done <- struct{}{}:
		default:
		}
	}
	var snapshots watch.Value[*gpu.Snapshot]
	snapshots.Set(s)
	w, err := cdi.New(cfg, &snapshots)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("nothing was written")
	}
	stop()
	require.NoError(t, <-ended)
	return w
}

func TestTheRuntimeGetsADriverAndItsGPUs(t *testing.T) {
	root := driverRoot(t)
	cfg := config(t, root)
	cfg.Classes, cfg.DisabledHooks = []string{cdi.ClassGDRCopy}, []string{"apply-cuda-memory-limits"}
	w := written(t, cfg, snapshot())
	require.NoError(t, w.Err())
	require.Empty(t, w.Missing(snapshot()))

	cache, err := cdilib.NewCache(cdilib.WithSpecDirs(cfg.Dir), cdilib.WithAutoRefresh(false))
	require.NoError(t, err)
	require.Empty(t, cache.GetErrors())
	const kind = cdi.Vendor + "/gpu="
	require.Equal(t, []string{cdi.Vendor + "/gdrcopy=all", kind + "0", kind + "1", kind + gpu0, kind + gpu1}, cache.ListDevices())

	one := cache.GetDevice(kind + gpu1)
	require.Equal(t, one.ContainerEdits, cache.GetDevice(kind+"1").ContainerEdits)
	whole := (&cdilib.ContainerEdits{ContainerEdits: &one.ContainerEdits}).Append(&cdilib.ContainerEdits{ContainerEdits: &one.GetSpec().ContainerEdits})
	nodes, mounts := map[string]string{}, []string{}
	for _, d := range whole.DeviceNodes {
		nodes[d.Path] = d.HostPath
	}
	for _, m := range whole.Mounts {
		mounts = append(mounts, m.HostPath)
	}
	require.Equal(t, map[string]string{
		"/dev/nvidia1": "/dev/nvidia1", "/dev/nvidiactl": "/dev/nvidiactl",
		"/dev/nvidia-uvm": "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools": "/dev/nvidia-uvm-tools",
	}, nodes, "paths of the host, not of this container")
	require.Contains(t, mounts, "/usr/lib/x86_64-linux-gnu/libcuda.so."+driver)
	require.Contains(t, whole.Env, "NVIDIA_VISIBLE_DEVICES=void", "the runtime's hook does not inject them again")
	require.NotEmpty(t, whole.Hooks)
	for _, h := range whole.Hooks {
		require.Equal(t, "/usr/bin/nvidia-cdi-hook", h.Path)
	}
	content, err := os.ReadFile(filepath.Join(cfg.Dir, "k8s.device-plugin.nvidia.com-gpu.json"))
	require.NoError(t, err)
	require.NotContains(t, string(content), root, "no path of this container is left")
	require.Contains(t, string(content), "update-ldcache")
	require.NotContains(t, string(content), "apply-cuda-memory-limits", "which an older toolkit of the host does not have")
}

func TestAnInstanceThatIsGoneHoldsBackItsGPUAlone(t *testing.T) {
	root := driverRoot(t)
	cfg := config(t, root)
	s := snapshot()
	s.Devices[1].MIGEnabled = true
	s.Devices[1].Instances = []gpu.Instance{{UUID: "MIG-1"}}
	w := written(t, cfg, s)
	require.Contains(t, w.Missing(s)[gpu1], "no CDI device")
	require.Empty(t, w.Missing(s)[gpu0], "GPU 0 does not suffer")
}

func TestAGPUWithoutADeviceNodeIsNamed(t *testing.T) {
	root := driverRoot(t)
	require.NoError(t, os.Remove(filepath.Join(root, "dev/nvidia1")))
	w := written(t, config(t, root), snapshot())
	require.Equal(t, map[gpu.UUID]string{
		gpu1: "no CDI device for " + gpu1 + ": it has no device node: is the host's /dev below cdi.devRoot mounted here?",
	}, w.Missing(snapshot()))
}

func state(t *testing.T, content string) {
	path := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	t.Setenv("FAKENVML_STATE", path)
}

func TestAGPUThatHangsHoldsBackItselfAlone(t *testing.T) {
	root := driverRoot(t)
	state(t, "gpu 0 hang=1\n")
	cfg := config(t, root)
	cfg.Deadline = 5 * time.Second // twice, and ample for a child that does answer on a busy machine
	w := written(t, cfg, snapshot())
	require.NoError(t, w.Err())
	require.Equal(t, map[gpu.UUID]string{
		gpu0: "no CDI device for " + gpu0 + ": the driver did not answer in time",
	}, w.Missing(snapshot()))
}

const instance7 = "MIG-23300001-5140-4000-8000-000000000007"

// split is the snapshot with one MIG instance on GPU 1.
func split(t *testing.T) *gpu.Snapshot {
	state(t, "gpu 1 mig=1\nmig 1 1g.10gb gi=7 ci=0 uuid="+instance7+"\n")
	s := snapshot()
	s.Devices[1].MIGEnabled = true
	s.Devices[1].Instances = []gpu.Instance{{UUID: instance7, GI: 7}}
	return s
}

func TestAnInstanceGetsItsGPUAndItsCapabilities(t *testing.T) {
	root := driverRoot(t)
	s := split(t)
	cfg := config(t, root)
	cfg.Generator = withMinors(t, "gpu1/gi7/access 66", "gpu1/gi7/ci0/access 67", "gpu1/gi8/access 75", "gpu1/gi8/ci0/access 76")
	require.NoError(t, os.Mkdir(filepath.Join(root, "dev/nvidia-caps"), 0o755))
	for _, minor := range []int{66, 67, 75, 76} {
		node := filepath.Join(root, fmt.Sprintf("dev/nvidia-caps/nvidia-cap%d", minor))
		require.NoError(t, unix.Mknod(node, unix.S_IFCHR|0o444, int(unix.Mkdev(237, uint32(minor)))))
	}
	w := written(t, cfg, s)
	require.NoError(t, w.Err())
	require.Empty(t, w.Missing(s))

	cache, err := cdilib.NewCache(cdilib.WithSpecDirs(cfg.Dir), cdilib.WithAutoRefresh(false))
	require.NoError(t, err)
	require.Empty(t, cache.GetErrors())
	const kind = cdi.Vendor + "/gpu="
	require.Equal(t, []string{kind + "0", kind + "1:0", kind + gpu0, kind + instance7}, cache.ListDevices())
	one := cache.GetDevice(kind + instance7)
	require.Equal(t, one.ContainerEdits, cache.GetDevice(kind+"1:0").ContainerEdits)
	nodes := map[string]string{}
	for _, d := range one.ContainerEdits.DeviceNodes {
		nodes[d.Path] = d.HostPath
	}
	require.Equal(t, map[string]string{
		"/dev/nvidia1":                  "/dev/nvidia1",
		"/dev/nvidia-caps/nvidia-cap66": "/dev/nvidia-caps/nvidia-cap66",
		"/dev/nvidia-caps/nvidia-cap67": "/dev/nvidia-caps/nvidia-cap67",
	}, nodes, "its GPU, its GPU instance and its compute instance, and no other's")
}

// withMinors runs the generation where the kernel says which capability is which device node, as with a driver that
// has MIG. /proc is the kernel's own, so the child has mounts of its own.
func withMinors(t *testing.T, lines ...string) *cdi.Child {
	t.Helper()
	driver := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(driver, "nvidia-caps"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(driver, "nvidia-caps/mig-minors"), []byte(strings.Join(lines, "\n")+"\n"), 0o444))
	child := &cdi.Child{Path: "unshare", Args: []string{
		"--mount", "--propagation", "private", "sh", "-c", `mount --bind "$0" /proc/driver && exec "$1"`, driver, os.Args[0],
	}}
	path, err := exec.LookPath(child.Path)
	if err == nil {
		child.Path = path
		err = exec.Command(path, "--mount", "--propagation", "private", "mount", "--bind", driver, "/proc/driver").Run()
	}
	if err != nil {
		t.Skipf("no mounts of its own for a child here: %v", err)
	}
	return child
}

func TestAFunctionThatTheDriverLacksCostsOneGPU(t *testing.T) {
	root := driverRoot(t)
	_, err := build(filepath.Join(root, "usr/lib/x86_64-linux-gnu/libnvidia-ml.so."+driver), "-DFAKENVML_NO_PROFILES")
	require.NoError(t, err)
	s := split(t)
	w := written(t, config(t, root), s)
	require.NoError(t, w.Err())
	require.Contains(t, w.Missing(s)[gpu1], "symbol lookup error")
	require.Empty(t, w.Missing(s)[gpu0])
}
