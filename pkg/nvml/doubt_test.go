package nvml

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// driverGoneCodes are answers that are meant for the whole driver.
func driverGoneCodes() []code {
	return []code{errUninitialized, errDriverNotLoaded, errLibraryNotFound, errLibVersionMismatch}
}

func TestOneGPUThatSaysTheDriverIsGoneIsTheOnlyOneOutOfUse(t *testing.T) {
	for _, c := range driverGoneCodes() {
		t.Run(c.String(), func(t *testing.T) {
			play(t, eight, func(t *testing.T, m *Monitor, d *script) {
				d.do(func() { d.cards[3].fault, d.cards[3].handle = c, c })
				pass(time.Hour)
				s := m.Get()
				require.True(t, s.Driver.Loaded)
				require.Equal(t, 7, s.HealthyCount())
				require.Equal(t, gpu.Unreadable, s.Devices[3].Health.Reason)
				require.Contains(t, s.Devices[3].Health.Text, c.String())
				d.do(func() {
					require.Len(t, d.opens, 1, "one session")
					d.cards[3].fault, d.cards[3].handle = success, success
				})
				pass(40 * time.Second)
				require.Equal(t, 8, m.Get().HealthyCount())
			})
		})
	}
}

func TestAGPUThatSaysTheDriverIsGoneFromTheStartIsUnidentified(t *testing.T) {
	play(t, func() *script { d := eight(); d.cards[3].handle = errDriverNotLoaded; return d }, func(t *testing.T, m *Monitor, d *script) {
		require.Equal(t, 7, m.Get().HealthyCount())
		require.Equal(t, []gpu.Unidentified{{Index: 3, Why: errDriverNotLoaded.explain()}}, m.Get().Unidentified)
	})
}

func TestOneGPUIsBelievedWhereTheDriverDoesNotAnswer(t *testing.T) {
	play(t, func() *script { d := eight(); d.countHang = make(chan struct{}); return d }, func(t *testing.T, m *Monitor, d *script) {
		defer func() { close(d.countHang) }()
		d.do(func() { d.cards[3].fault = errUninitialized })
		pass(10*time.Second + DefaultDeadline)
		require.Equal(t, 7, m.Get().HealthyCount())
		require.True(t, m.Get().Driver.Loaded)
	})
}

func TestADriverOfWhichEveryGPUSaysThatItIsGoneIsGone(t *testing.T) {
	play(t, func() *script { d := eight(); d.countHang = make(chan struct{}); return d }, func(t *testing.T, m *Monitor, d *script) {
		defer func() { close(d.countHang) }()
		d.do(func() { d.gone, d.openErr = errDriverNotLoaded, errAway })
		pass(10*time.Second + parting)
		require.False(t, m.Get().Driver.Loaded)
		require.Zero(t, m.Get().HealthyCount())
	})
}
