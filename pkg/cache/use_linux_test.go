package cache

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestInotifySeesWhoeverOpensAFile(t *testing.T) {
	root := dir(t)
	file := filepath.Join(root, "a", "sub", "f")
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o600))
	blob := filepath.Join(root, "blob")
	require.NoError(t, os.Link(file, blob))
	in, err := watchOpens()
	require.NoError(t, err)
	defer func() { require.NoError(t, in.close()) }()
	require.NoError(t, in.watch("a", filepath.Join(root, "a")))
	require.NoError(t, in.watch("none", filepath.Join(root, "none")))
	opened := func() []string {
		names, err := in.opened()
		require.NoError(t, err)
		return names
	}
	read := func(path string) {
		_, err := os.ReadFile(path)
		require.NoError(t, err)
	}
	require.Empty(t, opened())
	_, err = os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Empty(t, opened(), "listing is no use")
	read(blob)
	require.Empty(t, opened(), "nor is another name of the same content")
	read(file)
	read(file)
	require.Equal(t, []string{"a"}, opened())
	read(file)
	require.Empty(t, opened(), "once, until it is watched again")
	require.NoError(t, in.watch("a", filepath.Join(root, "a")))
	read(file)
	require.NoError(t, os.RemoveAll(filepath.Join(root, "a")))
	require.Equal(t, []string{"a"}, opened())
	require.Empty(t, opened())
	require.Empty(t, in.(*inotify).models)
	require.Empty(t, in.(*inotify).of)
}
