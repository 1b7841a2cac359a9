package nvml

import (
	"fmt"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// condition is something that a sample shows about a GPU, as long as it shows it.
type condition struct {
	reason gpu.Reason     // of a GPU that must not be used; empty for a notice
	notice gpu.NoticeCode // of one that may be
	text   string
	needs  gpu.Remedy
	until  proof // what ends it, once no sample shows it any more
}

// conditionReasons are the reasons that conditions can have.
func conditionReasons() []gpu.Reason {
	return []gpu.Reason{gpu.RecoveryAction, gpu.Unavailable, gpu.ECC, gpu.RowRemapFailed, gpu.SRAMThreshold, gpu.FabricFault}
}

// conditionsOf judges one sample by itself: no state, no time.
func conditionsOf(s *gpu.Stats) []condition {
	var all []condition
	if a := s.RecoveryAction; a != nil && *a != 0 {
		all = append(all, recoveryCondition(*a))
	}
	if is(s.RowRemapFailed) {
		all = append(all, condition{
			reason: gpu.RowRemapFailed, text: "a bad row of its memory could not be remapped: the board must be replaced",
			needs: gpu.Support, until: provenByOperator,
		})
	}
	if is(s.RowRemapPending) {
		all = append(all, condition{
			notice: gpu.RowRemapPending, text: "a bad row of its memory is remapped at the next reset", needs: gpu.ResetGPU,
		})
	}
	if is(s.SRAMThresholdExceeded) {
		all = append(all, condition{
			reason: gpu.SRAMThreshold, text: "more uncorrectable SRAM errors than NVIDIA's field diagnostics allow",
			needs: gpu.Support, until: provenByOperator,
		})
	}
	return append(all, fabricConditions(s)...)
}

func is(b *bool) bool { return b != nil && *b }

// recoveryCondition is what nvmlDeviceGpuRecoveryAction_t means. A value that is newer than this list is
// taken for a reset: the driver would not ask for nothing.
func recoveryCondition(action uint64) condition {
	c := condition{reason: gpu.RecoveryAction, needs: gpu.ResetGPU, until: provenByDriver}
	switch action {
	case 1:
		c.text = "a reset of the GPU"
	case 2:
		c.text, c.needs = "a reboot of the node", gpu.RebootNode
	case 3:
		c.text, c.needs = "an end of all peer-to-peer work", gpu.RestartApp
	case 4:
		c.text = "an end of all work and a reset of the GPU"
	case 5:
		c.text, c.needs = "a recovery of the IMEX domain", gpu.Operator
	case 6:
		c.text = "a reset of the GPU's PCIe bus"
	case 7:
		c.text, c.needs = "a reboot of the system", gpu.RebootNode
	default:
		c.text = "something that this agent does not know"
	}
	c.text = fmt.Sprintf("the driver asks for %s (recovery action %d)", c.text, action)
	return c
}

// resets says that a recovery action ends only with a reset of the GPU or a reboot. An end of peer-to-peer work
// (3) and a recovery of the IMEX domain (5) leave the GPU as it was.
func resets(action uint64) bool { return action != 0 && action != 3 && action != 5 }

// The states of a GPU's registration with the fabric manager (nvml.h, NVML_GPU_FABRIC_STATE_*).
const (
	fabricInProgress = 2
	fabricCompleted  = 3
)

// fabricConditions judge the membership in an NVLink fabric. While the registration is under way, CUDA cannot
// start on the GPU (error 802, system not yet initialized).
func fabricConditions(s *gpu.Stats) []condition {
	if s.FabricState == nil {
		return nil
	}
	fault := func(needs gpu.Remedy, format string, args ...any) []condition {
		return []condition{{reason: gpu.FabricFault, text: fmt.Sprintf(format, args...), needs: needs, until: provenByProbes}}
	}
	switch *s.FabricState {
	case fabricInProgress:
		return fault(gpu.Operator, "its registration with the NVLink fabric has not ended: is the fabric manager running?")
	case fabricCompleted:
	default:
		return nil
	}
	if st := s.FabricStatus; st != nil && *st != 0 {
		return fault(gpu.Operator, "its registration with the NVLink fabric failed: %s", code(*st))
	}
	if s.FabricHealth == nil {
		return nil
	}
	mask := *s.FabricHealth
	// Each field of the mask is 0 where the fabric does not report it (nvml.h, NVML_GPU_FABRIC_HEALTH_MASK_*).
	if why := mask >> 8 & 0xf; why > 1 {
		return fault(gpu.Operator, "the NVLink fabric is not configured for it: %s", misconfigured(why))
	}
	if mask>>4&3 == 1 {
		return fault(gpu.ResetGPU, "a route of the NVLink fabric to it is broken")
	}
	var all []condition
	for _, n := range []struct {
		shift int
		text  string
	}{
		{0, "its NVLink bandwidth is reduced"},
		{2, "a route of the NVLink fabric to it is being recovered"},
		{6, "the NVLink fabric is recovering from a timeout"},
	} {
		if mask>>n.shift&3 == 1 {
			all = append(all, condition{notice: gpu.FabricDegraded, text: n.text})
		}
	}
	return all
}

func misconfigured(why uint64) string {
	switch why {
	case 2:
		return "another system GUID"
	case 3:
		return "another chassis serial number"
	case 4:
		return "in no partition"
	case 5:
		return "too few NVLinks"
	case 6:
		return "firmware that does not fit"
	case 7:
		return "not in its place"
	case 8:
		return "in no valid state"
	}
	return fmt.Sprintf("reason %d", why)
}
