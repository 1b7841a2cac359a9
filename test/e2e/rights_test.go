package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestRights tries, with the token of a pod on the node, what the agent does and what it must not do.
func TestRights(t *testing.T) {
	n := needNode(t)
	n.deploy(t, deployment{strategy: "envvar", driver: newDriver(t, 1)})
	pods := n.agents(t)
	require.Len(t, pods, 1)
	token := n.kubectl(t, "-n", "gpu-agent", "create", "token", "gpu-agent",
		"--bound-object-kind=Pod", "--bound-object-name="+pods[0].Metadata.Name)
	unbound := n.kubectl(t, "-n", "gpu-agent", "create", "token", "gpu-agent")
	n.apply(t, "apiVersion: v1\nkind: Node\nmetadata: {name: other}\n")

	taints := func(keys ...string) string {
		list := []string{}
		for _, key := range keys {
			list = append(list, `{"key":"`+key+`","effect":"PreferNoSchedule"}`)
		}
		return `{"spec":{"taints":[` + strings.Join(list, ",") + `]}}`
	}
	n.kubectl(t, "patch", "node", nodeName, "--type=merge", "-p", taints("gpu-agent.dev/not-ready", "example.com/taint"))
	t.Cleanup(func() { n.kubectl(t, "patch", "node", nodeName, "--type=merge", "-p", taints()) })

	const strategic, merge, create = "PATCH strategic-merge-patch+json", "PATCH merge-patch+json", "POST json"
	conditions := func(list string) string { return `{"status":{"conditions":[` + list + `]}}` }
	event := func(kind, name string) string {
		return fmt.Sprintf(`{"metadata":{"generateName":"rights-"},"involvedObject":{"kind":"%s","name":"%s"},"type":"Normal","reason":"Test","message":"m"}`, kind, name)
	}
	const events = "/api/v1/namespaces/default/events"
	tests := []struct {
		what, how, path, body string
		token                 string
		want                  string // in the answer; "" is success
	}{
		{"a label of its node", merge, "/api/v1/nodes/node-1", `{"metadata":{"labels":{"example.com/a":"1"}}}`, token, ""},
		{"a label less", merge, "/api/v1/nodes/node-1", `{"metadata":{"labels":{"example.com/a":null}}}`, token, ""},
		{"its condition", strategic, "/api/v1/nodes/node-1/status", conditions(`{"type":"GPUsHealthy","status":"False"}`), token, ""},
		{"an event of its node", create, events, event("Node", "node-1"), token, ""},

		{"a taint more", merge, "/api/v1/nodes/node-1", taints("gpu-agent.dev/not-ready", "example.com/taint", "example.com/more"), token, "may only take off the taint"},
		{"another's taint less", merge, "/api/v1/nodes/node-1", taints("gpu-agent.dev/not-ready"), token, "may only take off the taint"},
		{"its taint", merge, "/api/v1/nodes/node-1", taints("example.com/taint"), token, ""},

		{"a label of another", merge, "/api/v1/nodes/other", `{"metadata":{"labels":{"example.com/a":"1"}}}`, token, "may change only the Node that it runs on"},
		{"a token of no node", merge, "/api/v1/nodes/node-1", `{"metadata":{"labels":{"example.com/a":"1"}}}`, unbound, "may change only the Node that it runs on"},
		{"cordon its node", merge, "/api/v1/nodes/node-1", `{"spec":{"unschedulable":true}}`, token, "may not change the spec"},
		{"condition of another", strategic, "/api/v1/nodes/other/status", conditions(`{"type":"GPUsHealthy","status":"False"}`), token, "may change only the Node that it runs on"},
		{"the kubelet's condition", strategic, "/api/v1/nodes/node-1/status", conditions(`{"type":"Ready","status":"False"}`), token, "may change only the condition GPUsHealthy"},
		{"a condition less", strategic, "/api/v1/nodes/node-1/status", conditions(`{"type":"Ready","$patch":"delete"}`), token, "may change only the condition GPUsHealthy"},
		{"a resource of the node", merge, "/api/v1/nodes/node-1/status", `{"status":{"capacity":{"example.com/a":"4"}}}`, token, "may change only the conditions"},
		{"an event of another", create, events, event("Node", "other"), token, "may tell events only of the Node that it runs on"},
		{"an event of a pod", create, events, event("Pod", "node-1"), token, "may tell events only of the Node that it runs on"},
		{"an event elsewhere", create, "/api/v1/namespaces/kube-system/events", event("Node", "node-1"), token, "forbidden"},
		{"all pods", "GET json", "/api/v1/pods", "", token, "forbidden"},
		{"the kubelet through the server", "GET json", "/api/v1/nodes/node-1/proxy/pods", "", token, "forbidden"},
		{"all nodes", "GET json", "/api/v1/nodes", "", token, "forbidden"},
		{"secrets", "GET json", "/api/v1/namespaces/gpu-agent/secrets", "", token, "forbidden"},
		{"slices of its node", "GET json", "/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName%3Dnode-1,spec.driver%3Dgpu.nvidia.com", "", token, ""},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			method, kind, _ := strings.Cut(tt.how, " ")
			out := n.must(t, "exec", "curl", "--silent", "--insecure", "--request", method,
				"--header", "Authorization: Bearer "+strings.TrimSpace(tt.token), "--header", "Content-Type: application/"+kind,
				"--data", tt.body, "https://10.85.0.10:6443"+tt.path)
			var answer struct{ Kind, Message string }
			require.NoError(t, json.Unmarshal([]byte(out), &answer), out)
			if tt.want == "" {
				require.NotEqual(t, "Status", answer.Kind, out)
				return
			}
			require.Equal(t, "Status", answer.Kind, out)
			require.Contains(t, answer.Message, tt.want)
		})
	}
	eventually(t, 20*time.Second, "the policies' expressions are sound", func() error {
		for _, policy := range []string{"gpu-agent-own-node", "gpu-agent-own-events"} {
			out, err := n.try("", "kubectl", "get", "validatingadmissionpolicy", policy, "-o", "jsonpath={.status}")
			if err != nil {
				return err
			}
			if !strings.Contains(out, "observedGeneration") || strings.Contains(out, "expressionWarnings") {
				return fmt.Errorf("%s: %s", policy, out)
			}
		}
		return nil
	})
}
