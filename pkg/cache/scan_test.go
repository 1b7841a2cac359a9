package cache

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestWhatSomebodyElsePutThereStays(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("mydata", "a")
		mine := filepath.Join(layout(root).visible("mydata"), "thesis")
		require.NoError(t, os.MkdirAll(filepath.Dir(mine), 0o755))
		require.NoError(t, os.WriteFile(mine, make([]byte, 1000), 0o600))
		odd := filepath.Join(layout(root).byName(), ".My Notes")
		require.NoError(t, os.WriteFile(odd, make([]byte, 24), 0o600))
		scratch := filepath.Join(layout(root).byName(), ".a.tmp-0", "sub")
		require.NoError(t, os.MkdirAll(scratch, 0o755))

		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("mydata", "mydata"), spec("a", "a")})
		stop := run(t, c)
		ready(t, c, "a")
		s := failed(t, c, "mydata", "Foreign")
		require.True(t, s.Final)
		require.Contains(t, s.Message, "move it away, or give the model another name")
		require.Equal(t, int64(mega+1024), c.Get().Used, "it counts")
		require.FileExists(t, mine)
		require.FileExists(t, odd)
		require.NoDirExists(t, scratch)
		require.NoError(t, os.RemoveAll(filepath.Dir(mine)))
		require.NoError(t, ask(t, c, spec("mydata", "mydata")))
		ready(t, c, "mydata")
		stop()
		holds(t, root, "mydata", o.content["mydata"])
	})
}

func TestAStoreOfSomebodyElseIsRefused(t *testing.T) {
	root := dir(t)
	file := filepath.Join(root, "store", "blobs", "sha256", "precious")
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := Open(config(root), nil)
	require.EqualError(t, err, "cache root "+root+": "+root+`/store is not of this cache, "blobs" is in it: set another root, or move it away`)
	require.FileExists(t, file)
}

// pulling leaves a download of o's model "a" where it is once its first streams are silent.
func pulling(t *testing.T, cfg Config, o *origin) {
	t.Helper()
	o.onOpen = func(_ int, ctx context.Context, _ model.File, _, _ int64, part []byte) (io.ReadCloser, error, bool) {
		return silent{ctx, bytes.NewReader(part[:1])}, nil, true
	}
	c := open(t, cfg, o)
	c.Want([]model.Spec{spec("a", "a")})
	stop := run(t, c)
	synctest.Wait()
	stop()
	o.forget()
}

func TestAPlanThatHadNoRoomYetHasNoneAfterACrash(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a")
		cfg := config(root)
		cfg.disk.Fault = func(op, path string) error {
			if strings.HasPrefix(path, layout(root).partial("a")) && (strings.HasSuffix(path, "00000") || op == "remove") {
				return errCrash // the crash comes before the first file
			}
			return nil
		}
		pulling(t, cfg, o)
		require.NotEmpty(t, tree(t, layout(root).partial("a")))
		c := open(t, config(root), o)
		require.NotNil(t, c.models["a"].job)
		require.Zero(t, c.Get().Reserved)
		require.NoError(t, c.Close())
	})
}

func TestALowerLimitGivesUpPartialDownloads(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a", "b")
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("b", "b")})
		stop := run(t, c)
		ready(t, c, "b")
		stop()
		cfg := config(root)
		pulling(t, cfg, o)
		cfg.Limit = mega + mega/2
		c = open(t, cfg, o)
		require.Equal(t, int64(2*mega), c.Get().Used+c.Get().Reserved)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		stop = run(t, c)
		synctest.Wait()
		require.Equal(t, "NoSpace", c.Get().Model("a").Reason)
		require.Equal(t, int64(mega), c.Get().Used+c.Get().Reserved)
		stop()
	})
}

// TestABlobIsNotWrittenInto crashes between the linking of a blob into a download and the note of it.
func TestABlobIsNotWrittenInto(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		shared := noise(1, 1000)
		o.put("b", "r1", map[string][]byte{"f": shared})
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("b", "b")})
		stop := run(t, c)
		ready(t, c, "b")
		stop()

		o.put("a", "r1", map[string][]byte{"f": shared})
		cfg := config(root)
		cfg.disk.Fault = func(op, path string) error {
			if strings.HasPrefix(path, layout(root).partial("a")) && (strings.HasSuffix(path, "done-00001.json") || op == "remove") {
				return errCrash
			}
			return nil
		}
		c = open(t, cfg, o)
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		stop = run(t, c)
		failed(t, c, "a", "Failed")
		stop()
		require.FileExists(t, filepath.Join(layout(root).partial("a"), "00000"))
		c = open(t, config(root), o)
		require.NoFileExists(t, filepath.Join(layout(root).partial("a"), "00000"))
		c.Want([]model.Spec{spec("a", "a"), spec("b", "b")})
		stop = run(t, c)
		ready(t, c, "a")
		stop()
		holds(t, root, "b", map[string][]byte{"f": shared})
	})
}
