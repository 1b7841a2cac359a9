package deviceplugin

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAFolderPutInThePlaceOfAnotherIsWatched(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plugins")
	f := openFolder(path, slog.New(slog.DiscardHandler))
	defer f.close()
	require.ErrorContains(t, f.look(), "plugin folder is not there")
	require.False(t, f.watched())

	require.NoError(t, os.Mkdir(path, 0o755))
	require.NoError(t, f.look())
	require.True(t, f.watched())

	require.NoError(t, os.Rename(path, path+".old"))
	require.NoError(t, os.Mkdir(path, 0o755))
	require.NoError(t, f.look())
	file := filepath.Join(path, "kubelet.sock")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for deadline := time.After(20 * time.Second); ; {
		select {
		case e := <-f.events():
			if e.Name == file {
				return
			}
		case <-deadline:
			require.Fail(t, "nothing was said of the new folder")
		}
	}
}

func TestWithoutAWatcherTheFolderIsPolled(t *testing.T) {
	t.Parallel()
	f := &folder{path: t.TempDir()}
	defer f.close()
	require.NoError(t, f.look())
	require.False(t, f.watched())
	require.Nil(t, f.events())
	require.Nil(t, f.errors())
}
