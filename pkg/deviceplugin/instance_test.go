package deviceplugin

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOtherInstancesAreKnownByTheirSockets(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "dp") // a socket's path is short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	born := time.UnixMilli(1.7e12)
	open := func(born time.Time) (path string, close func()) {
		path = filepath.Join(dir, socketName("nvidia.com/gpu", stamp(born)))
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		require.NoError(t, err)
		l.SetUnlinkOnClose(false)
		return path, func() { require.NoError(t, l.Close()) }
	}
	in := instances{born: stamp(born)}
	now := time.Unix(2e9, 0)
	_, closeOwn := open(born)
	defer closeOwn()
	unstamped, err := net.Listen("unix", filepath.Join(dir, socketPrefix+"nvidia-com-gpu-abcdefghijkl"+socketSuffix))
	require.NoError(t, err)
	defer unstamped.Close()
	in.look(dir, now)
	require.False(t, in.yields(now))
	require.Zero(t, in.older)

	path, closeOlder := open(born.Add(-time.Hour))
	in.look(dir, now)
	require.False(t, in.yields(now))
	require.Equal(t, fileAt(path).ModTime(), in.older)
	closeOlder()
	in.look(dir, now)
	require.Zero(t, in.older, "a dead one does not count")

	_, closeNewer := open(born.Add(time.Millisecond))
	in.look(dir, now)
	closeNewer()
	in.look(dir, now.Add(time.Second))
	require.True(t, in.yields(now.Add(yieldFor-1)), "it may be about to register again")
	require.False(t, in.yields(now.Add(yieldFor)))
}
