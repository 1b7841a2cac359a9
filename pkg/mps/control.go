package mps

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpu-agent/gpu-agent/internal/process"
	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

// The programs, in Config.BinDir. The server is started by the control daemon.
const (
	controlBin = "nvidia-cuda-mps-control"
	serverBin  = "nvidia-cuda-mps-server"
	smiBin     = "nvidia-smi"
)

// callPatience bounds one command to the daemon, and one change of a compute mode.
const callPatience = 5 * time.Second

// control sends commands to the daemon of one share. It is used by one goroutine.
type control struct {
	bin    string // folder of the programs
	share  resource.MPS
	runner process.Runner
}

// environment names the daemon's folders, to itself and to those who talk to it.
func (c *control) environment() []string {
	return []string{"CUDA_MPS_PIPE_DIRECTORY=" + c.share.PipeDir, "CUDA_MPS_LOG_DIRECTORY=" + c.share.LogDir}
}

func (c *control) path(name string) string { return filepath.Join(c.bin, name) }

// programs is an error when one of the programs is not in bin.
func programs(bin string) error {
	for _, name := range []string{controlBin, serverBin, smiBin} {
		path := filepath.Join(bin, name)
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			return fmt.Errorf("%s is not there: MPS needs the driver's programs here (NVIDIA_DRIVER_CAPABILITIES=compute,utility), or devicePlugin.mpsBinDir where they are", path)
		}
	}
	return nil
}

// tell sends one command and returns the answer.
func (c *control) tell(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	out, err := c.runner.Run(ctx, process.Command{Path: c.path(controlBin), Env: c.environment(), Stdin: []byte(command + "\n")})
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Fields(command)[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

// answers reports whether a daemon is there: it is asked what NVIDIA's plugin asks it.
func (c *control) answers(ctx context.Context) error {
	_, err := c.tell(ctx, "get_default_active_thread_percentage")
	return err
}

// busy reports whether the daemon has started a server, which it does for its first client.
func (c *control) busy(ctx context.Context) bool {
	servers, err := c.tell(ctx, "get_server_list")
	return err != nil || servers != ""
}

// limit sets what a client may take: an equal part of each GPU's memory and of its multiprocessors. The
// daemon knows one share of multiprocessors for all its GPUs; where they are shared differently often, it is
// the largest, which cuts nobody short. A GPU that the daemon does not see has no limit to set.
func (c *control) limit(ctx context.Context, sees []gpu.UUID) error {
	fewest := 0
	for _, d := range c.share.Devices {
		if !slices.Contains(sees, d.UUID) {
			continue
		}
		if fewest == 0 || d.Replicas < fewest {
			fewest = d.Replicas
		}
		if d.MemoryLimit == 0 {
			continue
		}
		if _, err := c.tell(ctx, fmt.Sprintf("set_default_device_pinned_mem_limit %s %dM", d.UUID, d.MemoryLimit>>20)); err != nil {
			return err
		}
	}
	_, err := c.tell(ctx, fmt.Sprintf("set_default_active_thread_percentage %d", 100/max(fewest, 1)))
	return err
}

// mode sets the compute mode of GPUs and returns why it could not, by GPU.
func (c *control) mode(ctx context.Context, mode string, gpus []gpu.UUID) map[gpu.UUID]error {
	failed := map[gpu.UUID]error{}
	for _, id := range gpus {
		ctx, cancel := context.WithTimeout(ctx, callPatience)
		_, err := c.runner.Run(ctx, process.Command{Path: c.path(smiBin), Args: []string{"-i", string(id), "-c", mode}})
		cancel()
		if err != nil {
			failed[id] = fmt.Errorf("%s -c %s: %w", smiBin, mode, err)
		}
	}
	return failed
}

// prepare checks what the daemon needs and makes its folders.
func (c *control) prepare(shm string) error {
	if err := programs(c.bin); err != nil {
		return err
	}
	if err := os.MkdirAll(c.share.ShmDir, 0o755); err != nil {
		return fmt.Errorf("%w: mount the host's %s here at the same path", err, filepath.Dir(c.share.ShmDir))
	}
	here, err := os.Stat(shm)
	if err != nil {
		return err
	}
	there, err := os.Stat(c.share.ShmDir)
	if err != nil {
		return err
	}
	if !os.SameFile(here, there) {
		return fmt.Errorf("%s is not %s of the host: the daemon and its clients meet there, so mount it: see docs/mps.md", shm, c.share.ShmDir)
	}
	// Clients need not be root: as /dev/shm is everywhere, and not less for an umask.
	if there.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		if err := os.Chmod(c.share.ShmDir, os.ModeSticky|0o777); err != nil {
			return err
		}
	}
	for _, dir := range []string{c.share.PipeDir, c.share.LogDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return allowContainers(c.share.PipeDir)
}

// allowContainers labels a folder so that SELinux lets containers into it; what is made in it inherits that.
func allowContainers(dir string) error {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		return nil // no SELinux here
	}
	const label = "system_u:object_r:container_file_t:s0\x00"
	if err := unix.Setxattr(dir, "security.selinux", []byte(label), 0); err != nil {
		return fmt.Errorf("label %s for SELinux: %w", dir, err)
	}
	return nil
}
