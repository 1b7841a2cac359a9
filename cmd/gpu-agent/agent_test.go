package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestASocketTakesThePlaceOfASocketOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	old, err := net.Listen("unix", path)
	require.NoError(t, err)
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, old.Close()) // as a killed agent leaves it
	l, err := listenPrivate(t.Context(), path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode())
	require.NoError(t, l.Close())
	require.NoFileExists(t, path)

	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = listenPrivate(t.Context(), path)
	require.ErrorContains(t, err, "is there and is no socket: remove it, or name another path")
	require.FileExists(t, path)
}
