package deviceplugin

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAttemptsAreSpacedAndANewKubeletIsTriedAtOnce(t *testing.T) {
	t.Parallel()
	first := filepath.Join(t.TempDir(), "a")
	require.NoError(t, os.WriteFile(first, nil, 0o600))
	second := filepath.Join(t.TempDir(), "b")
	require.NoError(t, os.WriteFile(second, nil, 0o600))
	old, restarted := fileAt(first), fileAt(second)

	now := time.Unix(1e9, 0)
	refused := errors.New("refused")
	var p pace
	require.NoError(t, p.allows(old, now))
	var delays []time.Duration
	for range 8 {
		p.attempted(old, now, refused)
		require.ErrorIs(t, p.allows(old, now), refused)
		delay := p.next(now, true)
		delays = append(delays, delay)
		require.ErrorIs(t, p.allows(old, now.Add(delay-1)), refused)
		now = now.Add(delay)
		require.NoError(t, p.allows(old, now))
	}
	ms := time.Millisecond
	require.Equal(t, []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms, 5000 * ms}, delays)

	p.attempted(old, now, refused)
	require.NoError(t, p.allows(restarted, now))
	p.attempted(restarted, now, refused)
	require.Equal(t, 100*ms, p.next(now, true), "patience with another kubelet starts anew")
}

func TestRegistrationsThatDoNotLastAreSpaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	kubelet := fileAt(path)
	now := time.Unix(1e9, 0)
	var p pace
	for _, want := range []time.Duration{firstDelay, 2 * firstDelay, 4 * firstDelay} {
		p.attempted(kubelet, now, nil)
		p.ended(now, now.Add(time.Millisecond), errStreamEnded)
		now = now.Add(time.Millisecond)
		require.ErrorIs(t, p.allows(kubelet, now), errStreamEnded)
		require.Equal(t, want, p.next(now, true))
		now = now.Add(want)
	}
	p.attempted(kubelet, now, nil)
	p.ended(now, now.Add(settled), errStreamEnded)
	require.ErrorIs(t, p.allows(kubelet, now.Add(settled)), errStreamEnded, "an older kubelet is still closing it")
	require.NoError(t, p.allows(kubelet, now.Add(settled+firstDelay)), "one that lasted is renewed soon")
}

func TestLooksOftenWhereNothingWakesIt(t *testing.T) {
	t.Parallel()
	var p pace
	require.Equal(t, 5*time.Second, p.next(time.Unix(1e9, 0), true))
	require.Equal(t, time.Second, p.next(time.Unix(1e9, 0), false))
}

func TestAFileInAReusedInodeIsAnotherFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	before := fileAt(path)
	require.True(t, same(before, fileAt(path)))
	require.NoError(t, os.Chtimes(path, time.Time{}, before.ModTime().Add(time.Second)))
	require.False(t, same(before, fileAt(path)))
	require.False(t, same(nil, before))
	require.Nil(t, fileAt(path+"x"))
}

func TestSocketNamesAreFreshAndShort(t *testing.T) {
	t.Parallel()
	name := socketName("nvidia.com/"+strings.Repeat("g", 63), stamp(time.Now()))
	require.NotEqual(t, name, socketName("nvidia.com/"+strings.Repeat("g", 63), stamp(time.Now())))
	require.Less(t, len("/var/lib/kubelet/device-plugins/"+name), 108)
	require.Regexp(t, `^gpu-agent-nvidia-com-gpu-[a-z0-9]{9}-[a-z0-9]{12}\.sock$`, socketName("nvidia.com/gpu", stamp(time.Now())))
}
