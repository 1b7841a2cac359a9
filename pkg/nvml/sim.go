package nvml

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// simModel is a GPU that can be simulated. Names, memory sizes and compute capabilities are those that NVML
// reports for the real board; limits and clocks are from NVIDIA's data sheets.
type simModel struct {
	short      string // in the configuration
	name       string
	device     uint32 // first half of the serial number
	memoryMiB  uint64
	major      int
	minor      int
	mig        *simMIG // nil: it cannot be split
	links      int     // NVLinks, all to NVSwitches
	perSwitch  int     // GPUs that share a PCIe switch
	fabric     bool    // NVSwitch fabric membership, Hopper and newer
	gpm        bool    // GPM metrics, Hopper and newer
	hbm        bool    // has a memory temperature and row remapping
	tdp        float64
	idle       float64
	smMax      float64 // MHz
	memoryMax  float64 // MHz
	nvlink     float64 // bytes/s of all links, one direction; 0 without NVLink
	generation uint64  // PCIe
}

// simModels is a table, never written to. A real T4 is not MIG capable, whatever mock drivers say.
var simModels = []simModel{
	{short: "A100", name: "NVIDIA A100-SXM4-40GB", device: 0x20b0, memoryMiB: 40960, major: 8, minor: 0,
		mig: &a100MIG, links: 12, perSwitch: 2, hbm: true, tdp: 400, idle: 55, smMax: 1410, memoryMax: 1215, nvlink: 300e9, generation: 4},
	{short: "H100", name: "NVIDIA H100 80GB HBM3", device: 0x2330, memoryMiB: 81920, major: 9, minor: 0,
		mig: &h100MIG, links: 18, perSwitch: 1, fabric: true, gpm: true, hbm: true, tdp: 700, idle: 70, smMax: 1980, memoryMax: 2619, nvlink: 450e9, generation: 5},
	{short: "H200", name: "NVIDIA H200", device: 0x2335, memoryMiB: 143771, major: 9, minor: 0,
		mig: &h200MIG, links: 18, perSwitch: 1, fabric: true, gpm: true, hbm: true, tdp: 700, idle: 75, smMax: 1980, memoryMax: 3201, nvlink: 450e9, generation: 5},
	{short: "B200", name: "NVIDIA B200", device: 0x2901, memoryMiB: 183359, major: 10, minor: 0,
		mig: &b200MIG, links: 18, perSwitch: 1, fabric: true, gpm: true, hbm: true, tdp: 1000, idle: 140, smMax: 1965, memoryMax: 3996, nvlink: 900e9, generation: 5},
	{short: "L40S", name: "NVIDIA L40S", device: 0x26b9, memoryMiB: 46068, major: 8, minor: 9,
		perSwitch: 2, tdp: 350, idle: 35, smMax: 2520, memoryMax: 9001, generation: 4},
	{short: "T4", name: "NVIDIA T4", device: 0x1eb8, memoryMiB: 16384, major: 7, minor: 5,
		perSwitch: 1, tdp: 70, idle: 10, smMax: 1590, memoryMax: 5001, generation: 3},
}

func simModelNamed(short string) simModel {
	for _, m := range simModels {
		if m.short == short {
			return m
		}
	}
	return simModel{}
}

// simDriver makes GPUs up.
type simDriver struct {
	model simModel
	count int
	mig   map[int][]gpu.Instance // of the GPUs with MIG on
}

func (d simDriver) Open() (session, error) { return simSession{d, time.Now()}, nil }

type simSession struct {
	simDriver
	start time.Time
}

func (s simSession) Driver() gpu.Driver {
	return gpu.Driver{Version: "550.163.01", NVMLVersion: "12.550.163.01", CUDAVersion: 12040}
}

func (s simSession) Count() (int, code) { return s.count, success }

func (s simSession) GPU(i int) (card, code) { return simCard{s, i}, success }

func (s simSession) Listen(int) (ear, code) { return nil, errNotSupported }

func (s simSession) Close() {}

type simCard struct {
	simSession
	index int
}

func (c simCard) Close() {}

// Identify gives identities that are the same on every run. PCIClass stays 0, as there is no PCI device
// behind them.
func (c simCard) Identify(d *gpu.Device) code {
	m := c.model
	d.Minor = c.index
	d.UUID = gpu.UUID(fmt.Sprintf("GPU-%08x-5140-4000-8000-%012x", m.device<<16|uint32(c.index), c.index))
	d.Name = m.name
	d.Serial = fmt.Sprintf("%04d%09d", m.device, c.index)
	d.VBIOS = "96.00.99.00.01"
	place := simPlaced(m, c.index, c.count)
	d.PCIBusID = fmt.Sprintf("00000000:%02X:00.0", place.bus)
	d.NUMANode, d.PCIPath = place.numa, place.path(c.index)
	d.Memory = m.memoryMiB << 20
	d.ComputeMajor, d.ComputeMinor = m.major, m.minor
	if m.fabric {
		d.Fabric = &gpu.Fabric{ClusterUUID: "00000000-0000-0000-0000-000000000001"}
	}
	return success
}

func (c simCard) Partition(d *gpu.Device) code {
	instances, split := c.mig[c.index]
	d.MIGCapable, d.MIGEnabled = c.model.mig != nil, split
	d.Instances = slices.Clone(instances)
	return success
}

// load is the made-up load of one GPU at one moment. It is a sum of two sines of time, so that it is smooth,
// the same on every run, and its integral is known: counters follow from it and never decrease.
type load struct {
	busy     float64 // 0.12 to 0.98
	integral float64 // of busy since the start, seconds
	memory   float64 // used share, 0.35 to 0.85
}

func (c simCard) load(at time.Time) load {
	return loadAt(at.Sub(c.start).Seconds(), 2*math.Pi*float64(c.index)/maxSimulated)
}

func loadAt(t, phase float64) load {
	const (
		mean, slow, fast = 0.55, 0.30, 0.13
		ws, wf           = 2 * math.Pi / 600, 2 * math.Pi / 47
	)
	return load{
		busy: mean + slow*math.Sin(ws*t+phase) + fast*math.Sin(wf*t+3*phase),
		integral: mean*t + slow/ws*(math.Cos(phase)-math.Cos(ws*t+phase)) +
			fast/wf*(math.Cos(3*phase)-math.Cos(wf*t+3*phase)),
		memory: 0.6 + 0.25*math.Sin(2*math.Pi/1800*t+phase),
	}
}

func (c simCard) Read(o op, s *gpu.Stats) code {
	m, at := c.model, time.Now()
	l, seconds := c.load(at), at.Sub(c.start).Seconds()
	total := m.memoryMiB << 20
	reserved := total / 150
	sm := m.smMax * (0.7 + 0.3*l.busy)
	instances, split := c.mig[c.index]
	switch o {
	case opMemory:
		used := uint64(l.memory*float64(total-reserved)) >> 20 << 20
		if split {
			used = 0
			for _, in := range instances {
				used += c.usedBy(in, at)
			}
		}
		s.MemoryTotal, s.MemoryUsed = new(total), new(used)
		s.MemoryReserved, s.MemoryFree = new(reserved), new(total-reserved-used)
	case opBAR1:
		s.BAR1Total, s.BAR1Used = new(total), new(uint64(2<<20))
	case opUtilization:
		if split {
			return errNotSupported
		}
		s.Utilization = new(percent(l.busy))
		s.MemoryControllerUtilization = new(percent(0.6 * l.busy))
	case opEncoder:
		if split {
			return errNotSupported
		}
		s.EncoderUtilization = new(0.0)
	case opDecoder:
		if split {
			return errNotSupported
		}
		s.DecoderUtilization = new(0.0)
	case opTemperature:
		s.Temperature = new(math.Round(30 + 45*l.busy))
	case opMemoryTemperature:
		if !m.hbm {
			return errNotSupported
		}
		s.MemoryTemperature = new(math.Round(36 + 48*l.busy))
	case opSlowdownTemperature:
		s.SlowdownTemperature = new(87.0)
	case opShutdownTemperature:
		s.ShutdownTemperature = new(92.0)
	case opPower:
		s.Power = new(math.Round(1000*(m.idle+0.95*(m.tdp-m.idle)*l.busy)) / 1000)
	case opPowerLimit:
		s.PowerLimit = new(m.tdp)
	case opPowerLimitEnforced:
		s.PowerLimitEnforced = new(m.tdp)
	case opEnergy:
		s.Energy = new(m.idle*seconds + 0.95*(m.tdp-m.idle)*l.integral)
	case opSMClock:
		s.SMClock = new(math.Round(sm/15) * 15e6)
	case opMemoryClock:
		s.MemoryClock = new(m.memoryMax * 1e6)
	case opSMClockMax:
		s.SMClockMax = new(m.smMax * 1e6)
	case opMemoryClockMax:
		s.MemoryClockMax = new(m.memoryMax * 1e6)
	case opPerformanceState:
		s.PerformanceState = new(uint64(0))
	case opClockReasons:
		s.ClockReasons = new(uint64(0))
	case opPCIeReplays:
		s.PCIeReplays = new(uint64(0))
	case opPCIeGeneration:
		s.PCIeLinkGeneration = new(m.generation)
	case opPCIeWidth:
		s.PCIeLinkWidth = new(uint64(16))
	case opNVLinkTransmit:
		if m.nvlink == 0 {
			return errNotSupported
		}
		s.NVLinkTransmit = new(uint64(0.4*m.nvlink*l.integral) >> 10 << 10)
	case opNVLinkReceive:
		if m.nvlink == 0 {
			return errNotSupported
		}
		s.NVLinkReceive = new(uint64(0.4*m.nvlink*l.integral) >> 10 << 10)
	case opECCCorrVolatile:
		s.ECCCorrectedVolatile = new(uint64(0))
	case opECCUncorrVolatile:
		s.ECCUncorrectedVolatile = new(uint64(0))
	case opECCCorrAggregate:
		s.ECCCorrectedAggregate = new(uint64(0))
	case opECCUncorrAggregate:
		s.ECCUncorrectedAggregate = new(uint64(0))
	case opRemappedRows:
		if !m.hbm {
			return errNotSupported
		}
		s.RemappedRowsCorrectable, s.RemappedRowsUncorrectable = new(uint64(0)), new(uint64(0))
		s.RowRemapPending, s.RowRemapFailed = new(false), new(false)
	case opSRAM:
		if !m.hbm {
			return errNotSupported
		}
		s.SRAMThresholdExceeded = new(false)
	case opFabric:
		if !m.fabric {
			return errNotSupported
		}
		s.FabricState, s.FabricStatus, s.FabricHealth = new(uint64(fabricCompleted)), new(uint64(0)), new(uint64(0))
	case opPersistence:
		s.PersistenceMode = new(true)
	case opThrottlePower:
		s.ThrottlePower = new(0.01 * l.integral)
	case opThrottleThermal:
		s.ThrottleThermal = new(0.0)
	case opGPM:
		if !m.gpm {
			return errNotSupported
		}
		activity(l.busy, s)
		s.PCIeTransmitPerSec, s.PCIeReceivePerSec = new(uint64(3e9*l.busy)), new(uint64(9e9*l.busy))
	default: // a fan, a vGPU licence, a recovery action: none of these boards or this driver has them
		return errNotSupported
	}
	return success
}

// ReadInstance moves each instance by itself.
func (c simCard) ReadInstance(in gpu.Instance, o op, s *gpu.Stats) code {
	at := time.Now()
	l := c.loadOf(in, at)
	switch o {
	case opMemory:
		reserved := in.Memory / 150
		used := c.usedBy(in, at)
		s.MemoryTotal, s.MemoryUsed = new(in.Memory), new(used)
		s.MemoryReserved, s.MemoryFree = new(reserved), new(in.Memory-reserved-used)
	case opBAR1:
		s.BAR1Total, s.BAR1Used = new(in.Memory), new(uint64(2<<20))
	case opGPM:
		if !c.model.gpm {
			return errNotSupported
		}
		activity(l.busy, s)
	default:
		return errNotSupported
	}
	return success
}

func (c simCard) loadOf(in gpu.Instance, at time.Time) load {
	return loadAt(at.Sub(c.start).Seconds(), 2*math.Pi*(float64(c.index)/maxSimulated+float64(in.GI)/15))
}

func (c simCard) usedBy(in gpu.Instance, at time.Time) uint64 {
	return uint64(c.loadOf(in, at).memory*float64(in.Memory-in.Memory/150)) >> 20 << 20
}

// activity is what GPM tells of a whole GPU and of a GPU instance.
func activity(busy float64, s *gpu.Stats) {
	s.GraphicsEngineActive = new(busy)
	s.SMActive = new(0.92 * busy)
	s.SMOccupancy = new(0.45 * busy)
	s.TensorActive = new(0.55 * busy)
	s.DRAMActive = new(0.60 * busy)
}

// percent rounds a ratio to whole percents, as NVML gives it.
func percent(ratio float64) float64 { return math.Round(100*ratio) / 100 }
