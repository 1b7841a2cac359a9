package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// hold puts models of one mega each at the origin.
func (o *origin) hold(names ...string) {
	for i, n := range names {
		o.put(n, "r1", map[string][]byte{"f": noise(uint64(i), mega)})
	}
}

func pull(t *testing.T, c *Cache, names ...string) {
	t.Helper()
	for _, n := range names {
		require.NoError(t, ask(t, c, spec(n, n)))
		ready(t, c, n)
		time.Sleep(time.Second) // fake: uses must differ
	}
}

func names(c *Cache) (list []string) {
	for _, m := range c.Get().Models {
		list = append(list, m.Name+" "+string(m.State))
	}
	return list
}

func TestTheLongestUnusedIsEvictedFirstAndPinsStay(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b", "c", "d", "e", "f")
		cfg := config(root)
		cfg.Limit = 3 * mega
		uses := &said{}
		cfg.opens = func() (opens, error) { return uses, nil }
		c := open(t, cfg, o)
		c.Want(nil)
		stop := run(t, c)
		pull(t, c, "a", "b", "c")
		time.Sleep(usesEvery)
		uses.say("a")
		time.Sleep(usesEvery)
		pull(t, c, "d")
		require.Equal(t, []string{"a Ready", "c Ready", "d Ready"}, names(c))
		require.NoError(t, c.Pin("c"))
		pull(t, c, "e")
		require.Equal(t, []string{"c Ready", "d Ready", "e Ready"}, names(c))
		require.Equal(t, int64(2), c.Get().Evicted)
		require.Equal(t, int64(3*mega), c.Get().Used)
		stop()

		// Pins, uses and wishes are there after a restart.
		c = open(t, cfg, o)
		c.Want(nil)
		stop = run(t, c)
		require.True(t, c.Get().Model("c").Pinned)
		pull(t, c, "f")
		require.Equal(t, []string{"c Ready", "e Ready", "f Ready"}, names(c))
		require.NoError(t, c.Unpin("c"))
		pull(t, c, "a")
		require.Equal(t, []string{"a Ready", "e Ready", "f Ready"}, names(c))
		stop()
		tidy(t, root, o.content["a"], o.content["e"], o.content["f"])
	})
}

func TestTheConfigsModelsDoNotEvictEachOther(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b", "c", "d")
		cfg := config(root)
		cfg.Limit = 2 * mega
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		run(t, c)
		ready(t, c, "a")
		ready(t, c, "b")
		o.forget() // how often a and b were asked for is open: each may have given up streams for the other
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b"), spec("c", "c")})
		s := failed(t, c, "c", "NoSpace")
		require.Equal(t, model.Pending, s.State)
		require.Contains(t, s.Message, "needs 1.0 MiB, free 0 B, evictable 0 B")
		require.Zero(t, o.bytesAsked(), "not a byte of c before there is room")

		// No longer in the config is not gone, but it makes room.
		c.Want([]model.Spec{spec("b", "b"), spec("c", "c")})
		ready(t, c, "c")
		require.Equal(t, []string{"b Ready", "c Ready"}, names(c))
	})
}

func TestNothingIsEvictedIfItWouldNotDo(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b")
		o.put("huge", "r1", map[string][]byte{"f": noise(9, 2*mega)})
		cfg := config(root)
		cfg.Limit = 2*mega + mega/2
		c := open(t, cfg, o)
		c.Want(nil)
		run(t, c)
		pull(t, c, "a", "b")
		require.NoError(t, c.Pin("b"))
		require.NoError(t, ask(t, c, spec("huge", "huge")))
		s := failed(t, c, "huge", "NoSpace")
		require.Contains(t, s.Message, "needs 2.0 MiB, free 512.0 KiB, evictable 1.0 MiB")
		require.Zero(t, c.Get().Evicted)
		require.Zero(t, c.Get().Reserved)
		require.Empty(t, tree(t, c.at.partials()))
	})
}

func TestAModelThatHasItsRoomDoesNotSayThatItWaitsForIt(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b")
		cfg := config(root)
		cfg.Limit = mega + 1000
		c := open(t, cfg, o)
		c.Want(nil)
		stop := run(t, c)
		pull(t, c, "a")
		require.NoError(t, c.Pin("a"))
		_, err := c.Pull(t.Context(), spec("b", "b"))
		require.NoError(t, err)
		require.NotEmpty(t, failed(t, c, "b", "NoSpace").Message)
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			return silent{ctx, bytes.NewReader(nil)}, nil, true
		}
		require.NoError(t, c.Unpin("a"))
		require.NoError(t, c.Remove(t.Context(), "a", false))
		time.Sleep(time.Second)
		synctest.Wait()
		b := c.Get().Model("b")
		require.Equal(t, model.Pulling, b.State)
		require.Empty(t, b.Reason)
		require.Empty(t, b.Message)
		stop()
	})
}

func TestASizeBeyondTheLimitIsRefusedBeforeAnythingIsLaidOut(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.models["huge"] = model.Manifest{Revision: "x", Files: []model.File{{Path: "f", Size: 1 << 50}}}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("huge", "huge")})
		run(t, c)
		s := failed(t, c, "huge", "NoSpace")
		require.Equal(t, "model huge needs 1.0 PiB and the limit of the cache at "+root+" is 64.0 MiB: raise it", s.Message)
		require.Nil(t, c.models["huge"].job)
		require.Empty(t, tree(t, c.at.partials()))
	})
}

func TestAPinnedModelIsRemovedByForceAlone(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a")
		c := open(t, config(root), o)
		run(t, c)
		pull(t, c, "a")
		require.NoError(t, c.Pin("a"))
		require.Equal(t, "Pinned", model.ReasonOf(c.Remove(t.Context(), "a", false)))
		require.Equal(t, []string{"a Ready"}, names(c))
		require.NoError(t, c.Remove(t.Context(), "a", true))
		gone(t, c, "a")
	})
}

func TestALowerLimitShrinksTheCache(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b", "c")
		c := open(t, config(root), o)
		c.Want(nil)
		stop := run(t, c)
		pull(t, c, "a", "b", "c")
		stop()
		cfg := config(root)
		cfg.Limit = mega
		c = open(t, cfg, o)
		c.Want(nil)
		run(t, c)
		synctest.Wait()
		require.Equal(t, []string{"c Ready"}, names(c))
	})
}

func TestRemovingIsSaidBeforeTheFilesGo(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a")
		cfg, asked, labelled := config(root), make(chan string), make(chan struct{})
		cfg.Unlabelled = func(ctx context.Context, name string) error {
			select {
			case asked <- name:
			case <-ctx.Done():
				return ctx.Err()
			}
			<-labelled
			return nil
		}
		c := open(t, cfg, o)
		c.Want(nil)
		stop := run(t, c)
		pull(t, c, "a")

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, c.Remove(ctx, "a", false), context.Canceled)
		require.Equal(t, []string{"a Ready"}, names(c), "the labels are still there, so the files are")

		removed := make(chan error)
		go func() { removed <- c.Remove(t.Context(), "a", false) }()
		require.Equal(t, "a", <-asked)
		require.Equal(t, []string{"a Removing"}, names(c))
		holds(t, root, "a", o.content["a"])
		close(labelled)
		require.NoError(t, <-removed)
		gone(t, c, "a")
		require.Zero(t, c.Get().Used)
		require.Equal(t, "NotFound", model.ReasonOf(c.Remove(t.Context(), "a", false)))
		synctest.Wait()
		stop()
		tidy(t, root)
		require.Empty(t, tree(t, layout(root).states()))
	})
}

func TestAModelOfTheConfigIsNotRemoved(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a")
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		ready(t, c, "a")
		require.Equal(t, "Wanted", model.ReasonOf(c.Remove(t.Context(), "a", false)))
		require.Equal(t, "Wanted", model.ReasonOf(ask(t, c, spec("a", "elsewhere"))))
		require.Equal(t, []string{"a Ready"}, names(c))
	})
}

func TestRemoveEndsADownload(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a")
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return silent{ctx, bytes.NewReader(part[:1])}, nil, true
		}
		c := open(t, config(root), o)
		c.Want(nil)
		run(t, c)
		require.NoError(t, ask(t, c, spec("a", "a")))
		wait(t, c, "a", func(s *model.Status) bool { return s.State == model.Pulling })
		require.NoError(t, c.Remove(t.Context(), "a", false))
		gone(t, c, "a")
		synctest.Wait()
		tidy(t, root)
	})
}

func TestVerifyFindsAFlippedBit(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := weights(1)
		o.put("a", "r1", files)
		o.put("b", "r1", map[string][]byte{"same": files["copy"]})
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		stop := run(t, c)
		ready(t, c, "b")
		path := filepath.Join(ready(t, c, "a").Path, "model.safetensors")
		damaged, err := c.Verify(t.Context(), "a")
		require.NoError(t, err)
		require.Empty(t, damaged)

		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if os.IsPermission(err) {
			require.NoError(t, os.Chmod(path, 0o600))
			f, err = os.OpenFile(path, os.O_WRONLY, 0)
		}
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{files["copy"][1000] ^ 1}, 1000)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		damaged, err = c.Verify(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, []string{"copy", "model.safetensors"}, damaged)
		ready(t, c, "a")
		ready(t, c, "b")
		stop()
		holds(t, root, "a", files)
		holds(t, root, "b", o.content["b"])
		tidy(t, root, files, o.content["b"])
		_, err = c.Verify(t.Context(), "nope")
		require.Equal(t, "NotFound", model.ReasonOf(err))
	})
}

// What is left of a damaged model is in a download when more of it turns out to be damaged: the rest stays, and what came.
func TestDamageThatIsFoundLaterCostsTheDamagedFilesAlone(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(map[bool]string{true: "restarted", false: "at once"}[restarted], func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				const step = 64 << 10
				first, large, small, sound := noise(1, 5*step), noise(2, 3*step), noise(3, 100), noise(4, 9*step)
				files := map[string][]byte{"first": first, "large": large, "small": small, "sound": sound}
				o.put("a", "r1", files)
				o.put("b", "r1", map[string][]byte{"large": large, "small": small})
				cfg := config(root)
				cfg.RangeSize, cfg.Limit = step, int64(len(first)+len(large)+len(small)+len(sound)) // and no more
				cfg.Limit += int64(len(large) + len(small))                                         // that each of the two fetches
				c := open(t, cfg, o)
				specs := []model.Spec{spec("a", "a"), spec("b", "b")}
				c.Want(specs)
				stop := run(t, c)
				ready(t, c, "b")
				ready(t, c, "a")
				damage(t, filepath.Join(layout(root).visible("a"), "first"))
				damage(t, filepath.Join(layout(root).visible("b"), "large"))
				damage(t, filepath.Join(layout(root).visible("b"), "small"))
				o.forget()
				// One range of the first file comes, and then nothing for a while.
				more := make(chan struct{})
				o.onOpen = func(n int, ctx context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
					if n > 1 {
						select {
						case <-more:
						case <-ctx.Done():
							return nil, ctx.Err(), true
						}
					}
					return nil, nil, false
				}
				before := c.Get().Fetched
				require.NoError(t, c.condemn(t.Context(), map[model.Digest]bool{digest(first): true}))
				wait(t, c, "a", func(s *model.Status) bool { return s.State == model.Pulling && s.Done == s.Size-4*step })
				damaged, err := c.Verify(t.Context(), "b")
				require.NoError(t, err)
				require.Equal(t, []string{"large", "small"}, damaged)
				s := wait(t, c, "a", func(s *model.Status) bool { return s.State == model.Pulling })
				require.Equal(t, s.Size-int64(4*step+len(large)+len(small)), s.Done)
				wait(t, c, "a", func(*model.Status) bool { return c.Get().Used+c.Get().Reserved == cfg.Limit }) // for all that is to come
				synctest.Wait()
				if restarted { // and nothing of it is taken for more than it is
					before -= c.Get().Fetched
					stop()
					c = open(t, cfg, o)
					c.Want(specs)
					stop = run(t, c)
				}
				close(more)
				ready(t, c, "a")
				ready(t, c, "b")
				holds(t, root, "a", files)
				holds(t, root, "b", o.content["b"])
				require.EqualValues(t, len(first)+2*(len(large)+len(small)), c.Get().Fetched-before)
				require.Empty(t, c.Get().Failures)
				stop()
				tidy(t, root, files, o.content["b"])
			})
		})
	}
}

// Whatever step fails, or is the last, when damage goes out of a download: half a file is never taken for a whole one.
func TestDamageThatGoesOutIsCrashSafe(t *testing.T) {
	for _, alone := range []bool{false, true} {
		for i, over := int64(1), false; !over; i++ {
			t.Run(fmt.Sprintf("alone=%t/%d", alone, i), func(t *testing.T) {
				bubble(t, func(t *testing.T, root string, o *origin) {
					files := map[string][]byte{"first": noise(1, 1000), "large": noise(2, 100_000), "small": noise(3, 100), "sound": noise(4, 100_000)}
					o.put("a", "r1", files)
					f := &fault{at: i, alone: alone, hit: make(chan struct{})}
					var armed atomic.Bool
					cfg := config(root)
					cfg.disk.Fault = func(op, path string) error {
						if armed.Load() {
							return f.step(op, path)
						}
						return nil
					}
					c := open(t, cfg, o)
					c.Want([]model.Spec{spec("a", "a")})
					stop := run(t, c)
					ready(t, c, "a")
					for _, name := range []string{"first", "large", "small"} {
						damage(t, filepath.Join(layout(root).visible("a"), name))
					}
					damaged := tree(t, layout(root).visible("a"))
					o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
						<-ctx.Done()
						return nil, ctx.Err(), true
					}
					require.NoError(t, c.condemn(t.Context(), map[model.Digest]bool{digest(files["first"]): true}))
					wait(t, c, "a", func(s *model.Status) bool { return s.State == model.Pulling })
					synctest.Wait()
					armed.Store(true)
					err := c.condemn(t.Context(), map[model.Digest]bool{digest(files["large"]): true, digest(files["small"]): true})
					synctest.Wait() // the download goes on, and waits for its origin
					stop()
					over = f.n.Load() < i
					o.forget()
					c = open(t, config(root), o)
					c.Want([]model.Spec{spec("a", "a")})
					stop = run(t, c)
					ready(t, c, "a")
					if err == nil {
						holds(t, root, "a", files)
					}
					for name, got := range tree(t, layout(root).visible("a")) { // at worst it is as it was found
						require.True(t, bytes.Equal(got, files[name]) || bytes.Equal(got, damaged[name]), name)
					}
					stop()
				})
			})
			if t.Failed() {
				return
			}
			if over {
				require.Greater(t, i, int64(10), "there are fewer steps than there were")
			}
		}
	}
}

// An archive is fetched again for one member of it; the others of the model stay.
func TestADamagedMemberCostsItsArchiveAlone(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		members := map[string][]byte{"one": noise(1, 300_000), "two": noise(2, 200_000), "three": noise(3, 100_000)}
		var archives [][]byte
		var size int
		for _, name := range []string{"one", "two", "three"} {
			archives = append(archives, tarball(t, "", false, map[string][]byte{name: members[name]}))
		}
		o.layered("a", "r1", model.Directory, nil, archives...)
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		more := make(chan struct{})
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			select {
			case <-more:
				return nil, nil, false
			case <-ctx.Done():
				return nil, ctx.Err(), true
			}
		}
		before := c.Get().Fetched
		for i, name := range []string{"one", "two"} {
			require.NoError(t, c.condemn(t.Context(), map[model.Digest]bool{digest(members[name]): true}))
			size += len(archives[i])
			wait(t, c, "a", func(s *model.Status) bool { return s.State == model.Pulling && c.Get().Reserved >= int64(size) })
			synctest.Wait()
		}
		close(more)
		ready(t, c, "a")
		holds(t, root, "a", members)
		require.EqualValues(t, size, c.Get().Fetched-before)
		require.EqualValues(t, 600_000, c.Get().Used)
		require.Zero(t, c.Get().Reserved)
		stop()
		tidy(t, root, members)
	})
}

// An update has what it shares with a revision that turns out to be damaged, and goes on.
func TestDamageLeavesAnUpdateWhatCame(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		bad, shared, fresh := noise(1, mega), noise(2, mega), noise(3, mega)
		o.put("a", "r1", map[string][]byte{"bad": bad, "shared": shared})
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		o.forget()
		more := make(chan struct{})
		o.onOpen = func(n int, ctx context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			if n <= 8 {
				return nil, nil, false
			}
			select {
			case <-more:
				return nil, nil, false
			case <-ctx.Done():
				return nil, ctx.Err(), true
			}
		}
		files := map[string][]byte{"fresh": fresh, "shared": shared}
		o.put("a", "r2", files)
		before := c.Get().Fetched
		asked, err := c.Pull(t.Context(), spec("a", "a"))
		require.NoError(t, err)
		wait(t, c, "a", func(s *model.Status) bool { return s.Update != nil && s.Update.Done == mega+8*64<<10 })
		require.NoError(t, c.condemn(t.Context(), map[model.Digest]bool{digest(bad): true}))
		close(more)
		wait(t, c, "a", func(s *model.Status) bool { return s.State == model.Ready && s.Answered == asked })
		holds(t, root, "a", files)
		require.EqualValues(t, mega, c.Get().Fetched-before)
		stop()
		tidy(t, root, files)
	})
}

// damage flips a bit in the middle of a file.
func damage(t *testing.T, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	content[len(content)/2] ^= 1
	require.NoError(t, os.Chmod(path, 0o600))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write(content)
	require.NoError(t, err)
	require.NoError(t, f.Chmod(0o444))
	require.NoError(t, f.Close())
}

func TestOpenRefusesWhatItCannotKeep(t *testing.T) {
	root := dir(t)
	file := filepath.Join(root, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	readOnly := config(filepath.Join(root, "ro"))
	readOnly.disk.Fault = func(op, _ string) error {
		if op == "create" {
			return os.ErrPermission
		}
		return nil
	}
	two := config(filepath.Join(root, "ro2"))
	two.disk.Fault = func(op, _ string) error {
		if op == "link" {
			return os.ErrInvalid
		}
		return nil
	}
	for _, tc := range []struct {
		name, text string
		cfg        Config
	}{
		{"no root", `cache root "": want an absolute directory`, Config{}},
		{"relative root", `cache root "models": want an absolute directory`, Config{Root: "models"}},
		{"a file", "cache root " + file + " is not usable", Config{Root: file}},
		{"negative limit", "cache limit -1 bytes: want more than 0", Config{Root: root, Limit: -1}},
		{"limit beyond the disk", "lower the limit or mount a larger disk", Config{Root: root, Limit: 1 << 60}},
		{"read-only", "is not writable", readOnly},
		{"two filesystems", "must be on one filesystem with hard links", two},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Open(tc.cfg, nil)
			require.ErrorContains(t, err, tc.text)
			require.NotContains(t, err.Error(), "\n")
			require.Nil(t, c)
		})
	}
}

func TestASecondAgentIsRefused(t *testing.T) {
	root, o := dir(t), newOrigin()
	c := open(t, config(root), o)
	_, err := Open(config(root), nil)
	require.ErrorIs(t, err, durable.ErrLocked)
	require.ErrorContains(t, err, "cache root "+root+" is in use by another gpu-agent: ")
	require.ErrorContains(t, err, ": stop it or set another root")
	require.NoError(t, c.Close())
	require.NoError(t, open(t, config(root), o).Close())
}

func TestOpenBelievesOnlyWhatAManifestSays(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, l layout){
		"short blob": func(t *testing.T, l layout) {
			require.NoError(t, os.Truncate(filepath.Join(l.visible("a"), "model.safetensors"), 5))
		},
		"missing file": func(t *testing.T, l layout) {
			require.NoError(t, os.Chmod(l.visible("a"), 0o755))
			require.NoError(t, os.Remove(filepath.Join(l.visible("a"), "empty")))
		},
		"foreign file": func(t *testing.T, l layout) {
			require.NoError(t, os.Chmod(l.visible("a"), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(l.visible("a"), "x"), nil, 0o600))
		},
		"no manifest":     func(t *testing.T, l layout) { require.NoError(t, os.Remove(l.manifest("a"))) },
		"broken manifest": func(t *testing.T, l layout) { require.NoError(t, os.WriteFile(l.manifest("a"), []byte("{"), 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				files := weights(1)
				o.put("a", "r1", files)
				c := open(t, config(root), o)
				c.Want([]model.Spec{spec("a", "a")})
				stop := run(t, c)
				ready(t, c, "a")
				stop()
				harm(t, layout(root))
				c = open(t, config(root), o)
				require.Nil(t, tree(t, layout(root).visible("a")))
				c.Want([]model.Spec{spec("a", "a")})
				stop = run(t, c)
				ready(t, c, "a")
				stop()
				holds(t, root, "a", files)
				tidy(t, root, files)
			})
		})
	}
}
