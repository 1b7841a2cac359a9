package cache

import (
	"bytes"
	"context"
	"crypto/sha1"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// git makes an origin that names git's checksums and no sha256.
func git(t *testing.T, o *origin, host string) {
	t.Helper()
	files := o.models[host].Files
	for i, f := range files {
		id := sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", f.Size, o.content[host][f.Path]))
		check, err := model.GitSHA1(fmt.Sprintf("%x", id))
		require.NoError(t, err)
		files[i].Digest, files[i].Check = "", check
	}
}

func TestAChecksumOfTheOriginIsVerifiedOverARestart(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{"big": noise(1, 40*64<<10), "empty": {}, "config.json": noise(2, 99)}
		o.put("a", "r1", files)
		git(t, o, "a")
		o.onOpen = func(n int, ctx context.Context, _ model.File, _, _ int64, _ []byte) (io.ReadCloser, error, bool) {
			if n > 30 {
				return silent{ctx, bytes.NewReader(nil)}, nil, true
			}
			return nil, nil, false
		}
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		wait(t, c, "a", func(s *model.Status) bool { return s.Done >= 29*64<<10 })
		stop()

		o.forget()
		c = open(t, config(root), o)
		require.Positive(t, c.models["a"].job.slots[0].Hashed, "what is done is not hashed again")
		c.Want([]model.Spec{spec("a", "a")})
		stop = run(t, c)
		ready(t, c, "a")
		stop()
		require.Empty(t, c.Get().Failures, "the state of the hash was kept")
		holds(t, root, "a", files)
		tidy(t, root, files)
		for _, f := range c.models["a"].visible.Files {
			require.Equal(t, digest(files[f.Path]), f.Digest, "a blob's name is its sha256")
		}

		// In the next revision, what has the version that it had is known by its sha256 now.
		m := o.models["a"]
		m.Revision = "r2"
		o.models["a"] = m
		o.forget()
		c = open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop = run(t, c)
		require.NoError(t, ask(t, c, spec("a", "a")))
		wait(t, c, "a", func(s *model.Status) bool { return s != nil && s.Revision == "r2" && s.State == model.Ready })
		stop()
		require.Zero(t, o.bytesAsked())
	})
}

func TestContentOfAnotherChecksumIsNeverVisible(t *testing.T) {
	for name, damage := range map[string]func(*model.File){
		"content": func(f *model.File) { f.Check = "git-sha1:ce013625030ba8dba906f756967f9e9ca394464a" },
		"form":    func(f *model.File) { f.Check = "sha512:cf83e1357eefb8bd" },
	} {
		bubble(t, func(t *testing.T, root string, o *origin) {
			o.put("a", "r1", map[string][]byte{"big": noise(1, 3*64<<10)})
			git(t, o, "a")
			damage(&o.models["a"].Files[0])
			c := open(t, config(root), o)
			c.Want([]model.Spec{spec("a", "a")})
			stop := run(t, c)
			defer stop()
			reason, text := "WrongDigest", "is not of git-sha1:ce01"
			if name == "form" {
				reason, text = "BadDigest", "want git-sha1:"
			}
			s := failed(t, c, "a", reason)
			require.Contains(t, s.Message, text)
			require.True(t, s.Final)
			require.Nil(t, tree(t, layout(root).visible("a")))
		})
	}
}

// TestWhatIsTrustedOnFirstUseIsToldApart has one file of each kind, and the same after a restart and a look.
func TestWhatIsTrustedOnFirstUseIsToldApart(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		files := map[string][]byte{"digest": noise(1, 100), "check": noise(2, 100), "neither": noise(3, 100)}
		put := func(revision string) {
			o.put("a", revision, files)
			o.mu.Lock()
			defer o.mu.Unlock()
			for i, f := range o.models["a"].Files {
				if f.Path != "digest" {
					o.models["a"].Files[i].Digest = ""
				}
				if f.Path == "check" {
					h, err := model.Checksum("crc32c:00000000").Hash(100)
					require.NoError(t, err)
					_, _ = h.Write(files["check"])
					o.models["a"].Files[i].Check = model.Checksum(fmt.Sprintf("crc32c:%x", h.Sum(nil)))
				}
				o.models["a"].Files[i].Version = "v"
			}
		}
		put("r1")
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		require.Equal(t, 1, c.Get().Model("a").FirstUse)
		stop()
		c = open(t, config(root), o)
		require.Equal(t, 1, c.Get().Model("a").FirstUse)
		run(t, c)
		o.forget()
		put("r2")
		require.NoError(t, ask(t, c, spec("a", "a")))
		wait(t, c, "a", func(s *model.Status) bool { return s.Revision == "r2" })
		require.Equal(t, 1, c.Get().Model("a").FirstUse)
		require.Zero(t, o.bytesAsked(), "it is known by its version")
	})
}
