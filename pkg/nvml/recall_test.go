package nvml

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// slotted are eight GPUs in slots that the kernel knows.
func slotted(t *testing.T, k node) func() *script {
	d := newScript(8)
	for i, c := range d.cards {
		c.bus = "00000000:0" + string(rune('1'+i)) + ":00.0"
		k.bind(t, sysfsBusID(c.bus))
	}
	return func() *script { // the state of the cards is the test's
		again := newScript(0)
		again.cards = d.cards
		for _, c := range d.cards {
			c.d, c.events = again, make(chan event, 1) // a channel belongs to one bubble
		}
		return again
	}
}

func TestAGPUThatDoesNotAnswerIsShownAfterARestart(t *testing.T) {
	for name, away := range map[string]func(d *script){
		"lost":         func(d *script) { d.cards[3].fault, d.cards[3].handle = errGPULost, errGPULost },
		"not counted":  func(d *script) { d.cards = append(d.cards[:3:3], d.cards[4:]...) },
		"its slot too": func(d *script) { d.cards = d.cards[:3] },
	} {
		t.Run(name, func(t *testing.T) {
			k := newNode(t)
			k.play(t, slotted(t, k), func(t *testing.T, m *Monitor, d *script) {
				d.do(func() { d.cards[3].fault, d.cards[3].handle = errGPULost, errGPULost })
				pass(10 * time.Second)
				require.Equal(t, gpu.Lost, m.Get().Devices[3].Health.Reason)
			})
			k.play(t, func() *script {
				d := slotted(t, k)()
				away(d)
				return d
			}, func(t *testing.T, m *Monitor, d *script) {
				sick := m.Get().Device("GPU-3")
				require.NotNil(t, sick, "it is not forgotten")
				require.Equal(t, gpu.Lost, sick.Health.Reason)
				require.Equal(t, "NVIDIA Test", sick.Name)
				require.Empty(t, m.Get().Unidentified)
				_, left, err := m.Uncordon(t.Context(), "GPU-3")
				require.NoError(t, err)
				require.Equal(t, gpu.Lost, left.Reason)
			})
		})
	}
}

func TestABoardThatWasReplacedIsNotShown(t *testing.T) {
	k := newNode(t)
	k.play(t, slotted(t, k), func(t *testing.T, m *Monitor, d *script) {
		d.do(func() { d.cards = append(d.cards[:3:3], d.cards[4:]...) })
		pass(15 * time.Second)
		require.Len(t, m.Get().Devices, 8)
		require.NoError(t, m.Cordon(t.Context(), "GPU-3", "goes back to the vendor"))

		again := newScript(9).cards[8]
		again.d, again.bus = d, "00000000:04:00.0"
		d.do(func() { d.cards = append(d.cards, again) })
		pass(15 * time.Second)
		require.Len(t, m.Get().Devices, 8)
		require.Equal(t, 8, m.Get().HealthyCount())
		require.Nil(t, m.Get().Device("GPU-3"))
	})
	k.play(t, func() *script {
		d := slotted(t, k)()
		d.cards[3].uuid = "GPU-8"
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		require.Equal(t, 8, m.Get().HealthyCount(), "nor after a restart")
		require.Len(t, m.Get().Devices, 8)
		d.do(func() { d.cards[5].uuid = "GPU-3" })
		pass(time.Minute)
		require.Equal(t, gpu.Cordoned, m.Get().Device("GPU-3").Health.Reason, "what is kept of it was not forgotten")
	})
}

func TestAGPUThatIsInNoSlotIsShownForAnHour(t *testing.T) {
	k := newNode(t)
	gone := func(d *script) {
		d.do(func() { d.cards = append(d.cards[:3:3], d.cards[4:]...) })
	}
	k.play(t, slotted(t, k), func(t *testing.T, m *Monitor, d *script) {
		gone(d)
		pass(2 * time.Hour)
		require.Len(t, m.Get().Devices, 8, "the kernel still has it")
		require.NoError(t, os.RemoveAll(filepath.Join(k.host.sysfs, "bus/pci/devices/0000:04:00.0")))
		pass(10 * time.Second)
		require.Len(t, m.Get().Devices, 7)
	})
}
