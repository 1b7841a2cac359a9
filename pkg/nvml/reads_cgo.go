//go:build cgo

package nvml

import (
	"slices"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// cRead is how NVML answers one op.
type cRead struct {
	symbols []string // versions of the function, of which one must be there
	read    func(*cCard, *gpu.Stats) gonvml.Return
}

// tooHot is above every real temperature; DCGM drops such readings too.
const tooHot = 200

// cReads is a table, never written to. NVML gives percents, milliwatts, millijoules, MHz, nanoseconds and KiB.
var cReads = map[op]cRead{
	opMemory: {sym("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo"), readMemory},
	opBAR1: {sym("nvmlDeviceGetBAR1MemoryInfo"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		m, ret := c.handle.GetBAR1MemoryInfo()
		if ret == gonvml.SUCCESS {
			s.BAR1Total, s.BAR1Used = &m.Bar1Total, &m.Bar1Used
		}
		return ret
	}},
	opUtilization: {sym("nvmlDeviceGetUtilizationRates"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		u, ret := c.handle.GetUtilizationRates()
		if ret == gonvml.SUCCESS {
			s.Utilization = new(float64(u.Gpu) / 100)
			s.MemoryControllerUtilization = new(float64(u.Memory) / 100)
		}
		return ret
	}},
	opEncoder: {sym("nvmlDeviceGetEncoderUtilization"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		u, _, ret := c.handle.GetEncoderUtilization()
		return scaled(&s.EncoderUtilization, u, 0.01, ret)
	}},
	opDecoder: {sym("nvmlDeviceGetDecoderUtilization"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		u, _, ret := c.handle.GetDecoderUtilization()
		return scaled(&s.DecoderUtilization, u, 0.01, ret)
	}},
	opTemperature: {sym("nvmlDeviceGetTemperature"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		t, ret := c.handle.GetTemperature(gonvml.TEMPERATURE_GPU)
		return celsius(&s.Temperature, uint64(t), ret)
	}},
	opMemoryTemperature: {sym("nvmlDeviceGetFieldValues"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		// Some drivers give this field a wrong type; it is a uint32.
		t, ret := c.field(gonvml.FI_DEV_MEMORY_TEMP, 0, gonvml.VALUE_TYPE_UNSIGNED_INT)
		return celsius(&s.MemoryTemperature, t, ret)
	}},
	opSlowdownTemperature: {sym("nvmlDeviceGetTemperatureThreshold"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		t, ret := c.handle.GetTemperatureThreshold(gonvml.TEMPERATURE_THRESHOLD_SLOWDOWN)
		return celsius(&s.SlowdownTemperature, uint64(t), ret)
	}},
	opShutdownTemperature: {sym("nvmlDeviceGetTemperatureThreshold"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		t, ret := c.handle.GetTemperatureThreshold(gonvml.TEMPERATURE_THRESHOLD_SHUTDOWN)
		return celsius(&s.ShutdownTemperature, uint64(t), ret)
	}},
	opPower: {sym("nvmlDeviceGetPowerUsage"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		p, ret := c.handle.GetPowerUsage()
		return scaled(&s.Power, p, 1e-3, ret)
	}},
	opPowerLimit: {sym("nvmlDeviceGetPowerManagementLimit"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		p, ret := c.handle.GetPowerManagementLimit()
		return scaled(&s.PowerLimit, p, 1e-3, ret)
	}},
	opPowerLimitEnforced: {sym("nvmlDeviceGetEnforcedPowerLimit"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		p, ret := c.handle.GetEnforcedPowerLimit()
		return scaled(&s.PowerLimitEnforced, p, 1e-3, ret)
	}},
	opEnergy: {sym("nvmlDeviceGetTotalEnergyConsumption"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		e, ret := c.handle.GetTotalEnergyConsumption()
		return scaled(&s.Energy, e, 1e-3, ret)
	}},
	opSMClock: {sym("nvmlDeviceGetClockInfo"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		f, ret := c.handle.GetClockInfo(gonvml.CLOCK_SM)
		return scaled(&s.SMClock, f, 1e6, ret)
	}},
	opMemoryClock: {sym("nvmlDeviceGetClockInfo"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		f, ret := c.handle.GetClockInfo(gonvml.CLOCK_MEM)
		return scaled(&s.MemoryClock, f, 1e6, ret)
	}},
	opSMClockMax: {sym("nvmlDeviceGetMaxClockInfo"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		f, ret := c.handle.GetMaxClockInfo(gonvml.CLOCK_SM)
		return scaled(&s.SMClockMax, f, 1e6, ret)
	}},
	opMemoryClockMax: {sym("nvmlDeviceGetMaxClockInfo"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		f, ret := c.handle.GetMaxClockInfo(gonvml.CLOCK_MEM)
		return scaled(&s.MemoryClockMax, f, 1e6, ret)
	}},
	opPerformanceState: {sym("nvmlDeviceGetPerformanceState"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		p, ret := c.handle.GetPerformanceState()
		if ret == gonvml.SUCCESS && p <= gonvml.PSTATE_15 { // 32 is unknown
			s.PerformanceState = new(uint64(p))
		}
		return ret
	}},
	opFanSpeed: {sym("nvmlDeviceGetFanSpeed"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		f, ret := c.handle.GetFanSpeed()
		return scaled(&s.FanSpeed, f, 0.01, ret)
	}},
	opClockReasons: {sym("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		read := c.handle.GetCurrentClocksEventReasons
		if !c.driver.has("nvmlDeviceGetCurrentClocksEventReasons") { // before driver 535
			read = c.handle.GetCurrentClocksThrottleReasons
		}
		r, ret := read()
		return counted(&s.ClockReasons, r, ret)
	}},
	opPCIeReplays: {sym("nvmlDeviceGetPcieReplayCounter"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		n, ret := c.handle.GetPcieReplayCounter()
		return counted(&s.PCIeReplays, uint64(n), ret)
	}},
	opPCIeGeneration: {sym("nvmlDeviceGetCurrPcieLinkGeneration"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		n, ret := c.handle.GetCurrPcieLinkGeneration()
		return counted(&s.PCIeLinkGeneration, uint64(n), ret)
	}},
	opPCIeWidth: {sym("nvmlDeviceGetCurrPcieLinkWidth"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		n, ret := c.handle.GetCurrPcieLinkWidth()
		return counted(&s.PCIeLinkWidth, uint64(n), ret)
	}},
	opNVLinkTransmit: {sym("nvmlDeviceGetFieldValues"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		n, ret := c.field(gonvml.FI_DEV_NVLINK_THROUGHPUT_DATA_TX, allLinks, anyType)
		return counted(&s.NVLinkTransmit, n<<10, ret)
	}},
	opNVLinkReceive: {sym("nvmlDeviceGetFieldValues"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		n, ret := c.field(gonvml.FI_DEV_NVLINK_THROUGHPUT_DATA_RX, allLinks, anyType)
		return counted(&s.NVLinkReceive, n<<10, ret)
	}},
	opECCCorrVolatile: {sym("nvmlDeviceGetTotalEccErrors"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		n, ret := c.handle.GetTotalEccErrors(gonvml.MEMORY_ERROR_TYPE_CORRECTED, gonvml.VOLATILE_ECC)
		return counted(&s.ECCCorrectedVolatile, n, ret)
	}},
	opECCUncorrVolatile: {sym("nvmlDeviceGetTotalEccErrors"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		n, ret := c.handle.GetTotalEccErrors(gonvml.MEMORY_ERROR_TYPE_UNCORRECTED, gonvml.VOLATILE_ECC)
		return counted(&s.ECCUncorrectedVolatile, n, ret)
	}},
	opECCCorrAggregate: {sym("nvmlDeviceGetTotalEccErrors"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		n, ret := c.handle.GetTotalEccErrors(gonvml.MEMORY_ERROR_TYPE_CORRECTED, gonvml.AGGREGATE_ECC)
		return counted(&s.ECCCorrectedAggregate, n, ret)
	}},
	opECCUncorrAggregate: {sym("nvmlDeviceGetTotalEccErrors"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		n, ret := c.handle.GetTotalEccErrors(gonvml.MEMORY_ERROR_TYPE_UNCORRECTED, gonvml.AGGREGATE_ECC)
		return counted(&s.ECCUncorrectedAggregate, n, ret)
	}},
	opRemappedRows: {sym("nvmlDeviceGetRemappedRows"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		corrected, uncorrected, pending, failed, ret := c.handle.GetRemappedRows()
		if ret == gonvml.SUCCESS {
			s.RemappedRowsCorrectable, s.RemappedRowsUncorrectable = new(uint64(corrected)), new(uint64(uncorrected))
			s.RowRemapPending, s.RowRemapFailed = &pending, &failed
		}
		return ret
	}},
	opSRAM: {sym("nvmlDeviceGetSramEccErrorStatus"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		e, ret := c.handle.GetSramEccErrorStatus()
		if ret == gonvml.SUCCESS {
			s.SRAMThresholdExceeded = new(e.BThresholdExceeded != 0)
		}
		if ret == gonvml.ERROR_NO_PERMISSION { // root only: asking again is pointless
			return gonvml.ERROR_NOT_SUPPORTED
		}
		return ret
	}},
	opFabric: {sym("nvmlDeviceGetGpuFabricInfoV"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		f, ret := c.handle.GetGpuFabricInfoV().V2()
		if ret == gonvml.SUCCESS {
			s.FabricState, s.FabricHealth = new(uint64(f.State)), new(uint64(f.HealthMask))
			if f.State == gonvml.GPU_FABRIC_STATE_COMPLETED { // nvml.h: only then it means anything
				s.FabricStatus = new(uint64(f.Status))
			}
		}
		return ret
	}},
	opPersistence: {sym("nvmlDeviceGetPersistenceMode"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		mode, ret := c.handle.GetPersistenceMode()
		if ret == gonvml.SUCCESS {
			s.PersistenceMode = new(mode == gonvml.FEATURE_ENABLED)
		}
		return ret
	}},
	opThrottlePower: {sym("nvmlDeviceGetFieldValues"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		ns, ret := c.field(gonvml.FI_DEV_PERF_POLICY_POWER, 0, anyType)
		return scaled(&s.ThrottlePower, ns, 1e-9, ret)
	}},
	opThrottleThermal: {sym("nvmlDeviceGetFieldValues"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		ns, ret := c.field(gonvml.FI_DEV_PERF_POLICY_THERMAL, 0, anyType)
		return scaled(&s.ThrottleThermal, ns, 1e-9, ret)
	}},
	opLicense: {sym("nvmlDeviceGetGridLicensableFeatures_v4"), readLicense},
	opRecoveryAction: {sym("nvmlDeviceGetFieldValues"), func(c *cCard, s *gpu.Stats) gonvml.Return {
		n, ret := c.field(gonvml.FI_DEV_GET_GPU_RECOVERY_ACTION, 0, anyType)
		return counted(&s.RecoveryAction, n, ret)
	}},
	opGPM: {sym("nvmlGpmSampleGet"), readGPM},
}

// symbolNames are all the functions that this package may call.
var symbolNames = slices.Concat(readSymbols(), migSymbols, attributeSymbols, linkSymbols, remoteSymbols, []string{
	"nvmlInit", "nvmlInit_v2", "nvmlShutdown", "nvmlSystemGetDriverVersion", "nvmlSystemGetNVMLVersion", "nvmlSystemGetCudaDriverVersion",
	"nvmlDeviceGetCount", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByIndex_v2",
	"nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetPciInfo", "nvmlDeviceGetPciInfo_v2", "nvmlDeviceGetPciInfo_v3",
	"nvmlDeviceGetMinorNumber", "nvmlDeviceGetSerial", "nvmlDeviceGetVbiosVersion", "nvmlDeviceGetCudaComputeCapability",
	"nvmlDeviceGetGpuFabricInfoV",
	"nvmlEventSetCreate", "nvmlEventSetFree", "nvmlEventSetWait", "nvmlEventSetWait_v2", "nvmlDeviceRegisterEvents",
	"nvmlDeviceGetSupportedEventTypes",
	"nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleFree", "nvmlGpmMetricsGet", "nvmlGpmMigSampleGet",
})

func readSymbols() []string {
	var names []string
	for _, r := range cReads {
		names = append(names, r.symbols...)
	}
	return names
}

func sym(versions ...string) []string { return versions }

// scaled sets dst to n in another unit.
func scaled[N uint32 | uint64](dst **float64, n N, unit float64, ret gonvml.Return) gonvml.Return {
	if ret == gonvml.SUCCESS {
		*dst = new(float64(n) * unit)
	}
	return ret
}

func counted(dst **uint64, n uint64, ret gonvml.Return) gonvml.Return {
	if ret == gonvml.SUCCESS {
		*dst = &n
	}
	return ret
}

func celsius(dst **float64, t uint64, ret gonvml.Return) gonvml.Return {
	if ret == gonvml.SUCCESS && t <= tooHot {
		*dst = new(float64(t))
	}
	return ret
}

func readMemory(c *cCard, s *gpu.Stats) gonvml.Return {
	if c.driver.has("nvmlDeviceGetMemoryInfo_v2") {
		m, ret := c.handle.GetMemoryInfo_v2()
		if ret == gonvml.SUCCESS {
			s.MemoryTotal, s.MemoryUsed, s.MemoryFree, s.MemoryReserved = &m.Total, &m.Used, &m.Free, &m.Reserved
		}
		if !code(ret).unsupported() || !c.driver.has("nvmlDeviceGetMemoryInfo") {
			return ret
		}
	}
	// Drivers before 510: what is used contains what is reserved, and nothing tells how much that is.
	m, ret := c.handle.GetMemoryInfo()
	if ret == gonvml.SUCCESS {
		s.MemoryTotal, s.MemoryUsed, s.MemoryFree = &m.Total, &m.Used, &m.Free
	}
	return ret
}

func readLicense(c *cCard, s *gpu.Stats) gonvml.Return {
	f, ret := c.handle.GetGridLicensableFeatures()
	if ret != gonvml.SUCCESS {
		return ret
	}
	if f.IsGridLicenseSupported == 0 {
		return gonvml.ERROR_NOT_SUPPORTED
	}
	licensed := false
	for i := range min(int(f.LicensableFeaturesCount), len(f.GridLicensableFeatures)) {
		licensed = licensed || f.GridLicensableFeatures[i].FeatureState != 0
	}
	s.VGPULicensed = &licensed
	return ret
}
