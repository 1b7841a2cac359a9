package nvml

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAGPUThatLeftIsForgotten(t *testing.T) {
	k := newNode(t)
	k.play(t, slotted(t, k), func(t *testing.T, m *Monitor, d *script) {
		forget := func() error { return m.Forget(t.Context(), "GPU-3") }
		require.NoError(t, m.Cordon(t.Context(), "GPU-3", "goes back to the vendor"))
		require.EqualError(t, forget(), "GPU GPU-3 is not forgotten: it is GPU 3 of this node")
		require.ErrorContains(t, m.Forget(t.Context(), "GPU-x"), "there is no GPU GPU-x here: want one of GPU-0, ")
		require.NoError(t, m.Release(t.Context(), time.Minute))
		require.ErrorContains(t, forget(), "the driver is released")
		require.NoError(t, m.Resume(t.Context()))
		synctest.Wait()

		bus := d.cards[3].bus
		d.do(func() { d.cards = append(d.cards[:3:3], d.cards[4:]...) })
		pass(15 * time.Second)
		require.Len(t, m.Get().Devices, 8)
		require.ErrorContains(t, forget(), "the kernel still has its PCI device, "+bus)
		require.NoError(t, os.RemoveAll(filepath.Join(k.host.sysfs, "bus/pci/devices", sysfsBusID(bus))))
		d.do(func() { d.cards[5].fault, d.cards[5].handle = errGPULost, errGPULost })
		require.NoError(t, m.Release(t.Context(), time.Minute))
		require.NoError(t, m.Resume(t.Context()))
		synctest.Wait()
		require.ErrorContains(t, forget(), "GPU 5 does not say who it is (ERROR_GPU_IS_LOST: the GPU has fallen off the bus), and may be this one")
		d.do(func() { d.cards[5].fault, d.cards[5].handle = success, success })
		pass(10 * time.Second)

		require.NoError(t, forget())
		require.Len(t, m.Get().Devices, 7)
		require.Nil(t, m.Get().Device("GPU-3"))
		require.ErrorContains(t, forget(), "there is no GPU GPU-3 here")
	})
	k.play(t, slotted(t, k), func(t *testing.T, m *Monitor, d *script) {
		require.True(t, m.Get().Device("GPU-3").Health.OK(), "nothing is on the disk of it")
	})
}

func TestNoGPUIsForgottenWithoutADriver(t *testing.T) {
	k := newNode(t)
	k.play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		require.NoError(t, m.Cordon(t.Context(), "GPU-3", "x"))
		d.do(func() { d.gone, d.openErr = errDriverNotLoaded, errAway })
		pass(10*time.Second + parting)
		require.False(t, m.Get().Driver.Loaded)
		require.EqualError(t, m.Forget(t.Context(), "GPU-3"), "GPU GPU-3 is not forgotten: without a driver it is not known whether it has left (driver away)")
	})
}
