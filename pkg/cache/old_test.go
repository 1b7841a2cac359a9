package cache

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// olds are the revisions that a model's status lists as old.
func olds(s *model.Status) []string {
	list := []string{}
	for _, r := range s.Old {
		list = append(list, r.Revision)
	}
	return list
}

// moves has the origin name another revision, and waits until that is current.
func moves(t *testing.T, c *Cache, o *origin, name, revision string, files map[string][]byte) {
	t.Helper()
	o.put(name, revision, files)
	require.NoError(t, ask(t, c, spec(name, name)))
	wait(t, c, name, func(s *model.Status) bool {
		require.Equal(t, model.Ready, s.State)
		return s.Revision == revision && s.Update == nil
	})
	time.Sleep(time.Second) // fake: revisions differ in age
	synctest.Wait()
}

func one(seed uint64) map[string][]byte { return map[string][]byte{"f": noise(seed, mega)} }

func TestAnOldRevisionStaysAsLongAsItIsNeeded(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		cfg, uses := config(root), &said{}
		cfg.Keep = 1
		cfg.opens = func() (opens, error) { return uses, nil }
		o.put("a", "r1", one(1))
		c := open(t, cfg, o)
		stop := run(t, c)
		pull(t, c, "a")
		moves(t, c, o, "a", "r2", one(2))
		require.Equal(t, []string{"r1"}, olds(c.Get().Model("a")))
		require.Equal(t, int64(2*mega), c.Get().Used, "old ones count")
		holds(t, root, "a", one(2))
		holds(t, root, "a@r1", one(1))
		moves(t, c, o, "a", "r3", one(3))
		require.Equal(t, []string{"r2"}, olds(c.Get().Model("a")), "one is kept, and nobody uses the other")
		require.NoDirExists(t, layout(root).visible("a@r1"))

		// Pinned, named by a pod, begun with by a pod, opened: each is a reason to stay beyond that one.
		require.NoError(t, c.Pin("a@r2"))
		moves(t, c, o, "a", "r4", one(4))
		c.InUse([]model.Use{{Model: "a", Revision: "r3", Since: time.Now(), By: "default/p"}})
		moves(t, c, o, "a", "r5", one(5))
		began := time.Now()
		time.Sleep(time.Second)
		moves(t, c, o, "a", "r6", one(6))
		c.InUse([]model.Use{{Model: "a", Revision: "r3", By: "default/p"}, {Model: "a", Since: began, By: "default/q"}})
		time.Sleep(2 * usesEvery)
		uses.say("a@r4", "a@r5")
		synctest.Wait()
		require.Equal(t, []string{"r5", "r3", "r2"}, olds(c.Get().Model("a")), "nothing kept r4")
		time.Sleep(usesEvery)
		synctest.Wait()
		moves(t, c, o, "a", "r7", one(7))
		inUse := map[string]string{}
		for _, r := range c.Get().Model("a").Old {
			inUse[r.Revision] = r.InUse
		}
		require.Equal(t, map[string]string{"r6": "in use by default/q", "r5": "in use by default/q", "r3": "in use by default/p", "r2": "pinned"}, inUse)
		stop()

		// All of it is known after a restart, but for the pods, of whom somebody will tell.
		c = open(t, cfg, o)
		require.Equal(t, []string{"r6", "r5", "r3", "r2"}, olds(c.Get().Model("a")))
		require.Equal(t, int64(5*mega), c.Get().Used)
		stop = run(t, c)
		synctest.Wait()
		require.Equal(t, []string{"r6", "r5", "r2"}, olds(c.Get().Model("a")), "r5 was opened a minute ago")
		require.Contains(t, c.Get().Model("a").Old[1].InUse, "opened at 2000-")
		time.Sleep(openedFor + time.Hour)
		synctest.Wait()
		require.Equal(t, []string{"r6", "r2"}, olds(c.Get().Model("a")))
		require.NoError(t, c.Unpin("a@r2"))
		synctest.Wait()
		require.Equal(t, []string{"r6"}, olds(c.Get().Model("a")))
		require.Equal(t, "NotFound", model.ReasonOf(c.Pin("a@r2")))
		require.ErrorContains(t, c.Pin("a@r2"), "model a has no revision r2 here, it has r7, r6")
		require.NoError(t, c.Remove(t.Context(), "a", false))
		synctest.Wait()
		stop()
		tidy(t, root)
		require.Empty(t, tree(t, layout(root).revisions()))
	})
}

func TestOldRevisionsGoBeforeAnyModel(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("b", "c", "d")
		cfg := config(root)
		cfg.Keep, cfg.Limit = 2, 5*mega
		o.put("a", "r1", one(11))
		c := open(t, cfg, o)
		run(t, c)
		pull(t, c, "b", "a")
		moves(t, c, o, "a", "r2", one(12))
		moves(t, c, o, "a", "r3", one(13))
		require.NoError(t, c.Pin("a@r2"))
		x, err := c.Explain("b")
		require.NoError(t, err)
		require.Equal(t, []string{"a@r1"}, x.Victims, "nor does a model before its old revision that is in use")
		pull(t, c, "c")
		require.Equal(t, []string{"r2", "r1"}, olds(c.Get().Model("a")), "there was room")
		pull(t, c, "d")
		require.Equal(t, []string{"r2"}, olds(c.Get().Model("a")))
		require.Equal(t, []string{"a Ready", "b Ready", "c Ready", "d Ready"}, names(c))
		require.Zero(t, c.Get().Evicted)
		require.NoError(t, c.Unpin("a@r2"))
		require.Equal(t, "Pinned", func() string {
			require.NoError(t, c.Pin("a@r2"))
			return model.ReasonOf(c.Remove(t.Context(), "a", false))
		}())

		// Pinned, it outlives its model only as long as nobody removes it by force.
		o.put("e", "r1", map[string][]byte{"f": noise(14, 3*mega)})
		require.NoError(t, ask(t, c, spec("e", "e")))
		ready(t, c, "e")
		require.Equal(t, []string{"a Ready", "e Ready"}, names(c))
		require.Equal(t, []string{"r2"}, olds(c.Get().Model("a")))
		require.NoError(t, c.Remove(t.Context(), "a", true))
		require.Equal(t, int64(3*mega), c.Get().Used)
	})
}

func TestASecondRevisionFetchesWhatIsNew(t *testing.T) {
	for _, named := range []bool{true, false} {
		t.Run(fmt.Sprintf("digests named=%t", named), func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				const size = 100 << 10
				first, second := map[string][]byte{}, map[string][]byte{}
				for i := range 30 {
					name := fmt.Sprintf("model-%05d-of-00030.safetensors", i+1)
					first[name] = noise(uint64(i), size)
					second[name] = first[name]
				}
				second["model-00007-of-00030.safetensors"] = noise(99, size)
				put := func(revision string, files map[string][]byte) {
					o.put("a", revision, files)
					for i, f := range o.models["a"].Files {
						o.models["a"].Files[i].Version = string(digest(files[f.Path])) // as an ETag: it follows the content
						if !named {
							o.models["a"].Files[i].Digest = ""
						}
					}
				}
				put("r1", first)
				cfg := config(root)
				cfg.Keep = 1
				c := open(t, cfg, o)
				run(t, c)
				pull(t, c, "a")
				require.Equal(t, int64(30*size), o.bytesAsked())
				o.forget()
				put("r2", second)
				require.NoError(t, ask(t, c, spec("a", "a")))
				wait(t, c, "a", func(s *model.Status) bool { return s.Revision == "r2" })
				require.Equal(t, int64(size), o.bytesAsked(), "one shard of thirty")
				require.Equal(t, int64(31*size), c.Get().Used, "and on the disk once")
				o.forget()
				put("r1", first)
				require.NoError(t, ask(t, c, spec("a", "a")))
				wait(t, c, "a", func(s *model.Status) bool { return s.Revision == "r1" })
				require.Zero(t, o.bytesAsked(), "what is here as an old revision comes back without a byte")
				holds(t, root, "a", first)
				holds(t, root, "a@r2", second)
			})
		})
	}
}

func TestRollbackGoesBackAndStaysThere(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		l := layout(root)
		o.hub["a"] = model.Hub{Repo: "org/m", Revision: "main"}
		o.put("a", commit1, one(1))
		cfg := config(root)
		cfg.Keep = 1
		wanted := spec("a", "a")
		wanted.Refresh = 30 * time.Minute
		c := open(t, cfg, o)
		c.Want([]model.Spec{wanted})
		stop := run(t, c)
		ready(t, c, "a")
		_, err := c.Rollback(t.Context(), "a", "")
		require.Equal(t, "NotFound", model.ReasonOf(err))
		require.ErrorContains(t, err, "model a has no old revision to go back to")
		_, err = c.Rollback(t.Context(), "none", "")
		require.Equal(t, "NotFound", model.ReasonOf(err))
		_, err = c.Rollback(t.Context(), "a", commit1)
		require.ErrorContains(t, err, "model a is at revision 111111111111 already")

		o.put("a", commit2, one(2))
		wait(t, c, "a", func(s *model.Status) bool { return s.Revision == commit2 })
		require.Equal(t, commit2, string(tree(t, filepath.Join(l.repository("org/m"), "refs"))["main"]))
		_, err = c.Rollback(t.Context(), "a", "333")
		require.ErrorContains(t, err, "model a has no revision 333 here, it has 222222222222, 111111111111")
		o.forget()
		done, err := c.Rollback(t.Context(), "a", "111111111111")
		require.NoError(t, err)
		require.Equal(t, model.Rollback{From: commit2, To: commit1}, done)
		back := func() {
			t.Helper()
			s := c.Get().Model("a")
			require.Equal(t, commit1, s.Revision)
			require.Equal(t, commit1, s.Held)
			require.Equal(t, commit2, s.Origin)
			require.Equal(t, []string{commit2}, olds(s))
			require.Nil(t, s.Update)
			holds(t, root, "a", one(1))
			holds(t, root, "a@222222222222", one(2))
			serves(t, root, "org/m", map[string][]map[string][]byte{commit1: {one(1)}, commit2: {one(2)}})
			require.Equal(t, commit1, string(tree(t, filepath.Join(l.repository("org/m"), "refs"))["main"]))
			require.Equal(t, []string{"a@222222222222.json"}, files(t, l.revisions()))
		}
		back()
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		require.GreaterOrEqual(t, o.resolved, 4, "the origin is looked at")
		back()
		stop()
		c = open(t, cfg, o)
		c.Want([]model.Spec{wanted})
		stop = run(t, c)
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		back()
		require.Zero(t, o.bytesAsked())

		// A pull lets go of it.
		require.NoError(t, ask(t, c, model.Spec{Name: "a"}))
		wait(t, c, "a", func(s *model.Status) bool { return s.Revision == commit2 && s.Held == "" })
		require.Zero(t, o.bytesAsked())

		// So does another source in the config.
		_, err = c.Rollback(t.Context(), "a", "")
		require.NoError(t, err)
		synctest.Wait()
		o.put("b", "r9", one(3))
		wanted.Source.Host = "b"
		c.Want([]model.Spec{wanted})
		require.Equal(t, "", wait(t, c, "a", func(s *model.Status) bool { return s.Revision == "r9" }).Held)
		stop()
	})
}

// files are the names in a directory.
func files(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestARollbackEndsADownload(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", one(1))
		cfg := config(root)
		cfg.Keep = 1
		c := open(t, cfg, o)
		stop := run(t, c)
		pull(t, c, "a")
		moves(t, c, o, "a", "r2", one(2))
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return silent{ctx, nothing{}}, nil, true
		}
		o.put("a", "r3", one(3))
		require.NoError(t, ask(t, c, spec("a", "a")))
		synctest.Wait()
		require.Equal(t, "r3", c.Get().Model("a").Update.Revision)
		_, err := c.Rollback(t.Context(), "a", "")
		require.NoError(t, err)
		time.Sleep(time.Hour)
		synctest.Wait()
		s := c.Get().Model("a")
		require.Equal(t, "r1", s.Revision)
		require.Equal(t, "r1", s.Held)
		require.Empty(t, s.Reason)
		require.Zero(t, c.Get().Reserved)
		stop()
		require.Empty(t, tree(t, layout(root).partials()))
		holds(t, root, "a", one(1))
	})
}

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, io.EOF }

func TestADamagedRevisionIsNotGoneBackTo(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", one(1))
		cfg := config(root)
		cfg.Keep = 1
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		ready(t, c, "a")
		moves(t, c, o, "a", "r2", one(2))
		require.NoError(t, c.condemn(t.Context(), map[model.Digest]bool{digest(one(1)["f"]): true}))
		require.Empty(t, c.Get().Model("a").Old)
		require.NoDirExists(t, layout(root).visible("a@r1"))
		require.Equal(t, int64(mega), c.Get().Used)
		holds(t, root, "a", one(2))

		// One that is held, and then damaged, is fetched again where the origin has it, and is not replaced
		// behind the operator's back where it has not.
		o.put("a", "r3", one(3))
		moves(t, c, o, "a", "r3", one(3))
		_, err := c.Rollback(t.Context(), "a", "")
		require.NoError(t, err)
		require.NoError(t, c.condemn(t.Context(), map[model.Digest]bool{digest(one(2)["f"]): true}))
		require.Contains(t, failed(t, c, "a", "Held").Message,
			"model a is held at revision r2 by a rollback, which is gone from here and from its origin, where r3 is")
		o.put("a", "r2", one(2))
		require.Equal(t, "r2", ready(t, c, "a").Revision)
		o.put("a", "r4", one(4))
		require.NoError(t, c.condemn(t.Context(), map[model.Digest]bool{digest(one(2)["f"]): true}))
		failed(t, c, "a", "Held")
		require.NoError(t, ask(t, c, spec("a", "a")))
		require.Equal(t, "r4", ready(t, c, "a").Revision)
	})
}

func TestAnOldRevisionOutlivesItsModelWhileItIsInUse(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", one(1))
		cfg := config(root)
		cfg.Keep = 2
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		ready(t, c, "a")
		moves(t, c, o, "a", "r2", one(2))
		moves(t, c, o, "a", "r3", one(3))
		require.NoError(t, c.Pin("a@r2"))
		c.mu.Lock()
		m := c.models["a"].memory
		m.Wished = false
		require.NoError(t, c.remember(c.models["a"], m))
		c.mu.Unlock()
		c.Want(nil) // nobody asks for it any more
		require.NoError(t, c.condemn(t.Context(), map[model.Digest]bool{digest(one(3)["f"]): true}))
		s := wait(t, c, "a", func(s *model.Status) bool { return s.State == model.Failed && len(s.Old) == 1 })
		require.Equal(t, "OnlyOld", s.Reason)
		require.Contains(t, s.Message, "gpu-agent models rollback a makes one current")
		require.Equal(t, int64(mega), c.Get().Used)
		done, err := c.Rollback(t.Context(), "a", "")
		require.NoError(t, err)
		require.Equal(t, model.Rollback{To: "r2"}, done)
		require.Equal(t, model.Ready, c.Get().Model("a").State)
		holds(t, root, "a", one(2))
	})
}

func TestWhatIsMadeAnewInTheHubIsWatchedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		cfg, uses := config(root), &said{}
		cfg.Keep = 1
		cfg.opens = func() (opens, error) { return uses, nil }
		o.hub["a"], o.hub["b"] = model.Hub{Repo: "org/m", Revision: "main"}, model.Hub{Repo: "org/m", Revision: "v1"}
		o.put("a", commit1, one(1))
		o.put("b", commit1, one(1))
		c := open(t, cfg, o)
		run(t, c)
		pull(t, c, "a", "b")
		time.Sleep(5 * usesEvery)
		before := len(uses.watched())
		time.Sleep(5 * usesEvery)
		require.Len(t, uses.watched(), before)
		moves(t, c, o, "a", commit2, one(2))
		time.Sleep(5 * usesEvery)
		require.ElementsMatch(t, []string{"a", "a@" + commit1[:12], "b"}, uses.watched()[before:])
	})
}

func TestOneOldRevisionIsRemovedAndVerified(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		cfg := config(root)
		cfg.Keep = 5
		o.put("a", "r1", one(1))
		c := open(t, cfg, o)
		stop := run(t, c)
		pull(t, c, "a")
		for n := range uint64(3) {
			moves(t, c, o, "a", fmt.Sprintf("r%d", n+2), one(n+2))
		}
		require.Equal(t, []string{"r3", "r2", "r1"}, olds(c.Get().Model("a")))

		require.NoError(t, c.Remove(t.Context(), "a@r2", false))
		require.Equal(t, []string{"r3", "r1"}, olds(c.Get().Model("a")))
		require.NoDirExists(t, c.at.visible("a@r2"))
		require.Equal(t, int64(3*mega), c.Get().Used)
		require.Equal(t, "Current", model.ReasonOf(c.Remove(t.Context(), "a@r4", true)))
		require.Equal(t, "NotFound", model.ReasonOf(c.Remove(t.Context(), "a@r2", true)))
		require.Equal(t, "NotFound", model.ReasonOf(c.Remove(t.Context(), "b@r2", true)))

		require.NoError(t, c.Pin("a@r3"))
		c.InUse([]model.Use{{Model: "a", Revision: "r1", By: "ns/p"}})
		require.EqualError(t, c.Remove(t.Context(), "a@r3", false), "revision r3 of model a is kept: pinned: remove it with --force if it may go all the same")
		require.EqualError(t, c.Remove(t.Context(), "a@r1", false), "revision r1 of model a is kept: in use by ns/p: remove it with --force if it may go all the same")
		require.NoError(t, c.Remove(t.Context(), "a@r3", true))
		require.Empty(t, c.models["a"].memory.Pins, "or the next of that name would be pinned")
		require.Equal(t, []string{"r1"}, olds(c.Get().Model("a")))

		// A revision is read again by its own directory.
		for _, name := range []string{"a@r1", "a@r4"} {
			damaged, err := c.Verify(t.Context(), name)
			require.NoError(t, err)
			require.Empty(t, damaged)
		}
		_, err := c.Verify(t.Context(), "a@r2")
		require.EqualError(t, err, "model a has no revision r2 here, it has r4, r1")
		blob := c.at.blob(digest(one(1)["f"]))
		require.NoError(t, os.Chmod(blob, 0o600))
		f, err := os.OpenFile(blob, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{one(1)["f"][7] ^ 1}, 7)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		damaged, err := c.Verify(t.Context(), "a")
		require.NoError(t, err)
		require.Empty(t, damaged, "the current one is sound")
		damaged, err = c.Verify(t.Context(), "a@r1")
		require.NoError(t, err)
		require.Equal(t, []string{"f"}, damaged)
		require.Empty(t, olds(c.Get().Model("a")), "withdrawn")
		require.Equal(t, model.Ready, c.Get().Model("a").State)
		stop()
		tidy(t, root, one(4))
	})
}
