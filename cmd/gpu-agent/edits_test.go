package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/deviceplugin/kubelettest"
)

// edited is an agent in this process, a kubelet that holds its stream, and the agent's file.
type edited struct {
	*agent
	dir     string
	kubelet *kubelettest.Kubelet
	log     *lines
	keys    map[string]string // by section, what the file says of it
	tries   atomic.Int64      // of reading the file
}

// lines is a log that is read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newEdited(t *testing.T, keys map[string]string) *edited {
	t.Helper()
	dir, err := os.MkdirTemp("", "edits") // the path of a socket is short
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e := &edited{dir: dir, kubelet: kubelettest.New(filepath.Join(dir, "kubelet")), log: &lines{}, keys: map[string]string{
		"nodeName":     "node-1",
		"nvml":         "{interval: 200ms, simulate: {gpu: H100, count: 2}}",
		"devicePlugin": "{kubeletDir: $DIR/kubelet}",
		"podResources": "{enabled: false}",
		"labels":       "{sink: file, file: $DIR/labels}",
		"http":         `{listen: "127.0.0.1:0", socket: $DIR/agent.sock}`,
		"cache":        "{root: $DIR/cache, limit: 1Gi}",
	}}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "kubelet"), 0o755))
	require.NoError(t, e.kubelet.Start())
	t.Cleanup(e.kubelet.Stop)
	e.write(t, keys)
	load := func(choice string) (config.Config, error) {
		e.tries.Add(1)
		return config.LoadFor(filepath.Join(dir, "config.yaml"), choice)
	}
	c, err := load("")
	require.NoError(t, err)
	e.agent, err = newAgent(c, filepath.Join(dir, "config.yaml"), newLogging(c.Log, e.log))
	require.NoError(t, err)
	e.unfitRetry = 50 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.run(ctx, load) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-ended)
		if t.Failed() {
			t.Log(e.log)
		}
	})
	return e
}

// write replaces the file, with other words in some sections.
func (e *edited) write(t *testing.T, keys map[string]string) {
	t.Helper()
	text := "apiVersion: gpu-agent.dev/v1alpha1\nkind: Config\n"
	for k, v := range keys {
		e.keys[k] = v
	}
	for k, v := range e.keys {
		text += k + ": " + strings.ReplaceAll(v, "$DIR", e.dir) + "\n"
	}
	path := filepath.Join(e.dir, "config.yaml")
	require.NoError(t, os.WriteFile(path+".new", []byte(text), 0o644))
	require.NoError(t, os.Rename(path+".new", path))
}

// edit replaces the file and waits until check finds the edit in force.
func (e *edited) rewrite(t *testing.T, keys map[string]string, check func(t require.TestingT)) {
	t.Helper()
	e.write(t, keys)
	require.EventuallyWithT(t, func(c *assert.CollectT) { check(c) }, 20*time.Second, 10*time.Millisecond, "%v", keys)
}

func (e *edited) has(t *testing.T, healthy int) kubelettest.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := e.kubelet.Wait(ctx, func(s kubelettest.State) bool { return s.Healthy() == healthy })
	require.NoError(t, err, "%+v", s)
	return s
}

func (e *edited) get(t require.TestingT, address, path string) string {
	answer, err := http.Get("http://" + address + path)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return string(body)
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

func TestAnEditTouchesThePartsWhoseConfigurationDiffersAndNoOther(t *testing.T) {
	e := newEdited(t, nil)
	e.has(t, 2)
	require.EventuallyWithT(t, func(c *assert.CollectT) { require.FileExists(c, filepath.Join(e.dir, "labels")) }, 20*time.Second, 10*time.Millisecond)
	plugin, address := e.now().plugin, freeAddress(t)
	listen := func(more string) string { return fmt.Sprintf("{listen: %q, socket: $DIR/%s}", address, more) }
	tookOver := func(t require.TestingT, parts string) {
		require.Contains(t, e.log.String(), "other parts take over", parts)
		all := strings.Split(strings.TrimSpace(e.log.String()), "other parts take over")
		require.Contains(t, all[len(all)-1], parts)
	}

	e.rewrite(t, map[string]string{"http": listen("agent.sock")}, func(t require.TestingT) {
		require.Equal(t, "ok\n", e.get(t, address, "/livez"))
		tookOver(t, "parts=[http]")
	})
	e.rewrite(t, map[string]string{"log": "{level: debug}"}, func(t require.TestingT) { require.True(t, e.agent.log.Enabled(context.Background(), -4)) })
	e.rewrite(t, map[string]string{"log": "{level: info, format: json}"}, func(t require.TestingT) { require.False(t, e.agent.log.Enabled(context.Background(), -4)) })
	e.rewrite(t, map[string]string{"exporter": "{schemas: [native]}"}, func(t require.TestingT) {
		metrics := e.get(t, address, "/metrics")
		require.Contains(t, metrics, "\ngpu_temperature_celsius{")
		require.NotContains(t, metrics, "DCGM_")
	})
	require.Contains(t, e.log.String(), `"msg":"configuration changed: other parts take over","parts":["exporter"]}`)
	e.rewrite(t, map[string]string{"log": "{}", "exporter": "{xidHold: 5m}"}, func(t require.TestingT) {
		require.Contains(t, e.get(t, address, "/metrics"), "DCGM_")
		tookOver(t, "parts=[exporter]")
	})
	e.rewrite(t, map[string]string{"labels": "{sink: file, file: $DIR/elsewhere}"}, func(t require.TestingT) {
		require.FileExists(t, filepath.Join(e.dir, "elsewhere"))
		tookOver(t, "parts=[labels]")
	})
	e.rewrite(t, map[string]string{"cache": "{root: $DIR/cache, limit: 2Gi, streams: 7}"}, func(t require.TestingT) {
		inventory := e.caches.Get()
		require.NotNil(t, inventory)
		require.Equal(t, int64(2<<30), inventory.Limit)
		tookOver(t, "parts=\"[cache origins]\"")
	})
	e.rewrite(t, map[string]string{"podResources": "{enabled: true, socket: $DIR/pods.sock}"}, func(t require.TestingT) {
		require.Contains(t, e.get(t, address, "/readyz"), "[-] pods: ")
		tookOver(t, "parts=\"[exporter pods]\"")
	})
	e.rewrite(t, map[string]string{"podResources": "{enabled: false}"}, func(t require.TestingT) {
		require.NotContains(t, e.get(t, address, "/readyz"), "pods")
	})
	e.rewrite(t, map[string]string{"http": listen("other.sock")}, func(t require.TestingT) {
		_, err := os.Stat(filepath.Join(e.dir, "other.sock"))
		require.NoError(t, err)
		_, err = os.Stat(filepath.Join(e.dir, "agent.sock"))
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	uuid := e.gate.Get().Devices[1].UUID
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, e.now().monitor.Cordon(ctx, uuid, "fan is loud"))
	e.has(t, 1)
	before, monitor := e.has(t, 1), e.now().monitor
	e.rewrite(t, map[string]string{"nvml": "{interval: 300ms, simulate: {gpu: H100, count: 2}}", "health": "{probes: 2}"}, func(t require.TestingT) {
		require.True(t, monitor != e.now().monitor)
		tookOver(t, "parts=[nvml]")
	})
	_, _, err := e.now().monitor.Uncordon(ctx, uuid)
	require.NoError(t, err, "the new owner of the GPUs knows what the old one knew")
	after := e.has(t, 2)

	require.True(t, plugin == e.now().plugin, "it was never built again")
	require.Len(t, after.Registrations, 1)
	require.Equal(t, 1, after.Streams)
	require.Zero(t, after.Gaps)
	require.Equal(t, before.Updates+1, after.Updates, "the kubelet has seen the cordon and its end, and no edit")
	require.Equal(t, 2, before.Updates)

	// Other GPUs are other devices, on the same stream.
	e.rewrite(t, map[string]string{"nvml": "{interval: 300ms, simulate: {gpu: H100, count: 4}}"}, func(t require.TestingT) {
		require.Len(t, e.gate.Get().Devices, 4)
	})
	after = e.has(t, 4)
	require.Len(t, after.Registrations, 1)

	e.rewrite(t, map[string]string{"allocation": "none"}, func(t require.TestingT) {
		require.Zero(t, e.kubelet.State().Streams)
		require.NotContains(t, e.get(t, address, "/readyz"), "deviceplugin")
	})
	e.rewrite(t, map[string]string{"allocation": "device-plugin"}, func(t require.TestingT) { require.Equal(t, 4, e.kubelet.State().Healthy()) })
}

func TestAnEditThatCannotBeMadeChangesNothing(t *testing.T) {
	e := newEdited(t, nil)
	e.has(t, 2)
	now := e.now()
	e.rewrite(t, map[string]string{"labels": "{sink: node, kubeconfig: $DIR/none}", "exporter": "{schemas: [native]}"}, func(t require.TestingT) {
		require.Contains(t, e.state().Config.Error, "labels.sink is node, but the API server cannot be reached")
	})
	require.Equal(t, now.config.Exporter, e.now().config.Exporter)
	require.True(t, now.sink == e.now().sink && now.plugin == e.now().plugin)
	require.Len(t, e.kubelet.State().Registrations, 1)
	e.rewrite(t, map[string]string{"labels": "{sink: none}"}, func(t require.TestingT) {
		require.Empty(t, e.state().Config.Error)
		require.Nil(t, e.now().sink)
	})
}

// What this node cannot follow is found at the edit: what is offered stays. Once the node can, it is in force.
func TestAnEditThatDoesNotFitTheNodeChangesNothing(t *testing.T) {
	plugin := func(more string) map[string]string {
		return map[string]string{"devicePlugin": "{kubeletDir: $DIR/kubelet, " + more + "}"}
	}
	shared := func(rule string) map[string]string {
		return plugin("sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4" + rule + "}]}}")
	}
	e := newEdited(t, shared(""))
	e.has(t, 8)
	before := e.kubelet.State()
	refused := func(keys map[string]string, why string) {
		t.Helper()
		e.rewrite(t, keys, func(t require.TestingT) {
			e.mu.Lock()
			defer e.mu.Unlock()
			require.ErrorContains(t, e.configErr, why)
			require.ErrorContains(t, e.configErr, "; the configuration before it stays in force")
		})
		e.write(t, shared(""))
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			e.mu.Lock()
			defer e.mu.Unlock()
			require.NoError(c, e.configErr)
		}, 20*time.Second, 10*time.Millisecond)
	}
	refused(shared(", devices: [9]"), "no GPU 9")
	refused(plugin(`sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 2, devices: [0]},
      {name: nvidia.com/gpu, replicas: 4, devices: [`+string(e.now().monitor.Get().Devices[0].UUID)+`]}]}}`), "GPU 0")
	require.Equal(t, before, e.kubelet.State(), "the kubelet saw something of it")
	e.rewrite(t, shared(", devices: [1]"), func(t require.TestingT) { require.Equal(t, 5, e.kubelet.State().Healthy()) })
	// A GPU in MIG mode that is not to be offered, and a rule for nodes of another kind, may be meant.
	e.rewrite(t, plugin("sharing: {timeSlicing: {resources: [{name: nvidia.com/mig-1g.10gb, replicas: 4}]}}"), func(t require.TestingT) {
		require.Equal(t, 2, e.kubelet.State().Healthy())
	})
	require.Contains(t, strings.Join(e.policy.Get().Problems(e.now().monitor.Get()), ""), "nothing on this node is offered as nvidia.com/mig-1g.10gb")
}

// What does not fit is tried again while it stands, and said once.
func TestAnEditThatDoesNotFitIsTriedAgain(t *testing.T) {
	e := newEdited(t, nil)
	e.has(t, 2)
	e.rewrite(t, map[string]string{"devicePlugin": "{kubeletDir: $DIR/kubelet, exclude: [7]}"}, func(t require.TestingT) {
		require.GreaterOrEqual(t, e.tries.Load(), int64(4))
	})
	require.Equal(t, 1, strings.Count(e.log.String(), "exclude[0]: there is no GPU 7 on this node"), e.log)
}
