package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const nodeName = "node-1"

// node is the cluster of cluster.sh in dir.
type node struct {
	dir string
	own bool // started by these tests, so ended by them
}

// TestMain starts the cluster unless one is up, and ends only the one that it started.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			return m.Run() // each test says why it is skipped
		}
		n := theNode()
		defer func() {
			if n.own {
				if out, err := n.script("down"); err != nil {
					fmt.Fprintf(os.Stderr, "cluster.sh down: %v\n%s", err, out)
				}
			}
		}()
		if _, err := n.script("status"); err != nil {
			n.own = true
			if out, err := n.script("up"); err != nil {
				fmt.Fprintf(os.Stderr, "cluster.sh up: %v\n%s", err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

func theNode() *node {
	dir := os.Getenv("GPU_AGENT_E2E_DIR")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "gpu-agent-e2e")
	}
	return &node{dir: dir}
}

// needNode gives the running cluster.
func needNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the cluster makes namespaces, mounts and cgroups")
	}
	return theNode()
}

func (n *node) script(args ...string) ([]byte, error) {
	return exec.Command("./cluster.sh", append([]string{"-dir", n.dir}, args...)...).CombinedOutput()
}

// try runs a command of cluster.sh with stdin and gives its standard output.
func (n *node) try(stdin string, args ...string) (string, error) {
	cmd := exec.Command("./cluster.sh", append([]string{"-dir", n.dir}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (n *node) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.try("", args...)
	require.NoError(t, err)
	return out
}

func (n *node) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return n.must(t, append([]string{"kubectl"}, args...)...)
}

// object reads one object of the API.
func object[T any](n *node, args ...string) (v T, err error) {
	out, err := n.try("", append([]string{"kubectl", "get", "-o", "json"}, args...)...)
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal([]byte(out), &v)
}

// nodeObject is what these tests read of a Node.
type nodeObject struct {
	Metadata struct{ Labels map[string]string }
	Status   struct {
		Capacity, Allocatable map[string]string
		Conditions            []struct{ Type, Status, Reason, Message string }
	}
}

// gpuLabels are the labels that the agent applies.
func (o nodeObject) gpuLabels() map[string]string {
	found := map[string]string{}
	for k, v := range o.Metadata.Labels {
		if strings.HasPrefix(k, "nvidia.com/") || strings.Contains(k, "gpu-agent.dev/") {
			found[k] = v
		}
	}
	return found
}

// podObject is what these tests read of a Pod.
type podObject struct {
	Metadata struct{ Name, UID string }
	Status   struct {
		Phase             string
		Reason, Message   string
		ContainerStatuses []struct {
			ContainerID  string
			RestartCount int
			Ready        bool
			State        map[string]struct{ StartedAt, Reason, Message string }
			// Filled in by the kubelet's feature ResourceHealthStatus.
			AllocatedResourcesStatus []struct {
				Name      string
				Resources []struct{ ResourceID, Health string }
			} `json:",omitempty"`
		}
	}
}

// eventually polls until check returns nil, and fails with its last error after limit.
func eventually(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			t.Logf("%s: after %s", what, time.Since(start).Round(100*time.Millisecond))
			return
		}
		if time.Since(start) > limit {
			require.NoError(t, err, "%s: not within %s", what, limit)
		}
		<-tick.C
	}
}

// offers waits until the node has that many GPUs to give.
func (n *node) offers(t *testing.T, want string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, "allocatable nvidia.com/gpu is "+want, func() error {
		o, err := object[nodeObject](n, "node", nodeName)
		if err != nil {
			return err
		}
		if got := o.Status.Allocatable["nvidia.com/gpu"]; got != want {
			return fmt.Errorf("allocatable nvidia.com/gpu is %q, want %s", got, want)
		}
		return nil
	})
}

// apply creates what manifest says and deletes it when the test ends.
func (n *node) apply(t *testing.T, manifest string) {
	t.Helper()
	_, err := n.try(manifest, "kubectl", "apply", "-f", "-")
	require.NoError(t, err, manifest)
	t.Cleanup(func() {
		_, err := n.try(manifest, "kubectl", "delete", "--ignore-not-found", "--now", "-f", "-")
		if err != nil {
			t.Log(err)
		}
	})
}

// runs waits until the pod's containers are ready, and gives the pod.
func (n *node) runs(t *testing.T, pod string, limit time.Duration) podObject {
	t.Helper()
	var p podObject
	eventually(t, limit, "pod "+pod+" runs", func() (err error) {
		if p, err = object[podObject](n, "pod", pod); err != nil {
			return err
		}
		if p.Status.Phase == "Running" && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready {
			return nil
		}
		return fmt.Errorf("pod %s: %+v", pod, p.Status)
	})
	return p
}

func TestClusterRunsAPod(t *testing.T) {
	n := needNode(t)
	n.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: plain
    image: docker.io/library/busybox:e2e
    imagePullPolicy: Never
    command: [/bin/sh, -c, "echo words; busybox sleep 100000"]
`)
	n.runs(t, "plain", time.Minute)
	require.Equal(t, "words\n", n.kubectl(t, "logs", "plain"))
}

func errLabels(o nodeObject) error { return fmt.Errorf("labels: %v", o.gpuLabels()) }

func errDevices(devices map[string]bool) error { return fmt.Errorf("devices: %v", devices) }

// says is an error unless out holds all words.
func says(out string, err error, words ...string) error {
	for _, word := range words {
		if err == nil && !strings.Contains(out, word) {
			err = fmt.Errorf("%q is not in: %s", word, out)
		}
	}
	return err
}
