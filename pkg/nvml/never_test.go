package nvml

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// What must never happen, whatever one GPU does.

func TestOneSickGPUChangesNoOthersState(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		seen := func(s *gpu.Snapshot, sick ...int) {
			t.Helper()
			for i, dev := range s.Devices {
				if slices.Contains(sick, i) {
					continue
				}
				require.True(t, dev.Health.OK(), "GPU %d", i)
				require.NotNil(t, dev.Stats, "GPU %d", i)
				require.Empty(t, dev.XIDs, "GPU %d", i)
				require.Empty(t, dev.Notices, "GPU %d", i)
				require.Empty(t, dev.ReadErrors, "GPU %d", i)
			}
		}
		hang := make(chan struct{})
		d.do(func() {
			d.cards[0].fault, d.cards[0].handle = errGPULost, errGPULost
			d.cards[1].hang = hang
			d.cards[0].deaf = errGPULost // what NVML does while a GPU is lost
		})
		pass(time.Minute)
		seen(m.Get(), 0, 1)
		for code := range uint64(400) {
			d.cards[2].events <- event{Code: code}
			d.cards[2].events <- event{Code: 154}
			d.cards[2].events <- event{Kind: eventRecoveryAction}
		}
		pass(time.Minute)
		s := m.Get()
		seen(s, 0, 1, 2)
		require.Equal(t, 5, s.HealthyCount())
		require.Less(t, len(s.Devices[2].Health.Text), 300)
		d.do(func() { close(hang); d.cards[1].hang = nil })
		pass(time.Minute)
		seen(m.Get(), 0, 1, 2)
		require.Equal(t, 6, m.Get().HealthyCount())
	})
}

func TestAStormOfOneXIDIsOneLineAndFewSamples(t *testing.T) {
	var log bytes.Buffer
	cfg := Config{Log: slog.New(slog.NewTextHandler(&log, nil))}
	playWith(t, cfg, host{}, func() *script { d := eight(); d.cards[4].recovery(0); return d }, func(t *testing.T, m *Monitor, d *script) {
		before := 0
		d.do(func() { before = d.cards[4].asked[opMemory] })
		for range 500 {
			d.cards[4].events <- event{Code: 119}
			d.cards[4].events <- event{Code: 74}
		}
		pass(time.Second)
		require.Equal(t, uint64(500), m.Get().Devices[4].XIDs[1].Count)
		d.do(func() { require.LessOrEqual(t, d.cards[4].asked[opMemory]-before, 12) })
	})
	require.Equal(t, 1, strings.Count(log.String(), "GPU unhealthy"), log.String())
}

func TestAFailingWaitForEventsIsNoBusyLoop(t *testing.T) {
	for name, lost := range map[string]bool{"of a GPU that is lost": true, "of one that answers": false} {
		t.Run(name, func(t *testing.T) {
			play(t, eight, func(t *testing.T, m *Monitor, d *script) {
				c := d.cards[5]
				d.do(func() {
					c.deaf, c.waits = errGPULost, 0
					if lost {
						c.fault, c.handle = errGPULost, errGPULost
					}
				})
				for n := range uint64(60) {
					seenInTime(t, m, d, 2, n+1)
					pass(time.Second)
				}
				d.do(func() {
					require.LessOrEqual(t, c.waits, 2*62)
					c.deaf, c.fault, c.handle = success, success, success
				})
				pass(time.Minute)
				require.Equal(t, 8, m.Get().HealthyCount())
				d.xid(5, 79)
				require.Equal(t, 7, m.Get().HealthyCount(), "its events are heard again")
			})
		})
	}
}

// seenInTime says XID 13 of a GPU, for the nth time, and wants it in the snapshot within 200 ms.
func seenInTime(t *testing.T, m *Monitor, d *script, i int, n uint64) {
	t.Helper()
	began := time.Now()
	d.cards[i].events <- event{Code: 13}
	for {
		s, changed := m.Watch()
		if slices.ContainsFunc(s.Devices[i].XIDs, func(x gpu.XIDCount) bool { return x.Code == 13 && x.Count == n }) {
			break
		}
		<-changed
	}
	require.LessOrEqual(t, time.Since(began), 200*time.Millisecond, "time %d", n)
}

func TestAGPUThatIsOpenedAnewIsHeardAnew(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		c := d.cards[5]
		d.do(func() { require.Equal(t, 1, c.ears); c.fault = errGPULost })
		pass(20 * time.Second)
		old := c.events
		d.do(func() { c.fault, c.events = success, make(chan event, 1) }) // it was reset: nothing comes the old way
		pass(11 * time.Second)
		d.do(func() { require.Equal(t, 1, c.ears) })
		d.xid(5, 79)
		require.Len(t, m.Get().Devices[5].XIDs, 1)
		require.Empty(t, old)
	})
}

func TestNoEarIsLeftAfterTheEnd(t *testing.T) {
	var d *script
	play(t, func() *script { d = eight(); return d }, func(t *testing.T, m *Monitor, d *script) {
		d.do(func() { d.cards[1].handle, d.cards[2].fault, d.cards[3].deaf = errGPULost, errUnknown, errGPULost })
		pass(15 * time.Second)
		for i, c := range d.cards {
			d.do(func() { require.Equal(t, i != 3, c.ears == 1, "GPU %d", i) })
		}
	})
	for i, c := range d.cards {
		require.Zero(t, c.ears, "GPU %d", i)
	}
	require.Equal(t, 1, d.closes)
}

func TestAnXIDIsShownAtOnceWhileAnotherGPUAndTheCountHang(t *testing.T) {
	play(t, func() *script {
		d := eight()
		d.countHang = make(chan struct{})
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		hang := d.countHang
		d.do(func() { d.cards[0].hang = hang })
		pass(25 * time.Second)
		require.Equal(t, gpu.Hung, m.Get().Devices[0].Health.Reason)
		for i, code := range []uint64{79, 119, 48, 74, 13} {
			began := time.Now()
			d.cards[2+i].events <- event{Code: code}
			for {
				s, changed := m.Watch()
				if dev := s.Devices[2+i]; len(dev.XIDs) == 1 && dev.Health.OK() == (code == 13) {
					break
				}
				<-changed
			}
			require.LessOrEqual(t, time.Since(began), 200*time.Millisecond, "XID %d", code)
		}
		d.do(func() { close(hang); d.countHang, d.cards[0].hang = nil, nil })
	})
}

func TestAnXIDFromTheStartIsNotLostBehindAHungGPU(t *testing.T) {
	play(t, func() *script {
		d := eight()
		d.cards[0].hang = make(chan struct{})
		d.cards[0].events <- event{Code: 79}
		d.cards[5].events <- event{Code: 79}
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		hang := d.cards[0].hang
		pass(DefaultDeadline)
		require.Equal(t, gpu.XID, m.Get().Devices[4].Health.Reason, "the first that is shown: GPU 0 has not said who it is")
		d.do(func() { close(hang); d.cards[0].hang = nil })
		synctest.Wait()
		require.Equal(t, 6, m.Get().HealthyCount())
	})
}
