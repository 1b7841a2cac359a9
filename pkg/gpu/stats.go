package gpu

// Stats are one GPU's readings in SI base units. A nil field means that this GPU or driver does not
// report the quantity, or that this one call failed: no series, never 0.
type Stats struct {
	// Bytes, from nvmlDeviceGetMemoryInfo_v2: Used excludes Reserved.
	MemoryTotal    *uint64 `json:"memoryTotal,omitempty"`
	MemoryUsed     *uint64 `json:"memoryUsed,omitempty"`
	MemoryFree     *uint64 `json:"memoryFree,omitempty"`
	MemoryReserved *uint64 `json:"memoryReserved,omitempty"`
	BAR1Total      *uint64 `json:"bar1Total,omitempty"`
	BAR1Used       *uint64 `json:"bar1Used,omitempty"`

	// Ratios 0..1. NVML does not report them while MIG is on.
	Utilization                 *float64 `json:"utilization,omitempty"`
	MemoryControllerUtilization *float64 `json:"memoryControllerUtilization,omitempty"`
	EncoderUtilization          *float64 `json:"encoderUtilization,omitempty"`
	DecoderUtilization          *float64 `json:"decoderUtilization,omitempty"`

	// Degrees Celsius.
	Temperature         *float64 `json:"temperature,omitempty"`
	MemoryTemperature   *float64 `json:"memoryTemperature,omitempty"` // HBM boards only
	SlowdownTemperature *float64 `json:"slowdownTemperature,omitempty"`
	ShutdownTemperature *float64 `json:"shutdownTemperature,omitempty"`

	Power              *float64 `json:"power,omitempty"`              // watts, 1 s average
	PowerLimit         *float64 `json:"powerLimit,omitempty"`         // watts, requested
	PowerLimitEnforced *float64 `json:"powerLimitEnforced,omitempty"` // watts
	Energy             *float64 `json:"energy,omitempty"`             // joules since driver load; a counter

	// Hertz.
	SMClock        *float64 `json:"smClock,omitempty"`
	MemoryClock    *float64 `json:"memoryClock,omitempty"`
	SMClockMax     *float64 `json:"smClockMax,omitempty"`
	MemoryClockMax *float64 `json:"memoryClockMax,omitempty"`

	PerformanceState *uint64  `json:"performanceState,omitempty"` // 0 fastest … 15
	FanSpeed         *float64 `json:"fanSpeed,omitempty"`         // ratio 0..1; absent on passive boards
	ClockReasons     *uint64  `json:"clockReasons,omitempty"`     // bitmask of nvmlClocksEventReasons

	PCIeReplays          *uint64  `json:"pcieReplays,omitempty"` // counter
	PCIeLinkGeneration   *uint64  `json:"pcieLinkGeneration,omitempty"`
	PCIeLinkWidth        *uint64  `json:"pcieLinkWidth,omitempty"`
	PCIeTransmitPerSec   *uint64  `json:"pcieTransmitPerSec,omitempty"`   // bytes/s with protocol overhead
	PCIeReceivePerSec    *uint64  `json:"pcieReceivePerSec,omitempty"`    // bytes/s with protocol overhead
	NVLinkTransmit       *uint64  `json:"nvlinkTransmit,omitempty"`       // bytes since driver load; a counter, all links
	NVLinkReceive        *uint64  `json:"nvlinkReceive,omitempty"`        // bytes since driver load; a counter, all links
	NVLinkBytesPerSecond *float64 `json:"nvlinkBytesPerSecond,omitempty"` // both directions, between the last two samples

	// Counters since driver load (volatile) and over the board's life (aggregate).
	ECCCorrectedVolatile    *uint64 `json:"eccCorrectedVolatile,omitempty"`
	ECCUncorrectedVolatile  *uint64 `json:"eccUncorrectedVolatile,omitempty"`
	ECCCorrectedAggregate   *uint64 `json:"eccCorrectedAggregate,omitempty"`
	ECCUncorrectedAggregate *uint64 `json:"eccUncorrectedAggregate,omitempty"`

	RemappedRowsCorrectable   *uint64 `json:"remappedRowsCorrectable,omitempty"` // Ampere and newer
	RemappedRowsUncorrectable *uint64 `json:"remappedRowsUncorrectable,omitempty"`
	RowRemapPending           *bool   `json:"rowRemapPending,omitempty"`
	RowRemapFailed            *bool   `json:"rowRemapFailed,omitempty"`
	// SRAMThresholdExceeded says that the board has had more uncorrectable SRAM errors than NVIDIA's field
	// diagnostics allow; Ampere and newer.
	SRAMThresholdExceeded *bool `json:"sramThresholdExceeded,omitempty"`

	// The GPU's membership in an NVLink fabric, from nvmlDeviceGetGpuFabricInfoV; nil where there is none.
	FabricState  *uint64 `json:"fabricState,omitempty"`  // NVML_GPU_FABRIC_STATE_*: 1 not started, 2 in progress, 3 completed
	FabricStatus *uint64 `json:"fabricStatus,omitempty"` // nvmlReturn_t of the registration, once completed
	FabricHealth *uint64 `json:"fabricHealth,omitempty"` // NVML_GPU_FABRIC_HEALTH_MASK_*

	// Seconds that clocks were held down since driver load, fields 74 and 75; counters.
	ThrottlePower   *float64 `json:"throttlePower,omitempty"`
	ThrottleThermal *float64 `json:"throttleThermal,omitempty"`

	PersistenceMode *bool   `json:"persistenceMode,omitempty"` // the driver keeps the GPU initialised without users
	VGPULicensed    *bool   `json:"vgpuLicensed,omitempty"`    // vGPU guests only
	RecoveryAction  *uint64 `json:"recoveryAction,omitempty"`  // field 230: 0 none, 1 GPU reset, 2 node reboot, …

	// GPM ratios 0..1, Hopper and newer only: NVML has no equivalent below.
	GraphicsEngineActive *float64 `json:"graphicsEngineActive,omitempty"`
	SMActive             *float64 `json:"smActive,omitempty"`
	SMOccupancy          *float64 `json:"smOccupancy,omitempty"`
	TensorActive         *float64 `json:"tensorActive,omitempty"`
	DRAMActive           *float64 `json:"dramActive,omitempty"`
}
