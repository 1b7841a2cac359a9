package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// apiServer answers for one Node as kube-apiserver 1.37 does. What it cannot do, merge by field
// ownership, is the end-to-end test's; it refuses what that would refuse.
type apiServer struct {
	*httptest.Server

	mu      sync.Mutex
	node    metav1.PartialObjectMetadata
	held    map[string][2]string // by others: key -> value, manager
	fail    int                  // status code of every answer, if not 0
	applies []apply
	gone    bool // between GET and PATCH the node was deleted

	taints     []any                     // in the node's spec
	conditions []map[string]any          // in the node's status
	events     map[string]map[string]any // in namespace default, by name
	slices     map[string][]string       // names of ResourceSlices, by the version that is served
	selector   string                    // of the last list of them
}

type apply struct {
	path, query, contentType string
	body                     map[string]any
}

func (a apply) conditions() []any {
	return a.body["status"].(map[string]any)["conditions"].([]any)
}

func (a apply) labels() map[string]any {
	return a.body["metadata"].(map[string]any)["labels"].(map[string]any)
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{held: map[string][2]string{}, events: map[string]map[string]any{}}
	s.node.TypeMeta = metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}
	s.node.Name, s.node.UID = "n1", "uid-1"
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.fail != 0:
		refuse(w, s.fail, metav1.StatusReasonForbidden, "nodes is forbidden")
	case strings.HasPrefix(r.URL.Path, "/apis/resource.k8s.io/"):
		s.listSlices(w, r)
	case r.Method == http.MethodPost && r.URL.Path == "/api/v1/namespaces/default/events":
		s.create(w, r)
	case r.Method == http.MethodPatch && r.URL.Path == "/api/v1/nodes/n1/status":
		s.apply(w, r)
	case r.URL.Path != "/api/v1/nodes/n1":
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, r.URL.Path+" not found")
	case r.Method == http.MethodPatch:
		s.apply(w, r)
	case strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadata"):
		answer(w, http.StatusOK, s.node)
	default:
		answer(w, http.StatusOK, map[string]any{
			"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": s.node.Name, "uid": s.node.UID, "resourceVersion": "7"},
			"spec":   map[string]any{"taints": s.taints},
			"status": map[string]any{"conditions": s.conditions},
		})
	}
}

func (s *apiServer) listSlices(w http.ResponseWriter, r *http.Request) {
	version, served := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/apis/resource.k8s.io/"), "/resourceslices")
	names, has := s.slices[version]
	if !served || !has {
		http.NotFound(w, r) // as it does for a group that it has not
		return
	}
	s.selector = r.URL.Query().Get("fieldSelector")
	items := []any{}
	for _, name := range names {
		items = append(items, map[string]any{
			"apiVersion": "resource.k8s.io/" + version, "kind": "ResourceSlice", "metadata": map[string]any{"name": name},
		})
	}
	answer(w, http.StatusOK, map[string]any{"apiVersion": "resource.k8s.io/" + version, "kind": "ResourceSliceList", "items": items})
}

func (s *apiServer) create(w http.ResponseWriter, r *http.Request) {
	var event map[string]any
	if err := json.NewDecoder(r.Body).Decode(&event); err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	name := event["metadata"].(map[string]any)["name"].(string)
	if s.events[name] != nil {
		refuse(w, http.StatusConflict, metav1.StatusReasonAlreadyExists, name+" already exists")
		return
	}
	s.events[name] = event
	answer(w, http.StatusCreated, event)
}

func (s *apiServer) apply(w http.ResponseWriter, r *http.Request) {
	a := apply{path: r.URL.Path, query: r.URL.RawQuery, contentType: r.Header.Get("Content-Type")}
	content, _ := io.ReadAll(r.Body)
	if err := json.Unmarshal(content, &a.body); err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	s.applies = append(s.applies, a)
	if s.gone {
		refuse(w, http.StatusConflict, metav1.StatusReasonConflict, "uid mismatch: the provided object specified uid uid-1, and no existing object was found")
		return
	}
	if a.body["status"] != nil || a.body["spec"] != nil {
		answer(w, http.StatusOK, s.node)
		return
	}
	var causes []metav1.StatusCause
	for key, value := range a.labels() {
		if h, ok := s.held[key]; ok && h[0] != value {
			causes = append(causes, metav1.StatusCause{
				Type:    metav1.CauseTypeFieldManagerConflict,
				Message: fmt.Sprintf("conflict with %q using v1 at 2026-01-02T03:04:05Z", h[1]),
				Field:   ".metadata.labels." + key,
			})
		}
	}
	if len(causes) > 0 {
		refuse(w, http.StatusConflict, metav1.StatusReasonConflict, fmt.Sprintf("Apply failed with %d conflicts", len(causes)), causes...)
		return
	}
	answer(w, http.StatusOK, s.node)
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string, causes ...metav1.StatusCause) {
	answer(w, code, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
		Details: &metav1.StatusDetails{Causes: causes},
	})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

// reset forgets the recorded applies.
func (s *apiServer) reset(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applies = nil
	change()
}

func (s *apiServer) recorded() []apply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applies
}

func newTestNode(t *testing.T, s *apiServer, name string) (*Node, *bytes.Buffer) {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %s}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, s.URL), 0o600))
	log := &bytes.Buffer{}
	n, err := NewNode(Config{NodeName: name, Kubeconfig: path, Log: slog.New(slog.NewTextHandler(log, nil))})
	require.NoError(t, err)
	return n, log
}

const (
	count   = "nvidia.com/gpu.count"
	product = "nvidia.com/gpu.product"
	healthy = "gpu-agent.dev/gpu.healthy"
)

func some() map[string]string {
	return map[string]string{count: "8", product: "NVIDIA-T4", healthy: "8"}
}

func TestLabelsAreServerSideApplied(t *testing.T) {
	s := newAPIServer(t)
	n, _ := newTestNode(t, s, "n1")
	in := some()
	require.NoError(t, n.Apply(t.Context(), in, ""))
	require.Equal(t, some(), in, "the caller's map is its own")
	require.Len(t, s.recorded(), 1)
	a := s.recorded()[0]
	require.Equal(t, "application/apply-patch+yaml", a.contentType)
	require.Equal(t, "fieldManager=gpu-agent&timeout=10s", a.query, "force is never asked for")
	require.Equal(t, map[string]any{
		"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{
			"name": "n1", "uid": "uid-1",
			"labels": map[string]any{count: "8", product: "NVIDIA-T4", healthy: "8"},
		},
	}, a.body)
	require.Empty(t, n.Foreign())

	require.NoError(t, n.Apply(t.Context(), map[string]string{healthy: "7"}, ""))
	require.Equal(t, map[string]any{healthy: "7"}, s.recorded()[1].labels(), "what is missing is let go")
	require.NoError(t, n.Apply(t.Context(), nil, ""))
	require.Empty(t, s.recorded()[2].labels())
}

func TestALabelIsRead(t *testing.T) {
	s := newAPIServer(t)
	s.node.Labels = map[string]string{"nvidia.com/device-plugin.config": "a100"}
	n, _ := newTestNode(t, s, "n1")
	value, err := n.Label(t.Context(), "nvidia.com/device-plugin.config")
	require.NoError(t, err)
	require.Equal(t, "a100", value)
	value, err = n.Label(t.Context(), "other")
	require.NoError(t, err)
	require.Empty(t, value)
	s.reset(func() { s.fail = http.StatusForbidden })
	_, err = n.Label(t.Context(), "other")
	require.ErrorContains(t, err, "read node n1: nodes is forbidden")
}

func TestLabelsOfNFDAreLeftAlone(t *testing.T) {
	for _, annotation := range []string{nfdLabels, "gpu.nfd.node.kubernetes.io/feature-labels"} {
		t.Run(annotation, func(t *testing.T) {
			s := newAPIServer(t)
			s.node.Annotations = map[string]string{annotation: "cpu-model.id," + count + "," + product + ",nvidia.com/other"}
			n, log := newTestNode(t, s, "n1")
			for range 3 {
				require.NoError(t, n.Apply(t.Context(), some(), ""))
			}
			require.Equal(t, map[string]any{healthy: "8"}, s.recorded()[2].labels())
			require.Equal(t, []string{count, product}, n.Foreign())
			require.Equal(t, 2, strings.Count(log.String(), "left to its owner"), "each is said once")

			s.reset(func() { s.node.Annotations = nil }) // uninstalled
			require.NoError(t, n.Apply(t.Context(), some(), ""))
			require.Len(t, s.recorded()[0].labels(), 3)
			require.Empty(t, n.Foreign())
		})
	}
}

func TestALabelOfOursThatNFDListsTooStaysOurs(t *testing.T) {
	s := newAPIServer(t)
	s.node.Annotations = map[string]string{nfdLabels: count + "," + product}
	fields := func(labels ...string) *metav1.FieldsV1 {
		f := metav1.FieldsV1{}
		f.SetRawBytes([]byte(`{"f:metadata":{"f:labels":{"f:` + strings.Join(labels, `":{},"f:`) + `":{}}}}`))
		return &f
	}
	entry := func(manager string, op metav1.ManagedFieldsOperationType, f *metav1.FieldsV1) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{Manager: manager, Operation: op, APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: f}
	}
	s.node.ManagedFields = []metav1.ManagedFieldsEntry{
		entry("nfd-master", metav1.ManagedFieldsOperationUpdate, fields(product)),
		entry("gpu-agent", metav1.ManagedFieldsOperationUpdate, fields(product)), // not an apply: not ours
		entry("gpu-agent", metav1.ManagedFieldsOperationApply, fields(count, healthy)),
	}
	n, _ := newTestNode(t, s, "n1")
	require.NoError(t, n.Apply(t.Context(), some(), ""))
	require.Equal(t, map[string]any{count: "8", healthy: "8"}, s.recorded()[0].labels())
	require.Equal(t, []string{product}, n.Foreign())

	// What is kept are labels of ours that are there.
	s.reset(func() { s.node.Labels = map[string]string{count: "4", product: "NVIDIA-L4", healthy: "3"} })
	require.NoError(t, n.Apply(t.Context(), map[string]string{}, "nvidia.com/"))
	require.Equal(t, map[string]any{count: "4"}, s.recorded()[0].labels())
}

func TestAConflictLeavesOutThoseKeysAlone(t *testing.T) {
	s := newAPIServer(t)
	s.held[count] = [2]string{"4", "kubectl-label"}
	s.held[product] = [2]string{"NVIDIA-T4", "kubectl-label"} // the same value: shared
	n, log := newTestNode(t, s, "n1")
	for range 2 {
		require.NoError(t, n.Apply(t.Context(), some(), ""))
	}
	a := s.recorded()
	require.Len(t, a, 4, "tried again each time, for its owner may have let go")
	require.Equal(t, map[string]any{product: "NVIDIA-T4", healthy: "8"}, a[1].labels())
	require.Equal(t, []string{count}, n.Foreign())
	require.Equal(t, 1, strings.Count(log.String(), "left to its owner"))
	require.Contains(t, log.String(), `kubectl-label`)

	s.reset(func() { s.held = nil })
	require.NoError(t, n.Apply(t.Context(), some(), ""))
	require.Len(t, s.recorded()[0].labels(), 3)
	require.Empty(t, n.Foreign())

	s.reset(func() { s.held = map[string][2]string{count: {"5", "somebody"}} })
	require.NoError(t, n.Apply(t.Context(), some(), ""))
	require.Equal(t, 2, strings.Count(log.String(), "left to its owner"), "it came back: said again")
}

func TestEveryKeyMayBeSomebodyElses(t *testing.T) {
	s := newAPIServer(t)
	for key := range some() {
		s.held[key] = [2]string{"other", "somebody"}
	}
	n, _ := newTestNode(t, s, "n1")
	require.NoError(t, n.Apply(t.Context(), some(), ""))
	require.Len(t, n.Foreign(), 3)
	require.Empty(t, s.recorded()[1].labels())
}

func TestAnAPIServerThatRefuses(t *testing.T) {
	tests := map[string]struct {
		node string
		set  func(*apiServer)
		want string
	}{
		"no such node": {"n2", func(*apiServer) {}, `node "n2" does not exist: NODE_NAME must be`},
		"no rights":    {"n1", func(s *apiServer) { s.fail = http.StatusForbidden }, "read node n1: nodes is forbidden"},
		"deleted now":  {"n1", func(s *apiServer) { s.gone = true }, "apply labels to node n1: uid mismatch"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			tt.set(s)
			n, _ := newTestNode(t, s, tt.node)
			require.ErrorContains(t, n.Apply(t.Context(), maps.Clone(some()), ""), tt.want)
			require.Empty(t, n.Foreign())
			require.LessOrEqual(t, len(s.recorded()), 1)
		})
	}
}

func TestNewNodeSaysWhatIsMissing(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	_, err := NewNode(Config{})
	require.ErrorContains(t, err, "set NODE_NAME from the pod's spec.nodeName")
	_, err = NewNode(Config{NodeName: "n1"})
	require.ErrorContains(t, err, "not in a pod of a cluster, and no kubeconfig is given")
	_, err = NewNode(Config{NodeName: "n1", Kubeconfig: filepath.Join(t.TempDir(), "none")})
	require.ErrorContains(t, err, "read kubeconfig /")
}
