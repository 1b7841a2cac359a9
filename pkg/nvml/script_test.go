package nvml

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// script is a driver that does what a test says.
type script struct {
	mu      sync.Mutex
	openErr error
	opening chan struct{} // while not nil, Open blocks on it
	opens   []time.Time
	closes  int
	gone    code // what every call answers, when not success
	version string
	cards   []*scriptCard

	countHang chan struct{} // while not nil, Count blocks on it once it was asked a first time
	counts    int
}

type scriptCard struct {
	d        *script
	events   chan event
	deaf     code // of Listen, and of Wait, when not success: they return at once
	waits    int  // calls of either
	ears     int  // that are open
	uuid     string
	handle   code          // of session.GPU
	fault    code          // of every call
	faults   map[op]code   // of one reading
	hang     chan struct{} // while not nil, every call blocks on it
	readHang chan struct{} // the same, readings only
	asked    map[op]int    // calls of Read
	nvlink   uint64
	bus      string
	readings map[op]func(*gpu.Stats) // what Read answers, in place of the default

	mig           bool
	instances     []gpu.Instance
	migFaults     []code        // of the next calls of Partition
	migHang       chan struct{} // while not nil, Partition blocks on it
	instanceFault code          // of ReadInstance
	links         []gpu.NVLink
	closes        int
}

func newScript(n int) *script {
	d := &script{version: "550.163.01"}
	for i := range n {
		d.cards = append(d.cards, &scriptCard{d: d, events: make(chan event, 2000), uuid: fmt.Sprintf("GPU-%d", i), faults: map[op]code{}, asked: map[op]int{}, readings: map[op]func(*gpu.Stats){}})
	}
	return d
}

// do changes the script.
func (d *script) do(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *script) Open() (session, error) {
	d.mu.Lock()
	d.opens = append(d.opens, time.Now())
	opening := d.opening
	d.mu.Unlock()
	if opening != nil {
		<-opening
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.openErr != nil {
		return nil, d.openErr
	}
	return d, nil
}

func (d *script) Driver() gpu.Driver {
	d.mu.Lock()
	defer d.mu.Unlock()
	return gpu.Driver{Version: d.version, CUDAVersion: 12040}
}

func (d *script) Count() (int, code) {
	d.mu.Lock()
	hang := d.countHang
	if d.counts++; d.counts == 1 {
		hang = nil
	}
	d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.cards), d.gone
}

func (d *script) GPU(i int) (card, code) {
	d.mu.Lock()
	c := d.cards[i]
	hang, ret := c.hang, max(c.handle, d.gone)
	d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return c, ret
}

func (d *script) Listen(i int) (ear, code) {
	d.mu.Lock()
	c := d.cards[i]
	c.waits++
	hang, ret := c.hang, max(c.deaf, c.handle, c.fault, d.gone)
	d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if ret != success {
		return nil, ret
	}
	d.do(func() { c.ears++ })
	return scriptEar{c}, success
}

// scriptEar hears what was said to a card, also before there was an ear.
type scriptEar struct{ card *scriptCard }

func (e scriptEar) Wait(timeout time.Duration) (event, code) {
	c := e.card
	c.d.mu.Lock()
	c.waits++
	fault := c.deaf
	c.d.mu.Unlock()
	if fault != success {
		return event{}, fault
	}
	select {
	case e := <-c.events:
		return e, success
	default:
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case e := <-c.events:
		return e, success
	case <-t.C:
		return event{}, errTimeout
	}
}

func (e scriptEar) Close() { e.card.d.do(func() { e.card.ears-- }) }

func (d *script) Close() { d.do(func() { d.closes++ }) }

func (c *scriptCard) Close() { c.d.do(func() { c.closes++ }) }

func (c *scriptCard) Partition(d *gpu.Device) code {
	c.d.mu.Lock()
	hang, ret := c.migHang, max(c.fault, c.d.gone)
	mig, instances := c.mig, slices.Clone(c.instances)
	if len(c.migFaults) > 0 {
		ret, c.migFaults = max(ret, c.migFaults[0]), c.migFaults[1:]
	}
	c.d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if ret == success {
		d.MIGCapable, d.MIGEnabled, d.Instances = true, mig, instances
	}
	return ret
}

func (c *scriptCard) Links(d *gpu.Device) code {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	c.asked[opLinks]++
	if ret := max(c.fault, c.d.gone, c.faults[opLinks]); ret != success {
		return ret
	}
	d.NVLinks = slices.Clone(c.links)
	return success
}

func (c *scriptCard) ReadInstance(in gpu.Instance, o op, s *gpu.Stats) code {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	c.asked[ofInstance(o)]++
	if ret := max(c.instanceFault, c.fault, c.d.gone); ret != success {
		return ret
	}
	if o != opMemory {
		return errNotSupported
	}
	s.MemoryUsed = new(uint64(in.GI))
	return success
}

func (c *scriptCard) Identify(d *gpu.Device) code {
	c.d.mu.Lock()
	hang, ret := c.hang, max(c.fault, c.d.gone)
	c.d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if ret == success {
		d.UUID, d.Name, d.PCIBusID = gpu.UUID(c.uuid), "NVIDIA Test", c.bus
	}
	return ret
}

func (c *scriptCard) Read(o op, s *gpu.Stats) code {
	c.d.mu.Lock()
	c.asked[o]++
	hang, readHang, ret := c.hang, c.readHang, max(c.fault, c.d.gone, c.faults[o])
	nvlink, reading := c.nvlink, c.readings[o]
	c.d.mu.Unlock()
	for _, h := range []chan struct{}{hang, readHang} {
		if h != nil {
			<-h
		}
	}
	if ret != success {
		return ret
	}
	if reading != nil {
		reading(s)
		return success
	}
	switch o {
	case opMemory:
		s.MemoryTotal = new(uint64(1 << 30))
	case opTemperature:
		s.Temperature = new(55.0)
	case opNVLinkTransmit:
		s.NVLinkTransmit = &nvlink
	case opNVLinkReceive:
		s.NVLinkReceive = &nvlink
	}
	return success
}

// play runs a Monitor on a script in a bubble of fake time. Ticks are 10 s apart, from 0.
func play(t *testing.T, d func() *script, test func(t *testing.T, m *Monitor, d *script)) {
	t.Helper()
	playWith(t, Config{}, host{}, d, test)
}

func playWith(t *testing.T, cfg Config, h host, d func() *script, test func(t *testing.T, m *Monitor, d *script)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m, err := New(cfg)
		require.NoError(t, err)
		s := d()
		m.driver, m.host = s, h
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		defer func() {
			stop()
			require.NoError(t, <-done, "Run ends without error when it is told to")
		}()
		synctest.Wait()
		test(t, m, s)
	})
}

// pass lets fake time pass and everything that follows from it happen.
func pass(d time.Duration) {
	time.Sleep(d) // of a synctest bubble
	synctest.Wait()
}

func eight() *script { return newScript(8) }

func TestInventoryDoesNotWaitForReadings(t *testing.T) {
	play(t, func() *script {
		d := newScript(8)
		for _, c := range d.cards {
			c.readHang = make(chan struct{})
		}
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		s := m.Get()
		require.True(t, s.Driver.Loaded)
		require.Equal(t, "550.163.01", s.Driver.Version)
		require.Len(t, s.Devices, 8)
		require.Equal(t, 8, s.HealthyCount())
		for i, dev := range s.Devices {
			require.Equal(t, i, dev.Index)
			require.Nil(t, dev.Stats)
		}
		for _, c := range d.cards {
			close(c.readHang)
		}
		synctest.Wait()
		require.NotNil(t, m.Get().Devices[7].Stats)
	})
}

func TestOneHungGPULeavesTheOthersLiveAtEveryTick(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		require.Equal(t, 8, m.Get().HealthyCount())
		hang := make(chan struct{})
		d.do(func() { d.cards[3].hang = hang })
		var since time.Time
		for tick := range 5 {
			pass(10 * time.Second)
			pass(DefaultDeadline)
			s := m.Get()
			for i, dev := range s.Devices {
				if i == 3 {
					continue
				}
				require.True(t, dev.Health.OK(), "GPU %d at tick %d", i, tick)
				require.NotNil(t, dev.Stats, "GPU %d at tick %d", i, tick)
				require.Less(t, time.Since(dev.LastSample), 10*time.Second, "GPU %d at tick %d", i, tick)
			}
			sick := s.Devices[3]
			require.Equal(t, gpu.Hung, sick.Health.Reason, "tick %d", tick)
			require.Nil(t, sick.Stats)
			require.Equal(t, gpu.UUID("GPU-3"), sick.UUID)
			require.Equal(t, []gpu.ReadError{{Op: "sample", Return: "DEADLINE_EXCEEDED", Count: 1}}, sick.ReadErrors, "it is asked no more")
			if tick == 0 {
				since = sick.Health.Since
			}
			require.Equal(t, since, sick.Health.Since)
			pass(5 * time.Second) // rounds differ from ticks
		}
		d.do(func() { d.cards[3].hang = nil })
		close(hang)
		synctest.Wait()
		require.NotNil(t, m.Get().Devices[3].Stats, "it was asked anew as soon as it came back")
		require.False(t, m.Get().Devices[3].Health.OK(), "one good sample is no recovery")
		pass(30 * time.Second)
		require.True(t, m.Get().Devices[3].Health.OK())
	})
}

func TestALostGPUIsUnhealthyAndComesBack(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fault  code
		needs  gpu.Remedy
		reason gpu.Reason
	}{
		{"lost", errGPULost, gpu.RebootNode, gpu.Lost},
		{"reset required", errResetRequired, gpu.ResetGPU, gpu.Lost},
		{"unknown error", errUnknown, gpu.NoRemedy, gpu.Unreadable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, eight, func(t *testing.T, m *Monitor, d *script) {
				before := m.Get().Devices
				d.do(func() { d.cards[2].fault, d.cards[2].handle = tc.fault, tc.fault })
				pass(10 * time.Second)
				s := m.Get()
				require.Equal(t, tc.reason, s.Devices[2].Health.Reason)
				require.Equal(t, tc.needs, s.Devices[2].Health.Needs)
				require.Contains(t, s.Devices[2].Health.Text, tc.fault.String())
				require.Nil(t, s.Devices[2].Stats)
				require.Equal(t, before[2].UUID, s.Devices[2].UUID)
				require.Equal(t, 7, s.HealthyCount())
				require.NotEmpty(t, s.Devices[2].ReadErrors)

				d.do(func() { d.cards[2].fault, d.cards[2].handle = success, success })
				pass(20 * time.Second)
				require.Equal(t, 7, m.Get().HealthyCount(), "two good samples are no recovery")
				require.NotNil(t, m.Get().Devices[2].Stats)
				pass(10 * time.Second)
				require.Equal(t, 8, m.Get().HealthyCount())
			})
		})
	}
}

func TestAGPULostWhileItIsReadIsLost(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.do(func() { d.cards[2].faults[opTemperature] = errGPULost })
		pass(10 * time.Second)
		require.Equal(t, gpu.Lost, m.Get().Devices[2].Health.Reason)
		require.Equal(t, "temperature: ERROR_GPU_IS_LOST: the GPU has fallen off the bus", m.Get().Devices[2].Health.Text)
		require.Nil(t, m.Get().Devices[2].Stats, "half a sample is none")
	})
}

func TestADriverThatAppearsIsUsed(t *testing.T) {
	play(t, func() *script {
		d := newScript(2)
		d.openErr = errors.New("no library")
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		s := m.Get()
		require.False(t, s.Driver.Loaded)
		require.Equal(t, "no library", s.Driver.Error)
		require.Empty(t, s.Devices)
		start := time.Now()
		pass(70 * time.Second)
		var at []time.Duration
		d.do(func() {
			for _, o := range d.opens {
				at = append(at, o.Sub(start))
			}
			d.openErr = nil
		})
		require.Equal(t, []time.Duration{0, 1e9, 3e9, 7e9, 15e9, 31e9, 61e9}, at, "the pause doubles up to 30 s")
		pass(retryMax)
		require.True(t, m.Get().Driver.Loaded)
		require.Empty(t, m.Get().Driver.Error)
		require.Equal(t, 2, m.Get().HealthyCount())
	})
}

func TestAStuckInitialisationIsSaidAndWaitedFor(t *testing.T) {
	play(t, func() *script {
		d := newScript(1)
		d.opening = make(chan struct{})
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		pass(time.Minute)
		require.Contains(t, m.Get().Driver.Error, "more than 5s")
		d.do(func() { require.Len(t, d.opens, 1, "no second attempt behind the first") })
		close(d.opening)
		synctest.Wait()
		require.Equal(t, 1, m.Get().HealthyCount())
	})
}

func TestALostDriverKeepsTheInventoryAndIsOpenedAgain(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.cards[1].events <- event{Code: 79}
		synctest.Wait()
		require.Equal(t, gpu.XID, m.Get().Devices[1].Health.Reason)
		d.do(func() { d.gone, d.openErr = errDriverNotLoaded, errors.New("driver unloaded") })
		pass(10*time.Second + 3*listenFor)
		s := m.Get()
		require.False(t, s.Driver.Loaded)
		require.Len(t, s.Devices, 8)
		require.Zero(t, s.HealthyCount())
		require.Contains(t, s.Devices[0].Health.Text, "driver unloaded")
		require.Nil(t, s.Devices[0].Stats)
		require.Equal(t, 1, d.closes)

		d.do(func() {
			d.gone, d.openErr, d.version = success, nil, "560.1"
			d.cards[5].handle = errGPULost // it is gone when the driver is back
		})
		pass(retryMax)
		s = m.Get()
		require.Equal(t, "560.1", s.Driver.Version)
		require.Equal(t, 7, s.HealthyCount(), "another version of the driver ends the verdict of XID 79")
		require.Equal(t, gpu.UUID("GPU-5"), s.Devices[5].UUID, "it is known by its index")
		require.Equal(t, "identify: ERROR_GPU_IS_LOST: the GPU has fallen off the bus", s.Devices[5].Health.Text)
		require.Empty(t, s.Unidentified)
		require.Equal(t, uint64(1), s.Devices[1].XIDs[0].Count, "counts do not go back")
	})
}

func TestAGPUThatIsNoLongerListedStaysKnown(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.do(func() { d.cards = append(d.cards[:2:2], d.cards[3:]...) })
		pass(15 * time.Second)
		s := m.Get()
		require.Len(t, s.Devices, 8)
		require.Equal(t, 7, s.HealthyCount())
		require.Equal(t, "the driver no longer lists it", s.Device("GPU-2").Health.Text)
		require.Equal(t, 2, s.Device("GPU-3").Index, "the others moved up")
	})
}

func TestAGPUThatNeverSaidWhoItIsIsCounted(t *testing.T) {
	play(t, func() *script {
		d := newScript(8)
		d.cards[0].handle = errUnknown
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		require.Len(t, m.Get().Devices, 7)
		require.Equal(t, []gpu.Unidentified{{Index: 0, Why: "ERROR_UNKNOWN"}}, m.Get().Unidentified)
		hang := make(chan struct{})
		d.do(func() { d.cards[0].hang = hang })
		pass(10*time.Second + DefaultDeadline)
		require.Equal(t, []gpu.Unidentified{{Index: 0, Why: "no answer in time"}}, m.Get().Unidentified)
		close(hang)
		d.do(func() { d.cards[0].hang = nil })
		d.do(func() { d.cards[0].handle = success })
		pass(10 * time.Second)
		require.Len(t, m.Get().Devices, 8)
		require.Empty(t, m.Get().Unidentified)
	})
}

func TestAnXIDStormIsCountedAndFewSnapshots(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		for range 1000 {
			d.cards[4].events <- event{Code: 13}
		}
		snapshots, stop := 0, time.After(time.Second)
		for range 1000 {
			_, changed := m.Watch()
			select {
			case <-changed:
				snapshots++
				continue
			case <-stop:
			}
			break
		}
		require.LessOrEqual(t, snapshots, 11)
		dev := m.Get().Devices[4]
		require.True(t, dev.Health.OK(), "XID 13 is an application's fault")
		require.Len(t, dev.XIDs, 1)
		require.Equal(t, uint64(1000), dev.XIDs[0].Count)
	})
}

func TestXIDsAreJudgedByTheCatalog(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.cards[4].events <- event{Code: 119}
		synctest.Wait()
		h := m.Get().Devices[4].Health
		require.Equal(t, gpu.Health{Reason: gpu.XID, Text: "XID 119 (GSP_RPC_TIMEOUT)", Needs: gpu.ResetGPU, Since: h.Since}, h)
		require.NotNil(t, m.Get().Devices[4].Stats, "it is still read")
		d.cards[4].events <- event{Code: 79}
		d.cards[4].events <- event{Code: 119}
		pass(time.Minute)
		after := m.Get().Devices[4].Health
		require.Equal(t, gpu.RebootNode, after.Needs, "the worst counts")
		require.Equal(t, h.Since, after.Since)
		require.Equal(t, 7, m.Get().HealthyCount())
	})
}

func TestUnsupportedReadingsAreAskedOnceAndFailedOnesCounted(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		d.do(func() {
			d.cards[0].faults[opFanSpeed] = errNotSupported
			d.cards[0].faults[opTemperature] = errUnknown
			clear(d.cards[0].asked)
		})
		pass(30 * time.Second)
		d.do(func() {
			require.Equal(t, 1, d.cards[0].asked[opFanSpeed])
			require.Equal(t, 3, d.cards[0].asked[opTemperature])
		})
		dev := m.Get().Devices[0]
		require.Nil(t, dev.Stats.Temperature)
		require.NotNil(t, dev.Stats.MemoryTotal)
		require.True(t, dev.Health.OK())
		require.Equal(t, []gpu.ReadError{{Op: "temperature", Return: "ERROR_UNKNOWN", Count: 3}}, dev.ReadErrors)
	})
}

func TestNVLinkRateIsBetweenTwoSamples(t *testing.T) {
	play(t, eight, func(t *testing.T, m *Monitor, d *script) {
		require.Nil(t, m.Get().Devices[0].Stats.NVLinkBytesPerSecond)
		d.do(func() { d.cards[0].nvlink = 5000 })
		pass(10 * time.Second)
		require.InDelta(t, 1000, *m.Get().Devices[0].Stats.NVLinkBytesPerSecond, 1)
		d.do(func() { d.cards[0].nvlink = 0 })
		pass(10 * time.Second)
		require.Nil(t, m.Get().Devices[0].Stats.NVLinkBytesPerSecond, "a counter that went back gives no rate")
	})
}

func TestAReplacedLibraryEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(Config{})
		require.NoError(t, err)
		m.driver = &script{openErr: ErrLibraryReplaced}
		require.ErrorIs(t, m.Run(t.Context()), ErrLibraryReplaced)
	})
}

func TestStopLeavesAStuckCallBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		m, err := New(Config{})
		require.NoError(t, err)
		d := newScript(2)
		d.cards[1].hang = hang
		m.driver, m.host = d, host{}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		pass(time.Minute)
		require.Len(t, m.Get().Devices, 1)
		stop()
		began := time.Now()
		require.NoError(t, <-done)
		require.LessOrEqual(t, time.Since(began), parting)
		require.Zero(t, d.closes, "the library is not shut down under a call")
		close(hang)
	})
}

func TestNoPartOfTheInventoryIsShown(t *testing.T) {
	play(t, func() *script {
		d := newScript(8)
		d.cards[6].hang = make(chan struct{})
		return d
	}, func(t *testing.T, m *Monitor, d *script) {
		pass(DefaultDeadline - 1)
		require.Empty(t, m.Get().Devices, "seven of eight, as long as the eighth may answer")
		pass(1)
		require.Len(t, m.Get().Devices, 7)
		require.Len(t, m.Get().Unidentified, 1)
		d.do(func() { close(d.cards[6].hang); d.cards[6].hang = nil })
		synctest.Wait()
		require.Equal(t, 8, m.Get().HealthyCount())
		require.Empty(t, m.Get().Unidentified)
	})
}
