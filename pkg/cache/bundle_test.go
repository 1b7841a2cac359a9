package cache

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// exported is a bundle of the models of an origin's hosts a and b, which share a file, and b's alone.
func exported(t *testing.T, root string, o *origin, names ...string) []byte {
	t.Helper()
	o.hub["a"] = model.Hub{Repo: "org/m", Revision: "main"}
	o.put("a", commit1, weights(1))
	o.put("b", "r1", map[string][]byte{"copy": weights(1)["copy"], "own": noise(7, 1000)})
	c := open(t, config(root), o)
	c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
	stop := run(t, c)
	ready(t, c, "a")
	ready(t, c, "b")
	var out bytes.Buffer
	require.NoError(t, c.Export(t.Context(), names, &out))
	stop()
	return out.Bytes()
}

func take(t *testing.T, c *Cache, bundle []byte) error {
	t.Helper()
	return c.Import(t.Context(), bytes.NewReader(bundle), func() {}, func(s model.Status) { require.Equal(t, model.Ready, s.State) })
}

type tarEntry struct {
	tar.Header
	content []byte
}

func entries(t *testing.T, bundle []byte) (all []tarEntry) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(bundle))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		all = append(all, tarEntry{*h, b})
	}
}

func packed(t *testing.T, all []tarEntry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range all {
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(e.content))
		}
		require.NoError(t, w.WriteHeader(&e.Header))
		_, err := w.Write(e.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return out.Bytes()
}

func TestABundleIsAModelWithoutItsOrigin(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		bundle := exported(t, root, o, "b", "a")
		require.Less(t, len(bundle), 2*len(weights(1)["copy"]), "equal content is in it once")
		o.forget()
		o.onResolve = func(int, model.Ref) (error, bool) { return errors.New("unreachable"), true }
		there := dir(t)
		c := open(t, config(there), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		failed(t, c, "a", "Failed")
		o.forget()
		o.onResolve = func(int, model.Ref) (error, bool) { return errors.New("unreachable"), true }
		require.NoError(t, take(t, c, bundle))
		s := ready(t, c, "a")
		require.Equal(t, commit1, s.Revision)
		require.Equal(t, "mem://b", c.Get().Model("b").Source)
		require.Empty(t, s.Reason)
		require.Zero(t, c.Get().Fetched)
		require.Zero(t, c.Get().Reserved)
		synctest.Wait()
		used := c.Get().Used
		require.NoError(t, take(t, c, bundle), "again: all is here")
		require.Equal(t, used, c.Get().Used)
		stop()
		holds(t, there, "a", weights(1))
		holds(t, there, "a@111111111111", weights(1))
		require.Equal(t, tree(t, layout(root).hub()), tree(t, layout(there).hub()))
		tidy(t, there, weights(1), map[string][]byte{"own": noise(7, 1000)})

		o.forget()
		o.onResolve = func(int, model.Ref) (error, bool) { return errors.New("unreachable"), true }
		c = open(t, config(there), o)
		c.Want([]model.Spec{spec("a", "a")})
		run(t, c)
		synctest.Wait()
		require.Equal(t, model.Ready, c.Get().Model("a").State, "after a restart, too")
		require.Zero(t, o.resolved)
		var again bytes.Buffer
		require.NoError(t, c.Export(t.Context(), []string{"b", "a"}, &again))
		require.Equal(t, bundle, again.Bytes(), "equal models make equal bundles")
	})
}

func TestABundleInAnotherOrderIsPutInOrder(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		bundle := exported(t, root, o, "a", "b")
		all := entries(t, bundle)
		var back []tarEntry
		for i := range all {
			back = append(back, all[len(all)-1-i])
		}
		c := open(t, config(dir(t)), o)
		defer c.Close()
		require.ErrorContains(t, take(t, c, packed(t, back)), "can be imported as a file, and not through a pipe")
		var ordered bytes.Buffer
		require.NoError(t, Reorder(bytes.NewReader(packed(t, back)), &ordered))
		require.Equal(t, bundle, ordered.Bytes())
		require.NoError(t, take(t, c, ordered.Bytes()))
	})
}

// A model that is here already needs nothing of the content: what says what is in the bundle must be whole all the same.
func TestABundleThatIsCutOffSaysSo(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		bundle := exported(t, root, o, "a")
		c := open(t, config(dir(t)), o)
		defer c.Close()
		require.NoError(t, take(t, c, bundle))
		texts := bytes.Index(bundle, weights(1)["copy"][:64])
		require.Greater(t, texts, 3000)
		for n := 0; n < texts-1024; n += 64 {
			const want = "the bundle is refused: .*(cut off|ends before|is not in it)"
			require.Regexp(t, want, take(t, c, bundle[:n]), "%d bytes", n)
			require.Regexp(t, want, Reorder(bytes.NewReader(bundle[:n]), io.Discard), "%d bytes of a file", n)
		}
	})
}

func TestABundleThatLiesIsRefused(t *testing.T) {
	file := func(name string, content string) tarEntry {
		return tarEntry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, []byte(content)}
	}
	// says is a bundle of one record, without content.
	says := func(edit func(*bundled)) func(*testing.T, []tarEntry) []tarEntry {
		return func(t *testing.T, all []tarEntry) []tarEntry {
			b := bundled{Name: "a", Source: "mem://a", Revision: "r", Files: []model.File{{Path: "f", Size: 1, Digest: digest([]byte("x"))}}}
			edit(&b)
			texts, err := bundleText([]bundled{b})
			require.NoError(t, err)
			var out []tarEntry
			for _, text := range texts {
				var content strings.Builder
				require.NoError(t, text.write(&content))
				out = append(out, file(text.name, content.String()))
			}
			return append(out, file(blobPrefix+string(digest([]byte("x"))), "x"))
		}
	}
	path := func(p string) func(*testing.T, []tarEntry) []tarEntry {
		return says(func(b *bundled) { b.Files[0].Path = p })
	}
	for name, tc := range map[string]struct {
		do   func(*testing.T, []tarEntry) []tarEntry
		want string
	}{
		"climbs":    {path("../x"), "leaves the model's directory"},
		"absolute":  {path("/etc/passwd"), "is absolute"},
		"bad name":  {says(func(b *bundled) { b.Name = "../a" }), `model name "../a"`},
		"a secret":  {says(func(b *bundled) { b.Source = "https://u:p@h/x" }), "credentials in the URL are not accepted"},
		"revision":  {says(func(b *bundled) { b.Revision = "" }), "revision"},
		"negative":  {says(func(b *bundled) { b.Files[0].Size = -1 }), "has a size of -1 bytes"},
		"no digest": {says(func(b *bundled) { b.Files[0].Digest = "" }), "has no digest"},
		"archive":   {says(func(b *bundled) { b.Files[0].Archive = model.Directory }), "is an archive"},
		"twice":     {says(func(b *bundled) { b.Files = append(b.Files, b.Files[0]) }), "listed twice"},
		"two sizes": {says(func(b *bundled) {
			b.Files = append(b.Files, model.File{Path: "g", Size: 2, Digest: b.Files[0].Digest})
		}), "has 1 bytes and also 2"},
		"size":    {says(func(b *bundled) { b.Files[0].Size = 2 }), "has 1 bytes instead of 2"},
		"room":    {says(func(b *bundled) { b.Files[0].Size = 1 << 40 }), "the limit of the cache"},
		"nothing": {func(*testing.T, []tarEntry) []tarEntry { return nil }, "ends before oci-layout"},
		"foreign entry": {func(_ *testing.T, all []tarEntry) []tarEntry {
			return append([]tarEntry{file("../evil", "x")}, all...)
		}, `entry "../evil": want oci-layout`},
		"link": {func(_ *testing.T, all []tarEntry) []tarEntry {
			return append([]tarEntry{{tar.Header{Typeflag: tar.TypeSymlink, Name: "blobs", Linkname: "/etc"}, nil}}, all...)
		}, "is no plain file"},
		"entry twice": {func(_ *testing.T, all []tarEntry) []tarEntry {
			return append([]tarEntry{all[0], all[0]}, all[1:]...)
		}, "is there twice"},
		"flipped bit": {func(_ *testing.T, all []tarEntry) []tarEntry {
			all[4].content[0] ^= 1
			return all
		}, "instead of"},
		"flipped text": {func(_ *testing.T, all []tarEntry) []tarEntry {
			all[3].content[9] ^= 1
			return all
		}, "is not of that sha256"},
		"lacks content": {func(_ *testing.T, all []tarEntry) []tarEntry { return all[:4] }, "is not in it"},
		"another artifact": {func(t *testing.T, all []tarEntry) []tarEntry {
			d := strings.Repeat("0", 64)
			m := fmt.Sprintf(`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s"}}`, d)
			return []tarEntry{all[0], file("index.json", fmt.Sprintf(`{"manifests":[{"digest":"sha256:%s"}]}`, digest([]byte(m)))),
				file(blobPrefix+string(digest([]byte(m))), m)}
		}, "no model of gpu-agent models export"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, root string, o *origin) {
				all := tc.do(t, entries(t, exported(t, dir(t), o, "a")))
				c := open(t, config(root), o)
				c.Want(nil)
				run(t, c)
				err := take(t, c, packed(t, all))
				require.ErrorContains(t, err, tc.want)
				require.NotContains(t, err.Error(), "\n")
				synctest.Wait()
				require.Empty(t, c.Get().Models)
				require.Zero(t, c.Get().Used+c.Get().Reserved)
				list, err := os.ReadDir(layout(root).partials())
				require.NoError(t, err)
				require.Empty(t, list)
			})
		})
	}
}

func TestEveryStepOfAnImportMayBeTheLast(t *testing.T) {
	var bundle []byte
	bubble(t, func(t *testing.T, root string, o *origin) { bundle = exported(t, root, o, "a", "b") })
	models := map[string]map[string][]byte{"a": weights(1), "b": {"copy": weights(1)["copy"], "own": noise(7, 1000)}}
	for _, alone := range []bool{false, true} {
		for i, over := int64(1), false; !over; i += stride {
			t.Run(fmt.Sprintf("alone=%t/%d", alone, i), func(t *testing.T) {
				bubble(t, func(t *testing.T, root string, o *origin) {
					f := &fault{at: i, alone: alone, hit: make(chan struct{})}
					cfg := config(root)
					cfg.disk.Fault = f.step
					if c, err := Open(cfg, nil); err == nil {
						if err := take(t, c, bundle); err != nil {
							require.ErrorIs(t, err, errCrash)
						}
						require.NoError(t, c.Close())
					}
					over = f.n.Load() < i
					for name, files := range models {
						if _, err := os.Stat(layout(root).visible(name)); err == nil {
							holds(t, root, name, files)
						}
					}
					c := open(t, config(root), o)
					c.Want(nil)
					require.NoError(t, take(t, c, bundle))
					run(t, c)()
					tidy(t, root, models["a"], models["b"])
					for name, files := range models {
						holds(t, root, name, files)
					}
				})
			})
			if t.Failed() {
				return
			}
			if over {
				require.Greater(t, i, int64(60), "the scene is shorter than it was")
			}
		}
	}
}

// pausing is a writer that waits before its first byte.
type pausing struct {
	bytes.Buffer
	once        sync.Once
	began, goOn chan struct{}
}

func (p *pausing) Write(b []byte) (int, error) {
	p.once.Do(func() {
		close(p.began)
		<-p.goOn
	})
	return p.Buffer.Write(b)
}

func TestWhatIsExportedIsNotEvicted(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		big := func(seed uint64) map[string][]byte { return map[string][]byte{"w": noise(seed, 40*mega)} }
		o.put("a", "r1", big(1))
		o.put("b", "r1", big(2))
		c := open(t, config(root), o)
		c.Want(nil)
		run(t, c)
		require.NoError(t, ask(t, c, spec("a", "a")))
		ready(t, c, "a")
		out := &pausing{began: make(chan struct{}), goOn: make(chan struct{})}
		ended := make(chan error, 1)
		go func() { ended <- c.Export(t.Context(), []string{"a"}, out) }()
		<-out.began
		require.NoError(t, ask(t, c, spec("b", "b")))
		failed(t, c, "b", "NoSpace")
		close(out.goOn)
		require.NoError(t, <-ended)
		ready(t, c, "b")
		require.NoError(t, Reorder(bytes.NewReader(out.Bytes()), io.Discard))
	})
}

// TestAnImportDoesNotTakeBackWhatItBrought has room for one of its two models.
func TestAnImportDoesNotTakeBackWhatItBrought(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b")
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		stop := run(t, c)
		ready(t, c, "a")
		ready(t, c, "b")
		var bundle bytes.Buffer
		require.NoError(t, c.Export(t.Context(), []string{"a", "b"}, &bundle))
		stop()
		cfg := config(dir(t))
		cfg.Limit = 3 * mega / 2
		c = open(t, cfg, o)
		run(t, c)
		require.Equal(t, "NoSpace", model.ReasonOf(take(t, c, bundle.Bytes())))
		require.Equal(t, []string{"a Ready"}, names(c))
		// It is as any other then.
		pull(t, c, "b")
		require.Equal(t, []string{"b Ready"}, names(c))
	})
}

func TestAModelOfTheConfigIsNotImportedFromElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		bundle := exported(t, dir(t), o, "a")
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "other")})
		run(t, c)
		require.ErrorContains(t, take(t, c, bundle), "model a comes from mem://other in the config and from mem://a in the bundle")
	})
}

func TestAnImportEndsWithTheCache(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		bundle := exported(t, dir(t), o, "a")
		c := open(t, config(root), o)
		stop := run(t, c)
		r, w := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			ended <- c.Import(t.Context(), r, func() { r.Close() }, func(model.Status) { t.Error("it is not whole") })
		}()
		_, err := w.Write(bundle[:len(bundle)/2])
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, model.Pulling, c.Importing().State)
		require.Positive(t, c.Importing().Done)
		stop()
		synctest.Wait()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.Nil(t, tree(t, layout(root).visible("a")))
		require.ErrorContains(t, take(t, c, bundle), "the cache was closed meanwhile")
	})
}
