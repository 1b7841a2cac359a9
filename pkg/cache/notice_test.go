package cache

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestANoticeSaysWhyAModelIsNotThere(t *testing.T) {
	onDisks(t, []int64{10, 10}, func(t *testing.T, d *disks) {
		models, dir := d.path(""), d.path("", "waiting")
		require.NoError(t, os.MkdirAll(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "l.json"), []byte(`{"name":"l"}`), 0o644)) // of an agent that was killed
		d.o.hold("here")
		d.Want(listed("here", "gone"))
		stop := d.all()
		d.after(2 * time.Second)
		m, known := Notice(models, "gone")
		require.True(t, known)
		require.Equal(t, model.Status{Name: "gone", State: model.Failed, Reason: m.Reason, Message: m.Message, RetryAt: m.RetryAt, Final: m.Final}, m,
			"nothing of where it comes from or who wants it")
		require.Equal(t, d.Get().Model("gone").Reason, m.Reason)
		require.NotEmpty(t, m.Message)
		for _, other := range []string{"here", "l", "unknown", "../waiting/gone"} {
			_, known = Notice(models, other)
			require.False(t, known, other)
		}
		info, err := os.Stat(filepath.Join(dir, "gone.json"))
		require.NoError(t, err)
		require.EqualValues(t, 0o644, info.Mode().Perm())

		d.o.hold("gone")
		_, err = d.Pull(t.Context(), spec("gone", "gone"))
		require.NoError(t, err)
		d.after(time.Minute)
		require.Equal(t, model.Ready, d.Get().Model("gone").State)
		_, known = Notice(models, "gone")
		require.False(t, known, "it is ready")
		stop()
		require.NoDirExists(t, dir, "nobody works on anything any more")
	})
}

func TestNoticesChangeWithEachHundredth(t *testing.T) {
	at := func(done int64) string {
		return notice(model.Status{Name: "m", State: model.Pulling, Size: 12345, Done: done})
	}
	require.Equal(t, `{"name":"m","source":"","state":"Pulling","size":12345,"done":123,"files":0,"pinned":false,"wanted":false}`, at(124))
	require.Equal(t, at(124), at(246))
	require.NotEqual(t, at(246), at(247))
}

func TestANoticeThatCannotBeWrittenIsTriedAgain(t *testing.T) {
	models := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var s Set
		var group sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		group.Go(func() { s.notices(ctx, models) })
		say := func(done int64) {
			s.promised.Set(&model.Inventory{Models: []model.Status{{Name: "m", State: model.Pulling, Size: 100, Done: done}}})
			time.Sleep(2 * noticeEvery)
			synctest.Wait()
		}
		synctest.Wait()
		require.NoError(t, os.MkdirAll(noticePath(models, "m"), 0o755))
		say(1)
		_, known := Notice(models, "m")
		require.False(t, known)
		require.NoError(t, os.Remove(noticePath(models, "m")))
		say(1)
		m, _ := Notice(models, "m")
		require.EqualValues(t, 1, m.Done)
		stop()
		group.Wait()
		require.NoDirExists(t, noticeDir(models))
	})
}
