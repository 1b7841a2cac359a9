package nvml

import (
	"errors"
	"fmt"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// ErrLibraryReplaced ends Run: the driver was upgraded, and this process holds the old library for good.
var ErrLibraryReplaced = errors.New("the driver was upgraded, and this process holds the library of the version before: restart the agent to load the new one")

// driver is the seam to libnvidia-ml. Every method of it, and of what it returns, may block for ever:
// they are called by goroutines that own nothing.
type driver interface {
	// Open loads the library and initialises it. It may be called again after it failed or after Close.
	Open() (session, error)
}

// session is an initialised driver. Its methods are safe for concurrent use.
type session interface {
	Driver() gpu.Driver
	// Count is the number of GPUs, indexed from 0. A GPU that is lost may still count.
	Count() (int, code)
	// GPU opens the GPU at an index.
	GPU(index int) (card, code)
	// Listen registers the GPU at an index for events. It hears of no event of before.
	Listen(index int) (ear, code)
	// Close ends the session; no other call may be under way.
	Close()
}

// ear hears the events of one GPU, and is used by one goroutine at a time. It is a set of its own for each GPU: a
// wait fails as a whole when one GPU of the set is lost.
type ear interface {
	// Wait returns the next event, or errTimeout when there was none in time.
	Wait(timeout time.Duration) (event, code)
	Close()
}

// card is one GPU, used by one goroutine at a time.
type card interface {
	// Identify writes into d what it can read and leaves the rest of d as it was. It succeeds when d has
	// what the GPU needs to be offered: UUID, name and bus id.
	Identify(d *gpu.Device) code
	// Partition writes the MIG mode and all MIG instances into d, or nothing: half a list is none. It makes a
	// new slice each time. The minors of the capability nodes are not NVML's to say.
	Partition(d *gpu.Device) code
	// Links writes the active NVLinks into d, as a new slice, or nothing.
	Links(d *gpu.Device) code
	// Read writes the fields of one op into s.
	Read(o op, s *gpu.Stats) code
	// ReadInstance writes the fields of one op into s, of the GPU instance of one that Partition listed last.
	ReadInstance(in gpu.Instance, o op, s *gpu.Stats) code
	Close()
}

// event is what the driver says of a GPU by itself.
type event struct {
	Kind eventKind
	Code uint64 // of an XID
}

type eventKind uint8

const (
	eventXID eventKind = iota
	eventUnavailable
	eventRecoveryAction // the GPU's recovery action changed
	eventMIGChange      // instances were made or destroyed
)

// op is one reading of a GPU: the unit of "not supported" and of gpu.ReadError.
type op string

const (
	opMemory              op = "memory"
	opBAR1                op = "bar1"
	opUtilization         op = "utilization"
	opEncoder             op = "encoder"
	opDecoder             op = "decoder"
	opTemperature         op = "temperature"
	opMemoryTemperature   op = "memory_temperature"
	opSlowdownTemperature op = "slowdown_temperature"
	opShutdownTemperature op = "shutdown_temperature"
	opPower               op = "power"
	opPowerLimit          op = "power_limit"
	opPowerLimitEnforced  op = "power_limit_enforced"
	opEnergy              op = "energy"
	opSMClock             op = "sm_clock"
	opMemoryClock         op = "memory_clock"
	opSMClockMax          op = "sm_clock_max"
	opMemoryClockMax      op = "memory_clock_max"
	opPerformanceState    op = "performance_state"
	opFanSpeed            op = "fan_speed"
	opClockReasons        op = "clock_reasons"
	opPCIeReplays         op = "pcie_replays"
	opPCIeGeneration      op = "pcie_generation"
	opPCIeWidth           op = "pcie_width"
	opNVLinkTransmit      op = "nvlink_transmit"
	opNVLinkReceive       op = "nvlink_receive"
	opECCCorrVolatile     op = "ecc_corrected_volatile"
	opECCUncorrVolatile   op = "ecc_uncorrected_volatile"
	opECCCorrAggregate    op = "ecc_corrected_aggregate"
	opECCUncorrAggregate  op = "ecc_uncorrected_aggregate"
	opRemappedRows        op = "remapped_rows"
	opSRAM                op = "sram"
	opFabric              op = "fabric"
	opPersistence         op = "persistence_mode"
	opThrottlePower       op = "throttle_power"
	opThrottleThermal     op = "throttle_thermal"
	opLicense             op = "license"
	opRecoveryAction      op = "recovery_action"
	opGPM                 op = "gpm"
	opSample              op = "sample"   // the whole of a sample: only in ReadErrors, when it missed its deadline
	opIdentify            op = "identify" // only in ReadErrors
	opMIG                 op = "mig"      // mode and instances: only in ReadErrors
	opLinks               op = "nvlinks"  // where they lead: only in ReadErrors
)

// instanceOps are the readings that NVML gives for a MIG instance; GPM on Hopper and newer.
var instanceOps = []op{opMemory, opBAR1, opGPM}

// ofInstance names a reading of a MIG instance in ReadErrors.
func ofInstance(o op) op { return "mig_" + o }

// ops are the readings of one sample, in order. Memory is first: every GPU and driver has it.
var ops = []op{
	opMemory, opBAR1, opUtilization, opEncoder, opDecoder,
	opTemperature, opMemoryTemperature, opSlowdownTemperature, opShutdownTemperature,
	opPower, opPowerLimit, opPowerLimitEnforced, opEnergy,
	opSMClock, opMemoryClock, opSMClockMax, opMemoryClockMax,
	opPerformanceState, opFanSpeed, opClockReasons,
	opPCIeReplays, opPCIeGeneration, opPCIeWidth, opNVLinkTransmit, opNVLinkReceive,
	opECCCorrVolatile, opECCUncorrVolatile, opECCCorrAggregate, opECCUncorrAggregate,
	opRemappedRows, opSRAM, opFabric, opPersistence,
	opThrottlePower, opThrottleThermal, opLicense, opRecoveryAction, opGPM,
}

// code is an nvmlReturn_t (nvml.h). go-nvml's own Return.Error enters C, so it is never used.
type code uint32

const (
	success               code = 0
	errUninitialized      code = 1
	errNotSupported       code = 3
	errNotFound           code = 6
	errDriverNotLoaded    code = 9
	errTimeout            code = 10
	errLibraryNotFound    code = 12
	errFunctionNotFound   code = 13
	errGPULost            code = 15
	errResetRequired      code = 16
	errLibVersionMismatch code = 18
	errUnknown            code = 999
)

// codeNames are the names of nvml.h without their NVML_ prefix.
var codeNames = map[code]string{
	0: "SUCCESS", 1: "ERROR_UNINITIALIZED", 2: "ERROR_INVALID_ARGUMENT", 3: "ERROR_NOT_SUPPORTED",
	4: "ERROR_NO_PERMISSION", 5: "ERROR_ALREADY_INITIALIZED", 6: "ERROR_NOT_FOUND", 7: "ERROR_INSUFFICIENT_SIZE",
	8: "ERROR_INSUFFICIENT_POWER", 9: "ERROR_DRIVER_NOT_LOADED", 10: "ERROR_TIMEOUT", 11: "ERROR_IRQ_ISSUE",
	12: "ERROR_LIBRARY_NOT_FOUND", 13: "ERROR_FUNCTION_NOT_FOUND", 14: "ERROR_CORRUPTED_INFOROM",
	15: "ERROR_GPU_IS_LOST", 16: "ERROR_RESET_REQUIRED", 17: "ERROR_OPERATING_SYSTEM",
	18: "ERROR_LIB_RM_VERSION_MISMATCH", 19: "ERROR_IN_USE", 20: "ERROR_MEMORY", 21: "ERROR_NO_DATA",
	22: "ERROR_VGPU_ECC_NOT_SUPPORTED", 23: "ERROR_INSUFFICIENT_RESOURCES", 24: "ERROR_FREQ_NOT_SUPPORTED",
	25: "ERROR_ARGUMENT_VERSION_MISMATCH", 26: "ERROR_DEPRECATED", 27: "ERROR_NOT_READY",
	28: "ERROR_GPU_NOT_FOUND", 29: "ERROR_INVALID_STATE", 30: "ERROR_RESET_TYPE_NOT_SUPPORTED", 999: "ERROR_UNKNOWN",
	missedDeadline: "DEADLINE_EXCEEDED",
}

func (c code) String() string {
	if name, ok := codeNames[c]; ok {
		return name
	}
	return fmt.Sprintf("ERROR_%d", uint32(c))
}

// unsupported says that asking again is pointless until the driver is opened anew.
func (c code) unsupported() bool { return c == errNotSupported || c == errFunctionNotFound }

// driverGone says that the whole driver went away, not one GPU.
func (c code) driverGone() bool {
	switch c {
	case errUninitialized, errDriverNotLoaded, errLibraryNotFound, errLibVersionMismatch:
		return true
	}
	return false
}

// gpuGone says that the GPU answers nothing before it is reset or the node is restarted.
func (c code) gpuGone() bool { return c == errGPULost || c == errResetRequired }

// advice is what the code means for a person, as nvml.h documents it.
func (c code) advice() string {
	switch c {
	case errDriverNotLoaded:
		return "the NVIDIA kernel driver is not loaded"
	case errLibVersionMismatch:
		return "library and kernel driver are of different versions; reload the driver or restart the node"
	case errGPULost:
		return "the GPU has fallen off the bus"
	case errResetRequired:
		return "the GPU must be reset before it can be used"
	case 4:
		return "not permitted; can this process open /dev/nvidiactl and, with MIG, /dev/nvidia-caps?"
	case 17:
		return "the operating system blocks the GPU's device node"
	}
	return ""
}

// explain is the code with its advice.
func (c code) explain() string {
	if a := c.advice(); a != "" {
		return c.String() + ": " + a
	}
	return c.String()
}
