package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// weights is a model with a file of many ranges, one of one, an empty one and a copy.
func weights(seed uint64) map[string][]byte {
	big := noise(seed, 20*64<<10+123)
	return map[string][]byte{"model.safetensors": big, "sub/dir/config.json": noise(seed+100, 500), "empty": {}, "copy": big}
}

// bubble runs f with a root of its own on fake time.
func bubble(t *testing.T, f func(t *testing.T, root string, o *origin)) {
	t.Helper()
	root := dir(t)
	synctest.Test(t, func(t *testing.T) { f(t, root, newOrigin()) })
}

func TestAModelIsFetchedVerifiedAndVisible(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := weights(1)
		o.put("a", "r1", files)
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		s := ready(t, c, "a")
		require.Equal(t, "r1", s.Revision)
		require.Equal(t, filepath.Join(root, "models/by-name/a"), s.Path)
		require.Equal(t, 4, s.Files)
		require.Equal(t, s.Size, s.Done)
		require.True(t, s.Wanted)
		require.False(t, s.LastUse.IsZero())
		inv := c.Get()
		require.Equal(t, int64(len(files["copy"])+500), inv.Used, "equal content counts once")
		require.Zero(t, inv.Reserved)
		require.Equal(t, inv.Used, inv.Fetched)
		stop()
		holds(t, root, "a", files)
		tidy(t, root, files)
		info, err := os.Stat(filepath.Join(s.Path, "sub/dir"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o555), info.Mode().Perm())
		info, err = os.Stat(filepath.Join(s.Path, "model.safetensors"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o444), info.Mode().Perm())

		o.forget()
		c = open(t, config(root), o)
		require.Equal(t, model.Ready, c.Get().Model("a").State, "Open alone knows what is there")
		require.Equal(t, inv.Used, c.Get().Used)
		require.NoError(t, c.Close())
		require.Zero(t, o.resolved)
	})
}

func TestANewRevisionReplacesTheOldInOneStep(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		one, two := weights(1), weights(2)
		two["sub/dir/config.json"] = one["sub/dir/config.json"]
		o.put("a", "r1", one)
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		o.forget()
		o.put("a", "r2", two)
		require.NoError(t, ask(t, c, spec("a", "a")))
		wait(t, c, "a", func(s *model.Status) bool {
			require.Equal(t, model.Ready, s.State)
			return s.Revision == "r2"
		})
		stop()
		require.Equal(t, int64(len(two["copy"])), o.bytesAsked(), "the shared file is not fetched again")
		holds(t, root, "a", two)
		tidy(t, root, two)
	})
}

func TestBadAnswersEndInAReason(t *testing.T) {
	hook := func(f func(n int, ctx context.Context, off int64, part []byte) (io.ReadCloser, error, bool)) func(*origin) {
		return func(o *origin) {
			o.onOpen = func(n int, ctx context.Context, _ model.File, off, _ int64, part []byte) (io.ReadCloser, error, bool) {
				return f(n, ctx, off, part)
			}
		}
	}
	body := func(b []byte) (io.ReadCloser, error, bool) { return io.NopCloser(bytes.NewReader(b)), nil, true }
	paths := func(ps ...string) func(*origin) {
		return func(o *origin) {
			m := model.Manifest{Revision: "x"}
			for _, p := range ps {
				m.Files = append(m.Files, model.File{Path: p, Size: 1})
			}
			o.models["bad"] = m
		}
	}
	for _, tc := range []struct {
		name, reason, text string
		do                 func(*origin)
	}{
		{"not there", "NotFound", "no such model", func(o *origin) { delete(o.models, "bad") }},
		{"no files", "Empty", "no files", paths()},
		{"climbing path", "BadPath", "leaves the model's directory", paths("ok", "../../etc/passwd")},
		{"absolute path", "BadPath", "is absolute", paths("/etc/passwd")},
		{"one path twice", "BadPath", "listed twice", paths("a", "a")},
		{"a file in a file", "BadPath", "both a file and a directory", paths("a", "a/b/c")},
		{"wrong bytes", "WrongDigest", "instead of", hook(func(_ int, _ context.Context, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return body(bytes.Repeat([]byte("x"), len(part)))
		})},
		{"truncated", "Truncated", "ended 10 bytes short", hook(func(_ int, _ context.Context, off int64, part []byte) (io.ReadCloser, error, bool) {
			if len(part) <= 10 {
				return body(nil)
			}
			return body(part[:len(part)-10])
		})},
		{"silence", "Stalled", "less than 32 KiB", hook(func(_ int, ctx context.Context, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return silent{ctx, bytes.NewReader(part[:5])}, nil, true
		})},
		{"a list that does not come", "Stalled", "did not list the model's files within 2m0s", func(o *origin) { o.silent = "bad" }},
		{"forbidden", "Forbidden", "no", hook(func(int, context.Context, int64, []byte) (io.ReadCloser, error, bool) {
			return nil, &model.Error{Reason: "Forbidden", Text: "no", Final: true}, true
		})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				good := map[string][]byte{"f": noise(9, 1000)}
				o.put("good", "r1", good)
				o.put("bad", "r1", map[string][]byte{"big": noise(1, 300_000)})
				tc.do(o)
				real := o.onOpen
				if real != nil {
					o.onOpen = func(n int, ctx context.Context, f model.File, off, length int64, part []byte) (io.ReadCloser, error, bool) {
						if f.Path != "big" {
							return nil, nil, false
						}
						return real(n, ctx, f, off, length, part)
					}
				}
				c := open(t, config(root), o)
				c.Want([]model.Spec{spec("a-bad", "bad"), spec("b-good", "good")})
				run(t, c)
				s := failed(t, c, "a-bad", tc.reason)
				require.Equal(t, model.Failed, s.State)
				require.Contains(t, s.Message, tc.text)
				require.Positive(t, c.Get().Failures[tc.reason])
				ready(t, c, "b-good") // the other goes on
				require.Nil(t, tree(t, layout(root).visible("a-bad")))

				// Mended at the origin, it comes without anybody's help.
				o.forget()
				files := map[string][]byte{"big": noise(1, 300_000)}
				o.put("bad", "r2", files)
				ready(t, c, "a-bad")
				holds(t, root, "a-bad", files)
			})
		})
	}
}

func TestPassingFailuresAreRetried(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := weights(1)
		o.put("a", "r1", files)
		o.onResolve = func(n int, _ model.Ref) (error, bool) { return errors.New("503"), n < 4 }
		o.onOpen = func(n int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			switch n % 9 {
			case 1:
				return nil, errors.New("503"), true
			case 2:
				return io.NopCloser(bytes.NewReader(part[:len(part)/2])), nil, true
			case 3:
				return silent{ctx, bytes.NewReader(part[:len(part)/3])}, nil, true
			}
			return nil, nil, false
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		ready(t, c, "a")
		holds(t, root, "a", files)
		require.Equal(t, int64(3), c.Get().Failures["Failed"], "only the failed look-ups count: ranges mend themselves")
		again := c.Get().Fetched - c.Get().Used
		require.True(t, 0 <= again && again <= hedgeRanges*64<<10, "a broken stream is continued, a silent one overtaken: %d", again)
	})
}

func TestAnOriginIsLeftAloneForAsLongAsItAsks(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", map[string][]byte{"w": noise(1, 1000)})
		throttled := &model.Error{Reason: "Throttled", Text: "429", RetryAfter: 7 * time.Minute}
		var looked, read []time.Time
		o.onResolve = func(n int, _ model.Ref) (error, bool) {
			looked = append(looked, time.Now())
			return throttled, n == 1
		}
		o.onOpen = func(n int, _ context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			read = append(read, time.Now())
			return nil, throttled, n == 1
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		time.Sleep(8 * time.Minute)
		synctest.Wait()
		s := c.Get().Model("a")
		require.Equal(t, model.Pulling, s.State)
		require.Equal(t, "Throttled", s.Reason, "what a pull waits for is said")
		require.Contains(t, s.Message, "the origin asked to be left alone until ")
		ready(t, c, "a")
		require.Len(t, looked, 2)
		require.Equal(t, 7*time.Minute, looked[1].Sub(looked[0]))
		require.Len(t, read, 2)
		require.Equal(t, 7*time.Minute, read[1].Sub(read[0]))
	})
}

// A try goes on for a while with an origin that fails: until something comes it says why.
func TestWhyATryStandsStillIsSaid(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		const step = 64 << 10
		var fails atomic.Bool
		o.onOpen = func(int, context.Context, model.File, int64, int64, []byte) (io.ReadCloser, error, bool) {
			return nil, &model.Error{Reason: "Unavailable", Text: "500 Internal Server Error"}, fails.Load()
		}
		fails.Store(true)
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		for i, files := range []map[string][]byte{{"w": noise(1, 10*step)}, {"w": noise(2, 10*step)}} {
			fails.Store(true)
			o.put("a", fmt.Sprint("r", i), files)
			require.NoError(t, ask(t, c, spec("a", "a")))
			wait(t, c, "a", func(s *model.Status) bool {
				if i > 0 { // what is there stays as it is
					return s.State == model.Ready && s.Reason == "" && s.Update != nil && s.Update.Reason == "" &&
						s.Update.Message == "retrying: 500 Internal Server Error"
				}
				return s.State == model.Pulling && s.Reason == "" && s.Message == "retrying: 500 Internal Server Error"
			})
			fails.Store(false)
			wait(t, c, "a", func(s *model.Status) bool { return s.Revision == fmt.Sprint("r", i) && s.Answered == s.Asked })
			s := c.Get().Model("a")
			require.Equal(t, model.Ready, s.State)
			require.Empty(t, s.Message)
			holds(t, root, "a", files)
		}
		// One range that fails while others come is no news.
		j := &job{}
		j.hitch.Store(&hitch{"500", 0})
		require.Equal(t, "retrying: 500", j.retrying())
		j.got.Add(progress - 1)
		require.Equal(t, "retrying: 500", j.retrying(), "a drip")
		j.got.Add(1)
		require.Empty(t, j.retrying())
	})
}

// What drips is replaced again and again, and brings a little each time: the reason is said all the while.
func TestWhyAnOriginDripsIsSaid(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", map[string][]byte{"w": noise(1, 128<<10)})
		o.onOpen = func(n int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return &drip{ctx, part, 400, time.Second + time.Duration(n%7)*70*time.Millisecond}, nil, true
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		time.Sleep(stallAfter + 2*time.Second)
		for range 1200 { // two minutes, in which a try comes to its end too
			synctest.Wait()
			s := c.Get().Model("a")
			require.Contains(t, s.Message, "less than 32 KiB from the origin in 30s", "%s, %d bytes came", s.State, s.Done)
			time.Sleep(100 * time.Millisecond)
		}
		require.Greater(t, c.Get().Model("a").Done, int64(50<<10), "all the while something came")
	})
}

func TestAnOriginThatIgnoresRangesIsReadInOneStream(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := weights(1)
		o.put("a", "r1", files)
		whole := 0
		o.onOpen = func(_ int, _ context.Context, f model.File, off, n int64, part []byte) (io.ReadCloser, error, bool) {
			if off != 0 || n != f.Size {
				return nil, &model.Error{Reason: "RangeIgnored", Text: "200 to a Range", Final: true}, true
			}
			if n > 64<<10 {
				o.mu.Lock()
				whole++
				first := whole == 1
				o.mu.Unlock()
				if first { // and breaks off once
					return io.NopCloser(bytes.NewReader(part[:n/2])), nil, true
				}
			}
			return nil, nil, false
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		stop()
		require.Equal(t, 2, whole)
		holds(t, root, "a", files)
		tidy(t, root, files)
	})
}

func TestContentThatChangesMidwayIsLookedUpAgain(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		one, two := weights(1), weights(2)
		o.put("a", "r1", one)
		o.onOpen = func(n int, _ context.Context, f model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			if n == 5 {
				o.put("a", "r2", two)
			}
			if n >= 5 && f.Version == "r1" {
				return nil, &model.Error{Reason: "Changed", Text: "another ETag"}, true
			}
			return nil, nil, false
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		require.Equal(t, "r2", ready(t, c, "a").Revision)
		stop()
		holds(t, root, "a", two)
		tidy(t, root, two)
	})
}

// TestAFileThatIsGoneForAWhileCostsNothingElse: its origin lists it as it was, so that what is here is still of the model.
func TestAFileThatIsGoneForAWhileCostsNothingElse(t *testing.T) {
	for name, pinned := range map[string]bool{"pinned": true, "neither digest nor version": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				files := map[string][]byte{"a": noise(1, 3*mega), "z": noise(2, mega)}
				o.put("a", "r1", files)
				if !pinned {
					for i := range o.models["a"].Files {
						o.models["a"].Files[i].Digest, o.models["a"].Files[i].Version = "", ""
					}
				}
				last := 0 // Opens of z at its last range: all else has been asked for by then
				o.onOpen = func(_ int, _ context.Context, f model.File, off, length int64, _ []byte) (io.ReadCloser, error, bool) {
					if f.Path == "z" && off+length == f.Size {
						if last++; last <= 3 {
							return nil, &model.Error{Reason: "Changed", Text: "it is gone"}, true
						}
					}
					return nil, nil, false
				}
				c := open(t, Config{Root: root, Limit: 64 * mega, Streams: 1, RangeSize: 64 << 10, opens: func() (opens, error) { return &said{}, nil }}, o)
				c.Want([]model.Spec{spec("a", "a")})
				stop := run(t, c)
				require.Equal(t, "Changed", failed(t, c, "a", "Changed").Reason)
				ready(t, c, "a")
				stop()
				holds(t, root, "a", files)
				tidy(t, root, files)
				require.Equal(t, 4, o.resolved, "each time it is looked up again")
				if pinned {
					require.LessOrEqual(t, o.bytesAsked(), int64(4*mega+3*64<<10))
				} else {
					require.Greater(t, o.bytesAsked(), int64(8*mega), "all of it is fetched again")
				}
			})
		})
	}
}

func TestADigestThatTheOriginDoesNotNameIsRecorded(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := weights(1)
		o.put("a", "r1", files)
		for i := range o.models["a"].Files {
			o.models["a"].Files[i].Digest = ""
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		ready(t, c, "a")
		holds(t, root, "a", files)
		var r record
		require.NoError(t, readJSON(c.at.manifest("a"), &r))
		require.Equal(t, "copy", r.Files[0].Path)
		require.Equal(t, digest(files["copy"]), r.Files[0].Digest)
		o.forget()
		require.NoError(t, ask(t, c, spec("a", "a")))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 1, o.resolved)
		require.Zero(t, o.bytesAsked(), "the same version of it is trusted")
	})
}

func TestARestartContinuesWhereTheJournalEnds(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{"big": noise(1, 40*64<<10)}
		o.put("a", "r1", files)
		o.onOpen = func(_ int, ctx context.Context, _ model.File, off, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			if off >= 30*64<<10 {
				return silent{ctx, bytes.NewReader(nil)}, nil, true
			}
			return nil, nil, false
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		wait(t, c, "a", func(s *model.Status) bool { return s.Done >= 30*64<<10 })
		stop()
		require.Nil(t, tree(t, layout(root).visible("a")))

		o.forget()
		c = open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		require.Equal(t, int64(30*64<<10), c.Get().Model("a").Done)
		require.Equal(t, int64(40*64<<10), c.Get().Used+c.Get().Reserved, "the reservation is restored")
		j := c.models["a"].job
		require.Equal(t, int64(30*64<<10), j.slots[0].Hashed, "what is done is not hashed again")
		stop = run(t, c)
		ready(t, c, "a")
		stop()
		require.Equal(t, int64(10*64<<10), o.bytesAsked())
		holds(t, root, "a", files)
		tidy(t, root, files)
	})
}

func TestAKilledAgentLosesOnlyWhatCameAfterTheJournal(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{"big": noise(1, 40*64<<10)}
		o.put("a", "r1", files)
		o.onOpen = func(_ int, ctx context.Context, _ model.File, off, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			if off >= 30*64<<10 {
				return silent{ctx, bytes.NewReader(nil)}, nil, true
			}
			return nil, nil, false
		}
		cfg := config(root)
		cfg.Streams = 1 // of several, the first range may come last, and then no journal has had anything to hash
		var dead atomic.Bool
		cfg.disk.Fault = func(string, string) error {
			if dead.Load() {
				return errCrash
			}
			return nil
		}
		c := open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		wait(t, c, "a", func(s *model.Status) bool { return s.Done >= 30*64<<10 })
		synctest.Wait()
		dead.Store(true)
		stop()

		o.forget()
		c = open(t, config(root), o)
		s := c.models["a"]
		require.NotNil(t, s)
		kept := s.job.got.Load()
		require.Greater(t, kept, int64((30-saveEvery)*64<<10))
		require.Equal(t, kept, s.job.slots[0].bytes())
		require.GreaterOrEqual(t, s.job.slots[0].Hashed, kept-hashLag*64<<10, "nor is most of what is kept hashed again")
		c.Want([]model.Spec{spec("a", "a")})
		stop = run(t, c)
		ready(t, c, "a")
		stop()
		require.Equal(t, int64(40*64<<10)-kept, o.bytesAsked())
		holds(t, root, "a", files)
	})
}

// TestPartsOfRangesAreKept stops, and kills, an agent whose streams have all brought a part of a range.
func TestPartsOfRangesAreKept(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%t", kill), func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				files := map[string][]byte{"big": noise(1, 40*64<<10)}
				o.put("a", "r1", files)
				o.onOpen = func(_ int, ctx context.Context, _ model.File, off, _ int64, part []byte) (io.ReadCloser, error, bool) {
					if off%(64<<10) != 0 {
						part = nil
					}
					return silent{ctx, bytes.NewReader(part[:min(len(part), 40<<10)])}, nil, true
				}
				cfg := config(root)
				var dead atomic.Bool
				cfg.disk.Fault = func(string, string) error {
					if dead.Load() {
						return errCrash
					}
					return nil
				}
				c := open(t, cfg, o)
				c.Want([]model.Spec{spec("a", "a")})
				stop := run(t, c)
				time.Sleep(stallAfter + saveAfter) // now each has broken off once, and is silent again
				synctest.Wait()
				dead.Store(kill)
				stop()

				o.forget()
				c = open(t, config(root), o)
				j := c.models["a"].job
				require.Equal(t, int64(4*40<<10), j.got.Load())
				if !kill {
					require.Equal(t, int64(40<<10), j.slots[0].Hashed, "up to the first gap")
				}
				c.Want([]model.Spec{spec("a", "a")})
				stop = run(t, c)
				ready(t, c, "a")
				stop()
				require.Equal(t, int64((40*64-4*40)<<10), o.bytesAsked())
				holds(t, root, "a", files)
				tidy(t, root, files)
			})
		})
	}
}

func TestAPartialDownloadThatNobodyWantsIsSwept(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.put("a", "r1", weights(1))
		o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
			return silent{ctx, bytes.NewReader(part[:1])}, nil, true
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		wait(t, c, "a", func(s *model.Status) bool { return s.State == model.Pulling })
		require.NotEmpty(t, tree(t, c.at.partials()))
		c.Want(nil)
		gone(t, c, "a")
		time.Sleep(time.Second)
		synctest.Wait()
		require.Zero(t, c.Get().Reserved)
		tidy(t, root)
	})
}
