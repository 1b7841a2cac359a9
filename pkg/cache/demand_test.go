package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// mem is where tests' models come from.
func mem(host string) model.Ref { return model.Ref{Scheme: "mem", Host: host} }

// calls is a pod that asks for models.
func calls(by string, names ...string) (uses []model.Use) {
	for _, n := range names {
		uses = append(uses, model.Use{Model: n, By: "ns/" + by, Since: time.Now(), Pull: true})
	}
	return uses
}

func demanded(name string) model.Spec {
	s := spec(name, name)
	s.OnDemand = true
	return s
}

func TestAModelOnDemandComesWithAPodAndStaysWithIt(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b", "c", "d")
		cfg := config(root)
		cfg.Limit = 2 * mega
		c := open(t, cfg, o)
		c.Want([]model.Spec{demanded("a"), demanded("b"), demanded("c")})
		stop := run(t, c)
		synctest.Wait()
		require.Equal(t, []string{"a Skipped", "b Skipped", "c Skipped"}, names(c))
		require.Equal(t, "it comes when a pod on this node asks for it", c.Get().Model("a").Message)
		require.Zero(t, o.resolved)

		c.InUse(slices.Concat(calls("p", "a", "b"), calls("q", "a")))
		s := ready(t, c, "a")
		require.Equal(t, []string{"ns/p", "ns/q"}, s.Pods)
		require.True(t, s.Called)
		ready(t, c, "b")
		require.ErrorContains(t, c.Remove(t.Context(), "b", true), "model b is asked for by pod ns/p and would come back: delete the pod first")

		// There is no room beside those, whoever asks: a pod, or a command.
		c.InUse(slices.Concat(calls("p", "a", "b"), calls("r", "c")))
		require.Contains(t, failed(t, c, "c", "NoSpace").Message, "free 0 B, evictable 0 B")
		require.NoError(t, ask(t, c, spec("d", "d")))
		failed(t, c, "d", "NoSpace")
		require.Equal(t, []string{"a Ready", "b Ready", "c Pending", "d Pending"}, names(c))
		require.NoError(t, c.Remove(t.Context(), "d", false))

		// A pod that has gone leaves what it used like any other, and who waits for room is tried at once.
		asked := time.Now()
		c.InUse(slices.Concat(calls("p", "b"), calls("r", "c")))
		ready(t, c, "c")
		require.Less(t, time.Since(asked), time.Second)
		require.Equal(t, []string{"a Skipped", "b Ready", "c Ready"}, names(c))
		c.InUse(nil)
		pull(t, c, "d")
		stop()
	})
}

func TestWhatPodsUseIsNotEvicted(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b", "c", "d")
		cfg := config(root)
		cfg.Limit = 2 * mega
		c := open(t, cfg, o)
		c.Want(nil)
		stop := run(t, c)
		pull(t, c, "a", "b")
		rev := c.Get().Model("a").Revision
		for _, use := range []model.Use{{Model: "a", By: "ns/p"}, {Model: "a", Revision: rev, By: "ns/p"}} {
			c.InUse([]model.Use{use})
			require.NoError(t, ask(t, c, spec("c", "c")))
			ready(t, c, "c")
			require.Equal(t, []string{"a Ready", "c Ready"}, names(c), "a was used longest ago")
			require.ErrorContains(t, c.Remove(t.Context(), "a", false), "model a is in use by pod ns/p: delete the pod first, or remove it with --force")
			require.NoError(t, c.Remove(t.Context(), "c", false))
			pull(t, c, "b")
		}
		c.InUse([]model.Use{{Model: "a", Revision: "other", By: "ns/p"}})
		pull(t, c, "d")
		require.Equal(t, []string{"b Ready", "d Ready"}, names(c), "a pod that names another revision does not use this one")
		stop()
	})
}

// A node label may bring a pod until it is gone, and pods are seen a moment late.
func TestAPodThatComesWhileItsModelGoesKeepsIt(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b")
		cfg := config(root)
		cfg.Limit = mega
		var c *Cache
		cfg.Unlabelled = func(_ context.Context, name string) error {
			require.Equal(t, model.Removing, c.Get().Model(name).State)
			c.InUse([]model.Use{{Model: "a", By: "ns/p"}})
			return nil
		}
		c = open(t, cfg, o)
		c.Want(nil)
		stop := run(t, c)
		pull(t, c, "a")
		require.NoError(t, ask(t, c, spec("b", "b")))
		failed(t, c, "b", "NoSpace")
		require.Equal(t, []string{"a Ready", "b Pending"}, names(c))
		require.Zero(t, c.Get().Evicted)
		x, err := c.Explain("a")
		require.NoError(t, err)
		require.True(t, x.Wished, "it is asked for as before")
		stop()
		holds(t, root, "a", o.content["a"])
	})
}

func TestNothingGoesWhileItIsNotKnownWhatPodsUse(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b")
		o.put("half", "r1", map[string][]byte{"f": noise(7, mega)})
		cfg := config(root)
		cfg.Limit = 2 * mega
		c := open(t, cfg, o)
		c.Want([]model.Spec{demanded("half")})
		c.InUse(calls("p", "half"))
		o.onOpen = func(n int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			if n > 8 {
				return silent{ctx, bytes.NewReader(nil)}, nil, true
			}
			return nil, nil, false
		}
		stop := run(t, c)
		wait(t, c, "half", func(s *model.Status) bool { return s.Done >= mega/2-4*64<<10 })
		stop()
		o.forget()

		// The agent starts again, and the kubelet is silent.
		c = open(t, cfg, o)
		c.Want([]model.Spec{demanded("half")})
		c.Unsure("the kubelet is silent")
		stop = run(t, c)
		pull(t, c, "a")
		require.NotEmpty(t, tree(t, c.at.partials()), "who asked for the partial download may be there still")
		require.NoError(t, ask(t, c, spec("b", "b")))
		require.Contains(t, failed(t, c, "b", "NoSpace").Message, "which models the pods on this node use is not known, so nothing is evicted: the kubelet is silent")
		require.Equal(t, []model.Problem{{Reason: "PodsUnknown", Message: c.blindness()}}, c.Get().Problems)
		before := o.bytesAsked()
		c.InUse(calls("p", "half"))
		ready(t, c, "half")
		ready(t, c, "b")
		require.Equal(t, int64(mega+mega/2), o.bytesAsked()-before, "half goes on where it was, beside b")
		require.Empty(t, c.Get().Problems)
		stop()
	})
}

func TestPrioritiesOrderEvictions(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("low", "mid", "high", "idle", "pod")
		ranked := func(name string, priority int) model.Spec {
			s := spec(name, name)
			s.Priority = priority
			return s
		}
		cfg := config(root)
		cfg.Limit = 2 * mega
		c := open(t, cfg, o)
		mid := ranked("mid", 5)
		c.Want([]model.Spec{ranked("low", 1), mid})
		stop := run(t, c)
		ready(t, c, "low")
		ready(t, c, "mid")
		synctest.Wait() // a model does not go while the worker on it has not ended

		// The config's higher one takes the room of its lowest, which then waits: it never takes it back.
		all := []model.Spec{ranked("low", 1), mid, ranked("high", 9)}
		c.Want(all)
		ready(t, c, "high")
		require.Contains(t, failed(t, c, "low", "NoSpace").Message, "evictable 0 B")
		time.Sleep(time.Hour)
		require.Equal(t, []string{"high Ready", "low Pending", "mid Ready"}, names(c))
		require.Equal(t, int64(1), c.Get().Evicted)

		// Of those that nobody asks for, one of a higher priority stays for all but a pod.
		high, idle := ranked("high", 9), ranked("idle", 3)
		high.OnDemand, idle.OnDemand = true, true
		c.Want([]model.Spec{ranked("low", 1), mid, high, idle, demanded("pod")})
		time.Sleep(time.Hour)
		require.Equal(t, []string{"high Ready", "idle Skipped", "low Pending", "mid Ready", "pod Skipped"}, names(c))
		c.InUse(calls("p", "pod"))
		ready(t, c, "pod")
		require.Equal(t, []string{"high Skipped", "idle Skipped", "low Pending", "mid Ready", "pod Ready"}, names(c))

		// What a pod asks for does not take what the config wants of the same or a higher priority.
		c.InUse(slices.Concat(calls("p", "pod"), calls("q", "idle")))
		failed(t, c, "idle", "NoSpace")
		time.Sleep(time.Hour)
		require.Equal(t, model.Ready, c.Get().Model("mid").State)
		stop()
	})
}

func TestTheHighestPriorityIsPulledFirst(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		var specs []model.Spec
		for i, name := range []string{"a", "b", "c", "d", "e"} {
			o.hold(name)
			s := spec(name, name)
			s.Priority, s.OnDemand = i%3, name == "d"
			specs = append(specs, s)
		}
		cfg := config(root)
		cfg.Streams = 1 // two models at a time
		var order []string
		o.onResolve = func(_ int, ref model.Ref) (error, bool) { order = append(order, ref.Host); return nil, false }
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			return silent{ctx, bytes.NewReader(nil)}, nil, true
		}
		c := open(t, cfg, o)
		c.Want(specs)
		c.InUse(calls("p", "d"))
		stop := run(t, c)
		synctest.Wait()
		slices.Sort(order)
		require.Equal(t, []string{"c", "d"}, order, "what a pod waits for, and then the highest")
		stop()
	})
}

func TestAPodMayNameWhereItsModelComesFrom(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b")
		c := open(t, config(root), o)
		off := spec("off", "off")
		off.Unfit = "not for this node: too small"
		c.Want([]model.Spec{spec("b", "b"), off})
		stop := run(t, c)
		uses := func(pod, name string, from model.Ref) model.Use {
			return model.Use{Model: name, Pull: true, Source: from, By: "ns/" + pod, Since: time.Now()}
		}
		c.InUse([]model.Use{
			uses("p", "mine", mem("a")), uses("q", "mine", mem("b")), uses("p", "b", mem("a")), uses("p", "nowhere", model.Ref{}),
			uses("p", "odd", model.Ref{Scheme: "odd", Host: "x"}), uses("p", "off", model.Ref{}),
		})
		require.Equal(t, "mem://a", ready(t, c, "mine").Source)
		ready(t, c, "b")
		holds(t, root, "mine", o.content["a"])
		for name, want := range map[string]string{
			"mine":    "pod ns/q asks for model mine: it comes from mem://a here, not from mem://b: give the other another name",
			"b":       "pod ns/p asks for model b: it comes from mem://b here, not from mem://a: give the other another name",
			"nowhere": "pod ns/p asks for model nowhere: the config does not name it, and nobody pulled it",
			"odd":     `pod ns/p asks for model odd: source odd://x: scheme "odd" is not one of mem`,
			"off":     "pod ns/p asks for model off: it is not for this node: too small",
		} {
			require.Equal(t, want, c.refused[name])
		}
		_, err := c.Explain("nowhere")
		require.EqualError(t, err, c.refused["nowhere"])
		require.Equal(t, []string{"b Ready", "mine Ready", "off Skipped"}, names(c))
		c.InUse(nil)
		synctest.Wait()
		require.Equal(t, []string{"b Ready", "mine Ready", "off Skipped"}, names(c), "it stays until its room is needed")
		require.NoError(t, c.Remove(t.Context(), "mine", false))
		synctest.Wait()
		require.Equal(t, []string{"b Ready", "off Skipped"}, names(c))
		stop()
	})
}

func TestAModelWaitsUntilItIsKnownToBeForThisNode(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a")
		c := open(t, config(root), o)
		s := spec("a", "a")
		s.Unsure = "the driver is not loaded"
		c.Want([]model.Spec{s})
		stop := run(t, c)
		time.Sleep(time.Hour)
		require.Equal(t, "the driver is not loaded", c.Get().Model("a").Message)
		require.Equal(t, model.Pending, c.Get().Model("a").State)
		require.Zero(t, o.resolved)
		s.Unsure, s.Unfit = "", "not for this node: too small"
		c.Want([]model.Spec{s})
		synctest.Wait()
		require.Equal(t, []string{"a Skipped"}, names(c))
		require.Equal(t, "not for this node: too small", c.Get().Model("a").Message)
		s.Unfit = ""
		c.Want([]model.Spec{s})
		ready(t, c, "a")
		s.Unfit = "not for this node: too small"
		c.Want([]model.Spec{s})
		synctest.Wait()
		require.Equal(t, model.Ready, c.Get().Model("a").State, "until its room is needed")
		require.Equal(t, s.Unfit, c.Get().Model("a").Unfit)
		stop()
	})
}

// TestNoFileOfARunningPodsModelGoes lets pods come and go at random on a node with too little room, and looks at
// the directories that they hold after each step.
func TestNoFileOfARunningPodsModelGoes(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				random := rand.New(rand.NewPCG(seed, 1))
				hosts := []string{"a", "b", "c", "d", "e", "f"}
				o.hold(hosts...)
				cfg := config(root)
				cfg.Limit = 3*mega + mega/2
				c := open(t, cfg, o)
				var specs []model.Spec
				for i, h := range hosts[:4] {
					s := spec(h, h)
					s.Priority, s.OnDemand = i%3, i < 2
					specs = append(specs, s)
				}
				c.Want(specs)
				stop := run(t, c)
				type pod struct {
					use  model.Use
					file string
					is   os.FileInfo
				}
				var pods []pod
				revision := 1
				for step := range 60 {
					switch host := hosts[random.IntN(len(hosts))]; random.IntN(5) {
					case 0:
						_, _ = c.Pull(t.Context(), spec(host, host))
					case 1:
						if len(pods) > 0 {
							pods = slices.Delete(pods, 0, 1)
						}
					case 2:
						revision++
						o.put(host, fmt.Sprintf("r%d", revision), map[string][]byte{"f": noise(uint64(revision), mega)})
						_, _ = c.Pull(t.Context(), spec(host, host))
					default:
						use := model.Use{Model: host, By: fmt.Sprintf("ns/p%d", step), Pull: random.IntN(2) == 0, Since: time.Now()}
						dir := c.at.visible(host)
						if s := c.Get().Model(host); s != nil && s.State == model.Ready && random.IntN(2) == 0 {
							use.Revision = model.Revision12(s.Revision)
							dir += "@" + use.Revision
						} else if use.Revision == "" {
							dir = ""
							if s != nil && s.State == model.Ready {
								// It may open what is current when it starts, by the name that stays.
								dir = c.at.visible(host) + "@" + model.Revision12(s.Revision)
							}
						}
						p := pod{use: use}
						if len(pods) == 3 {
							break // two of three would not leave room for any
						}
						if dir != "" {
							p.file = filepath.Join(dir, "f")
						}
						pods = append(pods, p)
					}
					uses := []model.Use{}
					for _, p := range pods {
						uses = append(uses, p.use)
					}
					c.InUse(uses)
					for i := range pods { // from here on it is known, and what is there now must stay
						if p := &pods[i]; p.is == nil && p.file != "" {
							if p.is, _ = os.Stat(p.file); p.is == nil {
								p.file = "" // it was going when the pod came
							}
						}
					}
					time.Sleep(time.Duration(random.IntN(5000)) * time.Millisecond)
					synctest.Wait()
					for _, p := range pods {
						if p.file == "" {
							continue
						}
						now, err := os.Stat(p.file)
						require.NoError(t, err, "step %d: %+v lost its file", step, p.use)
						require.True(t, os.SameFile(p.is, now))
					}
				}
				require.NotZero(t, c.Get().Evicted, "there was something to decide")
				stop()
			})
		})
	}
}

func TestWhatAPodWaitsForTakesTheStreamsOfWhatIsRunning(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", map[string][]byte{"w": noise(1, 2*mega)})
		o.put("b", "r1", map[string][]byte{"w": noise(2, 2*mega)})
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return &drip{ctx, part, 1 << 10, time.Second}, nil, true
		}
		cfg := config(root)
		cfg.Streams = 8
		c := open(t, cfg, o)
		b := spec("b", "b")
		held := func() (of []int) {
			time.Sleep(20 * time.Second)
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			c.streams.mu.Lock()
			defer c.streams.mu.Unlock()
			return []int{len(c.streams.held[c.models["a"].job]), len(c.streams.held[c.models["b"].job])}
		}
		c.Want([]model.Spec{spec("a", "a"), b})
		run(t, c)
		require.Equal(t, []int{4, 4}, held())
		c.InUse(calls("p", "a"))
		require.Equal(t, []int{7, 1}, held(), "a pod came")
		c.InUse(nil)
		require.Equal(t, []int{4, 4}, held(), "and went")
		b.Priority = 3
		c.Want([]model.Spec{spec("a", "a"), b})
		require.Equal(t, []int{1, 7}, held(), "an edit of the config")
	})
}

func TestAMountOfARepositoryOfTheHubUsesItsModels(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hub["a"], o.hub["b"] = model.Hub{Repo: "org/x", Revision: "main"}, model.Hub{Repo: "org/y", Revision: "main"}
		commit := func(n int) string { return fmt.Sprintf("%d%039d", n, 0) }
		o.put("a", commit(1), map[string][]byte{"w": noise(1, 100)})
		o.put("b", commit(2), map[string][]byte{"w": noise(2, 100)})
		cfg := config(root)
		cfg.Keep = 0
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		pods := func(name string) []string { return c.Get().Model(name).Pods }
		// The pod is there first, and its mount waits for the folder.
		c.InUse([]model.Use{{Repo: "org/x", By: "ns/all"}, {Repo: "org/x", Revision: commit(1), By: "ns/one"}, {Repo: "org/z", By: "ns/z"}})
		run(t, c)
		ready(t, c, "a")
		ready(t, c, "b")
		require.Equal(t, []string{"ns/all", "ns/one"}, pods("a"))
		require.Empty(t, pods("b"))

		o.put("a", commit(3), map[string][]byte{"w": noise(3, 100)})
		require.NoError(t, ask(t, c, spec("a", "a")))
		synctest.Wait()
		s := c.Get().Model("a")
		require.Equal(t, commit(3), s.Revision)
		require.Equal(t, []string{"ns/all"}, s.Pods, "the other names the old revision")
		require.Len(t, s.Old, 1, "which stays for it")
		require.Equal(t, "in use by ns/all", s.Old[0].InUse, "and for who may have opened it")
		c.InUse([]model.Use{{Repo: "org/x", Revision: commit(1), By: "ns/one"}})
		require.Equal(t, "in use by ns/one", c.Get().Model("a").Old[0].InUse)
		c.InUse(nil)
		synctest.Wait()
		require.Empty(t, c.Get().Model("a").Old)
	})
}

func TestARevisionThatAPodNamesAndThatDoesNotComeIsSaid(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "111111111111ff", map[string][]byte{"w": noise(1, 100)})
		cfg := config(root)
		cfg.Keep = 1
		c := open(t, cfg, o)
		c.Want([]model.Spec{demanded("a")})
		of := func(revision string) model.Use {
			return model.Use{Model: "a", Revision: revision, By: "ns/p", Pull: true}
		}
		c.InUse([]model.Use{of("000000000000")})
		require.Empty(t, c.Get().Refused, "the origin has not said yet what it has")
		run(t, c)
		ready(t, c, "a")
		why := "pod ns/p asks for a@000000000000, which is not on this node (here is 111111111111) and not what mem://a stands for: " +
			"pull it from a source that names the whole revision"
		require.Equal(t, []string{why}, c.Get().Refused)
		x, err := c.Explain("a")
		require.NoError(t, err)
		require.Equal(t, []string{why}, x.Refused)

		c.InUse([]model.Use{of("111111111111")})
		require.Empty(t, c.Get().Refused)
		o.put("a", "222222222222ff", map[string][]byte{"w": noise(2, 100)})
		require.NoError(t, ask(t, c, spec("a", "a")))
		synctest.Wait()
		require.Equal(t, "222222222222ff", c.Get().Model("a").Revision)
		require.Empty(t, c.Get().Refused, "the old one is here")
		c.InUse([]model.Use{of("222222222222"), {Model: "b", By: "ns/q", Pull: true}})
		require.Equal(t, []string{"pod ns/q asks for model b: the config does not name it, and nobody pulled it"}, c.Get().Refused)
		_, err = c.Rollback(t.Context(), "a", "")
		require.NoError(t, err)
		require.Len(t, c.Get().Refused, 1, "what was current is old, and kept for its pod")
	})
}

func TestPodsThatAreNotSeenAreAProblemUntilTheyAre(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		c := open(t, config(root), o)
		c.InUse(nil)
		c.Unseen("no socket")
		require.Equal(t, []model.Problem{{Reason: "PodsUnseen", Message: "the pods of this node are not seen: what they ask for is not followed, " +
			"and what they use is known by opens alone, or as it was last seen: no socket"}}, c.Get().Problems)
		c.Unseen("")
		require.Empty(t, c.Get().Problems)
	})
}
