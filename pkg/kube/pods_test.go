package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podsapi "k8s.io/kubelet/pkg/apis/pods/v1alpha1"
)

// fullPod holds a field of every kind on the wire, so that what is not read is skipped rightly.
func fullPod(uid, models string) *corev1.Pod {
	yes, grace := true, int64(-1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "p-" + uid, Namespace: "ns", UID: types.UID(uid), Generation: 7, Labels: map[string]string{"a": "b"},
			Annotations:       map[string]string{"other": "x", ModelsAnnotation: models},
			CreationTimestamp: metav1.Unix(1_800_000_000, 0), DeletionGracePeriodSeconds: &grace,
		},
		Spec: corev1.PodSpec{
			HostNetwork: true, ShareProcessNamespace: &yes, NodeName: "n1",
			Volumes: []corev1.Volume{
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
				{Name: "models", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/cache/models"}}},
				{Name: "unused", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/unused"}}},
			},
			InitContainers: []corev1.Container{{Name: "i", VolumeMounts: []corev1.VolumeMount{{Name: "models", MountPath: "/m"}}}},
			Containers: []corev1.Container{{
				Name: "c", Env: []corev1.EnvVar{{Name: "SECRET", Value: "s"}},
				VolumeMounts: []corev1.VolumeMount{
					{Name: "config", MountPath: "/c"},
					{Name: "models", MountPath: "/m", SubPath: "by-name/llama", ReadOnly: true},
					{Name: "models", MountPath: "/n"},
				},
			}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: "Ready", ObservedGeneration: 3}}},
	}
}

func bytesOf(t *testing.T, p *corev1.Pod) []byte {
	t.Helper()
	b, err := p.Marshal()
	require.NoError(t, err)
	return b
}

func TestAPodIsReadAsTheKubeletWritesIt(t *testing.T) {
	p, ended, err := parsePod(bytesOf(t, fullPod("1", "llama,mistral@r1")))
	require.NoError(t, err)
	require.False(t, ended)
	require.Equal(t, Pod{
		UID: "1", Namespace: "ns", Name: "p-1", Created: time.Unix(1_800_000_000, 0).UTC(), Models: "llama,mistral@r1",
		HostPaths: []string{"/cache/models", "/cache/models/by-name/llama"},
	}, p)
	for phase, want := range map[corev1.PodPhase]bool{"Pending": false, "Unknown": false, "": false, "Succeeded": true, "Failed": true} {
		full := fullPod("1", "")
		full.Status.Phase = phase
		_, ended, err := parsePod(bytesOf(t, full))
		require.NoError(t, err)
		require.Equal(t, want, ended, phase)
	}
	_, _, err = parsePod(bytesOf(t, &corev1.Pod{}))
	require.EqualError(t, err, "it has no uid")
}

func FuzzPodsFromTheWire(f *testing.F) {
	b, err := fullPod("1", "llama").Marshal()
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, _, err := parsePod(b)
		if err == nil {
			require.NotEmpty(t, p.UID)
		}
	})
}

// kubeletPods is the kubelet's Pods API with a script.
type kubeletPods struct {
	podsapi.UnimplementedPodsServer
	events chan *podsapi.WatchPodsEvent // to the stream that there is; closed: it ends
	dials  chan struct{}
}

func (k *kubeletPods) WatchPods(_ *podsapi.WatchPodsRequest, stream grpc.ServerStreamingServer[podsapi.WatchPodsEvent]) error {
	k.dials <- struct{}{}
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case e, ok := <-k.events:
			if !ok {
				return errors.New("watch client channel closed")
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		}
	}
}

func serve(t *testing.T, socket string, k podsapi.PodsServer) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	s := grpc.NewServer()
	podsapi.RegisterPodsServer(s, k)
	go func() { _ = s.Serve(l) }()
	return s.Stop
}

// until waits for a list that is as wanted.
func until(t *testing.T, p *Pods, is func(PodList) bool) PodList {
	t.Helper()
	patience := time.After(20 * time.Second)
	for {
		l, changed := p.Watch()
		if is(l) {
			return l
		}
		select {
		case <-changed:
		case <-patience:
			t.Fatalf("last list: %+v", l)
		}
	}
}

func running(t *testing.T, p *Pods) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() { stop(); require.NoError(t, <-ended) })
}

func TestPodsAreFollowedThroughTheKubelet(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "pods.sock")
	k := &kubeletPods{events: make(chan *podsapi.WatchPodsEvent), dials: make(chan struct{}, 8)}
	stop := serve(t, socket, k)
	t.Cleanup(func() { stop() })
	p := NewPods(Config{PodsSocket: socket})
	running(t, p)
	send := func(kind podsapi.EventType, pod *corev1.Pod) {
		e := &podsapi.WatchPodsEvent{Type: kind}
		if pod != nil {
			e.Pod = bytesOf(t, pod)
		}
		k.events <- e
	}
	uids := func(want ...string) func(PodList) bool {
		return func(l PodList) bool {
			got := []string{}
			for _, p := range l.Pods {
				got = append(got, p.UID+"="+p.Models)
			}
			return l.Known && l.Problem == "" && fmt.Sprint(got) == fmt.Sprint(want)
		}
	}
	<-k.dials
	send(podsapi.EventType_ADDED, fullPod("1", "a"))
	send(podsapi.EventType_ADDED, fullPod("2", "b"))
	require.False(t, p.list.Get().Known, "half a list is none")
	send(podsapi.EventType_INITIAL_SYNC_COMPLETE, nil)
	until(t, p, uids("1=a", "2=b"))
	send(podsapi.EventType_MODIFIED, fullPod("1", "c"))
	until(t, p, uids("1=c", "2=b"))
	done := fullPod("2", "b")
	done.Status.Phase = corev1.PodSucceeded
	send(podsapi.EventType_MODIFIED, done)
	until(t, p, uids("1=c"))

	// The kubelet goes: what was known stays, and the next list replaces it.
	stop()
	lost := until(t, p, func(l PodList) bool { return l.Problem != "" })
	require.True(t, lost.Known)
	require.Len(t, lost.Pods, 1, "a pod that cannot be seen is not gone")
	require.Contains(t, lost.Problem, "kubelet's Pods API at "+socket)
	stop = serve(t, socket, k)
	<-k.dials
	send(podsapi.EventType_ADDED, fullPod("3", "d"))
	send(podsapi.EventType_DELETED, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "gone", UID: "9"}})
	send(podsapi.EventType_INITIAL_SYNC_COMPLETE, nil)
	until(t, p, uids("3=d"))
}

func TestAKubeletWithoutThePodsAPIIsNoRiddle(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "pods.sock")
	p := NewPods(Config{PodsSocket: socket})
	running(t, p)
	l := until(t, p, func(l PodList) bool { return l.Problem != "" })
	require.True(t, l.Known, "nothing will be known: nobody must wait for it")
	require.Contains(t, l.Problem, "there is no "+socket+": mount its folder; the kubelet has its Pods API since Kubernetes 1.37")
	require.Contains(t, l.Problem, "for older ones set cache.demand.source: apiserver")

	t.Cleanup(serve(t, socket, podsapi.UnimplementedPodsServer{}))
	l = until(t, p, func(l PodList) bool { return strings.Contains(l.Problem, "has no Pods API v1alpha1") })
	require.True(t, l.Known)
}

// A socket with nobody behind it is a kubelet that is away: its pods run on.
func TestAKubeletThatIsAwayLeavesThePodsUnknown(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "pods.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	require.FileExists(t, socket)
	p := NewPods(Config{PodsSocket: socket})
	running(t, p)
	list := until(t, p, func(l PodList) bool { return l.Problem != "" })
	require.False(t, list.Known)
}

func TestPodsAreFollowedThroughTheServer(t *testing.T) {
	type event struct {
		Type   string                        `json:"type"`
		Object *metav1.PartialObjectMetadata `json:"object"`
	}
	object := func(uid, models string) *metav1.PartialObjectMetadata {
		o := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}}
		o.UID, o.Namespace, o.Name, o.ResourceVersion = types.UID(uid), "ns", "p-"+uid, "5"
		o.Annotations = map[string]string{ModelsAnnotation: models}
		return o
	}
	events := make(chan event)
	var mu sync.Mutex
	var asked []string
	forbid := true
	server := newAPIServer(t)
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path+"?"+r.URL.Query().Get("fieldSelector")+" "+r.Header.Get("Accept"))
		no := forbid
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		switch {
		case no:
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"pods is forbidden"}`))
		case r.URL.Query().Get("watch") == "":
			list := metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadataList"},
				ListMeta: metav1.ListMeta{ResourceVersion: "4"}, Items: []metav1.PartialObjectMetadata{*object("1", "a"), *object("2", "b")}}
			_ = json.NewEncoder(w).Encode(list)
		default:
			for {
				select {
				case <-r.Context().Done():
					return
				case e := <-events:
					_ = json.NewEncoder(w).Encode(e)
					w.(http.Flusher).Flush()
				}
			}
		}
	})
	node, _ := newTestNode(t, server, "n1")
	p := NewPodsOf(Config{}, node)
	running(t, p)
	l := until(t, p, func(l PodList) bool { return l.Problem != "" })
	require.False(t, l.Known, "asked for and not permitted: pods may use anything")
	require.Contains(t, l.Problem, "give the agent's ClusterRole list and watch on pods")
	mu.Lock()
	forbid = false
	mu.Unlock()
	l = until(t, p, func(l PodList) bool { return len(l.Pods) == 2 })
	require.Equal(t, Pod{UID: "1", Namespace: "ns", Name: "p-1", Models: "a"}, Pod{UID: l.Pods[0].UID, Namespace: l.Pods[0].Namespace, Name: l.Pods[0].Name, Models: l.Pods[0].Models})
	events <- event{"DELETED", object("1", "a")}
	events <- event{"MODIFIED", object("2", "c")}
	until(t, p, func(l PodList) bool { return len(l.Pods) == 1 && l.Pods[0].Models == "c" })
	mu.Lock()
	defer mu.Unlock()
	require.Contains(t, asked[0], "/api/v1/pods?spec.nodeName=n1,status.phase!=Succeeded,status.phase!=Failed")
	require.Contains(t, asked[0], "as=PartialObjectMetadata", "no spec of any pod, whose variables may hold secrets")
}
