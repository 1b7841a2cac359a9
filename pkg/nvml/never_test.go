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
	var log bytes.Buffer
	cfg := Config{Log: slog.New(slog.NewTextHandler(&log, nil))}
	playWith(t, cfg, host{}, eight, func(t *testing.T, m *Monitor, d *script) {
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
			d.waitFault = errGPULost // what NVML does while a GPU is lost
		})
		pass(time.Minute)
		seen(m.Get(), 0, 1)
		d.do(func() { d.waitFault = success })
		for code := range uint64(400) {
			d.events <- event{GPU: 2, Code: code}
			d.events <- event{GPU: 2, Code: 154}
			d.events <- event{GPU: 2, Kind: eventRecoveryAction}
			d.events <- event{GPU: -1, Code: code}
			d.events <- event{GPU: 99, Kind: eventUnavailable}
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
	require.LessOrEqual(t, strings.Count(log.String(), "events of no known GPU"), 2)
}

func TestAStormOfOneXIDIsOneLineAndFewSamples(t *testing.T) {
	var log bytes.Buffer
	cfg := Config{Log: slog.New(slog.NewTextHandler(&log, nil))}
	playWith(t, cfg, host{}, func() *script { d := eight(); d.cards[4].recovery(0); return d }, func(t *testing.T, m *Monitor, d *script) {
		before := 0
		d.do(func() { before = d.cards[4].asked[opMemory] })
		for range 500 {
			d.events <- event{GPU: 4, Code: 119}
			d.events <- event{GPU: 4, Code: 74}
		}
		pass(time.Second)
		require.Equal(t, uint64(500), m.Get().Devices[4].XIDs[1].Count)
		d.do(func() { require.LessOrEqual(t, d.cards[4].asked[opMemory]-before, 12) })
	})
	require.Equal(t, 1, strings.Count(log.String(), "GPU unhealthy"), log.String())
}

func TestAFailingWaitForEventsIsNoBusyLoop(t *testing.T) {
	play(t, func() *script { d := eight(); d.waitFault = errGPULost; return d }, func(t *testing.T, m *Monitor, d *script) {
		pass(time.Minute)
		d.do(func() { require.LessOrEqual(t, d.waits, 62) })
		d.do(func() { d.waitFault = success })
		pass(time.Second)
		d.xid(3, 79)
		require.Equal(t, 7, m.Get().HealthyCount(), "events are heard again")
	})
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
			d.events <- event{GPU: 2 + i, Code: code}
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
		d.events <- event{GPU: 0, Code: 79}
		d.events <- event{GPU: 5, Code: 79}
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
