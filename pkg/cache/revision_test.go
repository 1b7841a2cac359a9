package cache

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestARevisionHasADirectoryAsLongAsItIsTheModels(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		one, two, l := weights(1), weights(2), layout(root)
		o.put("a", "sha256:0123456789abcdef", one)
		o.put("a.b", "r1", one)
		c := open(t, config(root), o)
		stop := run(t, c)
		pull(t, c, "a", "a.b")
		used := c.Get().Used
		holds(t, root, "a@0123456789ab", one)
		info, err := os.Stat(filepath.Join(l.visible("a@0123456789ab"), "sub", "dir"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o555), info.Mode().Perm())

		// A pod that has it open under the name of the revision does not see it change.
		o.put("a", "r2", two)
		require.NoError(t, ask(t, c, model.Spec{Name: "a"}))
		wait(t, c, "a", func(s *model.Status) bool { return s.Revision == "r2" })
		stop()
		holds(t, root, "a@r2", two)
		require.NoDirExists(t, l.visible("a@0123456789ab"))
		tidy(t, root, two, one)

		// A cache of an earlier version has none of them, and one more is left of a crash.
		require.NoError(t, durable.Disk{}.RemoveTree(l.visible("a@r2")))
		require.NoError(t, os.Rename(l.visible("a.b@r1"), l.visible("a.b@r0")))
		c = open(t, config(root), o)
		require.Equal(t, 2*used, c.Get().Used, "links take no room")
		holds(t, root, "a@r2", two)
		holds(t, root, "a.b@r1", one)
		stop = run(t, c)
		require.NoError(t, c.Remove(t.Context(), "a", false))
		stop()
		tidy(t, root, one)
	})
}

func TestSomebodyElsesRevisionStays(t *testing.T) {
	bubble(t, func(t *testing.T, root string, o *origin) {
		o.hold("a")
		mine := filepath.Join(layout(root).visible("a@r1"), "thesis")
		require.NoError(t, os.MkdirAll(filepath.Dir(mine), 0o755))
		require.NoError(t, os.WriteFile(mine, make([]byte, 1000), 0o600))
		c := open(t, config(root), o)
		c.Want([]model.Spec{spec("a", "a")})
		stop := run(t, c)
		require.Contains(t, failed(t, c, "a", "Foreign").Message, "a@r1 is there already and not of this cache")
		require.Nil(t, tree(t, layout(root).visible("a")))
		require.NoError(t, os.RemoveAll(filepath.Dir(mine)))
		o.forget()
		require.NoError(t, ask(t, c, spec("a", "a")))
		ready(t, c, "a")
		require.Zero(t, o.bytesAsked(), "what was fetched was kept")
		stop()
		holds(t, root, "a@r1", o.content["a"])
	})
}
