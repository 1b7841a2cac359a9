package cache

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// wholes is how often the origin was asked for the start of a file.
func (o *origin) wholes(path string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.asked {
		if s.path == path && s.off == 0 {
			n++
		}
	}
	return n
}

// tampered has the origin send other bytes of the file "big" than it names the digest of.
func (o *origin) tampered(fill func(n int) byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.onOpen = func(n int, _ context.Context, f model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
		if f.Path != "big" {
			return nil, nil, false
		}
		return io.NopCloser(bytes.NewReader(bytes.Repeat([]byte{fill(n)}, len(part)))), nil, true
	}
}

// TestWrongContentIsNotFetchedOverAndOver lets four days go by at an origin that sends wrong bytes.
func TestWrongContentIsNotFetchedOverAndOver(t *testing.T) {
	same := func(int) byte { return 'x' }
	other := func(n int) byte { return byte(n) }
	for _, tc := range []struct {
		name, source, version string
		size                  int
		fill                  func(int) byte
		times                 int
		text                  string
	}{
		// Ten minutes, doubled up to a day: eight on the first day, and one on each after it.
		{"no version", "mem://m", "", 300_000, same, 8 + 3, ", or once the origin says otherwise of it, or by gpu-agent models pull m"},
		{"a small file", "mem://m", "", 700, same, 8 + 3, "it is fetched again at 2000-01-"},
		{"a version, and the same bytes", "mem://m", "v", 300_000, same, wrongTries, "; it is fetched again once the origin says otherwise of it, or by"},
		{"a version, and other bytes each time", "mem://m", "v", 700, other, 8 + 3, "it is fetched again at 2000-01-"},
		{"a commit of a hub", "hf://m/x", "v", 300_000, same, 8 + 3, "it is fetched again at 2000-01-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				files := map[string][]byte{"big": noise(1, tc.size), "good": noise(2, 100)}
				o.put("m", "r1", files)
				version(o, tc.version)
				o.tampered(tc.fill)
				ref, err := model.ParseRef(tc.source)
				require.NoError(t, err)
				start := func() (*Cache, func()) {
					c, err := Open(config(root), map[string]Source{"mem": o, "hf": o})
					require.NoError(t, err)
					c.Want([]model.Spec{{Name: "m", Source: ref}})
					return c, run(t, c)
				}
				c, stop := start()
				failed(t, c, "m", "WrongDigest")
				for range 4 {
					time.Sleep(24 * time.Hour)
					synctest.Wait()
					stop() // a restart changes nothing
					c, stop = start()
				}
				s := failed(t, c, "m", "WrongDigest")
				require.Equal(t, tc.times, o.wholes("big"))
				require.Contains(t, s.Message, "file big: the origin sent sha256 ")
				require.Contains(t, s.Message, tc.text)
				require.Greater(t, o.looks(), 400, "it is asked what it has all the same")

				// A person asks: once, and not again.
				asked, err := c.Pull(t.Context(), model.Spec{Name: "m"})
				require.NoError(t, err)
				wait(t, c, "m", func(s *model.Status) bool { return s.Answered == asked })
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				require.Equal(t, tc.times+1, o.wholes("big"))

				// It is mended, and has another version or size.
				o.forget()
				files["big"] = noise(1, tc.size+1)
				o.put("m", "r1", files)
				version(o, tc.version)
				began := time.Now()
				ready(t, c, "m")
				require.LessOrEqual(t, time.Since(began), finalRetry, "found by the look")
				holds(t, root, "m", files)
				stop()
				require.Zero(t, c.models["m"].memory.Wrong)
			})
		})
	}
}

func version(o *origin, version string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.models["m"].Files {
		o.models["m"].Files[i].Version = version
	}
}

func TestContentThatIsMendedUnderItsNameComesByItself(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{"big": noise(1, 300_000)}
		o.put("m", "r1", files)
		o.tampered(func(int) byte { return 'x' })
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("m", "m")})
		run(t, c)
		failed(t, c, "m", "WrongDigest")
		o.forget()
		time.Sleep(finalRetry)
		ready(t, c, "m")
		holds(t, root, "m", files)
	})
}

// TestAnUpdateOfWrongContentIsFetchedAgainByVerify has a good revision in sight all the time.
func TestAnUpdateOfWrongContentIsFetchedAgainByVerify(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		one, two := map[string][]byte{"big": noise(1, 300_000)}, map[string][]byte{"big": noise(2, 300_000)}
		o.put("m", "r1", one)
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("m", "m")})
		run(t, c)
		ready(t, c, "m")
		o.forget()
		o.put("m", "r2", two)
		o.tampered(func(int) byte { return 'x' })
		require.NoError(t, ask(t, c, spec("m", "m")))
		time.Sleep(48 * time.Hour)
		synctest.Wait()
		require.Equal(t, wrongTries, o.wholes("big"))
		s := c.Get().Model("m")
		require.Equal(t, model.Ready, s.State)
		require.Equal(t, "WrongDigest", s.Reason)
		damaged, err := c.Verify(t.Context(), "m")
		require.NoError(t, err)
		require.Empty(t, damaged)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, wrongTries+1, o.wholes("big"))
		holds(t, root, "m", one)
	})
}
