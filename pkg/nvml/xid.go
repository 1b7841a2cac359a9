package nvml

import (
	"fmt"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// xidEntry is one row of NVIDIA's XID catalog. Only needs of reset, reboot or support make a GPU unhealthy.
type xidEntry struct {
	mnemonic string
	needs    gpu.Remedy
}

// judgeXID is the health of a GPU that reported an XID.
//
// A code that the catalog does not list, and 999 (NVML could not tell which), is treated as one that needs
// support: the driver sends these events for critical errors only.
func judgeXID(xid uint64) gpu.Health {
	e, ok := xidCatalog[xid]
	if !ok {
		e = xidEntry{"not in NVIDIA's XID catalog", gpu.Support}
	}
	if severity(e.needs) == 0 {
		return gpu.Health{}
	}
	return gpu.Health{Reason: gpu.XID, Text: fmt.Sprintf("XID %d (%s)", xid, e.mnemonic), Needs: e.needs}
}

// severity orders the remedies that take a GPU out of use; 0 for those that do not.
func severity(r gpu.Remedy) int {
	switch r {
	case gpu.ResetGPU:
		return 1
	case gpu.Support:
		return 2
	case gpu.RebootNode:
		return 3
	}
	return 0
}

// xidCatalog holds the immediate actions of NVIDIA's XID catalog
// (https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html): RESET_GPU is ResetGPU, RESTART_BM and
// RESTART_VM are RebootNode, CONTACT_SUPPORT is Support, RESTART_APP is RestartApp, the rest is nothing.
// Where the catalog gives a workflow instead of an action, the end of that workflow stands: 48 and NVLink's
// 74 and 144 to 150 are ResetGPU, so is 159 (CHECK_UVM). It lists 167, 169, 171 and 172 with no action; they
// are a PCIe fatal timeout, a halted microcontroller and the details of 48: ResetGPU.
// A table, never written to.
var xidCatalog = map[uint64]xidEntry{
	1:   {"ROBUST_CHANNEL_FIFO_ERROR_FIFO_METHOD", gpu.Support},
	2:   {"ROBUST_CHANNEL_FIFO_ERROR_SW_METHOD", gpu.Support},
	3:   {"ROBUST_CHANNEL_FIFO_ERROR_UNK_METHOD", gpu.Support},
	4:   {"ROBUST_CHANNEL_FIFO_ERROR_CHANNEL_BUSY", gpu.Support},
	5:   {"ROBUST_CHANNEL_FIFO_ERROR_RUNOUT_OVERFLOW", gpu.Support},
	6:   {"ROBUST_CHANNEL_FIFO_ERROR_PARSE_ERR", gpu.Support},
	7:   {"ROBUST_CHANNEL_FIFO_ERROR_PTE_ERR", gpu.Support},
	8:   {"ROBUST_CHANNEL_FIFO_ERROR_IDLE_TIMEOUT", gpu.RestartApp},
	9:   {"ROBUST_CHANNEL_GR_ERROR_INSTANCE", gpu.Support},
	10:  {"ROBUST_CHANNEL_GR_ERROR_SINGLE_STEP", gpu.Support},
	11:  {"ROBUST_CHANNEL_GR_ERROR_MISSING_HW", gpu.RestartApp},
	12:  {"ROBUST_CHANNEL_GR_ERROR_SW_METHOD", gpu.Support},
	13:  {"ROBUST_CHANNEL_GR_EXCEPTION", gpu.RestartApp},
	14:  {"ROBUST_CHANNEL_FAKE_ERROR", gpu.NoRemedy},
	15:  {"ROBUST_CHANNEL_SCANLINE_TIMEOUT", gpu.Support},
	16:  {"ROBUST_CHANNEL_VBLANK_CALLBACK_TIMEOUT", gpu.Support},
	17:  {"ROBUST_CHANNEL_PARAMETER_ERROR", gpu.Support},
	18:  {"ROBUST_CHANNEL_BUS_MASTER_TIMEOUT_ERROR", gpu.Support},
	19:  {"ROBUST_CHANNEL_DISP_MISSED_NOTIFIER", gpu.Support},
	20:  {"ROBUST_CHANNEL_MPEG_ERROR_SW_METHOD", gpu.Support},
	21:  {"ROBUST_CHANNEL_ME_ERROR_SW_METHOD", gpu.Support},
	22:  {"ROBUST_CHANNEL_VP_ERROR_SW_METHOD", gpu.Support},
	23:  {"ROBUST_CHANNEL_RC_LOGGING_ENABLED", gpu.Support},
	24:  {"ROBUST_CHANNEL_GR_SEMAPHORE_TIMEOUT", gpu.Support},
	25:  {"ROBUST_CHANNEL_GR_ILLEGAL_NOTIFY", gpu.RestartApp},
	26:  {"ROBUST_CHANNEL_FIFO_ERROR_FBISTATE_TIMEOUT", gpu.Support},
	27:  {"ROBUST_CHANNEL_VP_ERROR", gpu.Support},
	28:  {"ROBUST_CHANNEL_VP2_ERROR", gpu.Support},
	29:  {"ROBUST_CHANNEL_BSP_ERROR", gpu.Support},
	30:  {"ROBUST_CHANNEL_BAD_ADDR_ACCESS", gpu.Support},
	31:  {"ROBUST_CHANNEL_FIFO_ERROR_MMU_ERR_FLT", gpu.RestartApp},
	32:  {"ROBUST_CHANNEL_PBDMA_ERROR", gpu.RestartApp},
	33:  {"ROBUST_CHANNEL_SEC_ERROR", gpu.Support},
	34:  {"ROBUST_CHANNEL_MSVLD_ERROR", gpu.Support},
	35:  {"ROBUST_CHANNEL_MSPDEC_ERROR", gpu.Support},
	36:  {"ROBUST_CHANNEL_MSPPP_ERROR", gpu.Support},
	37:  {"ROBUST_CHANNEL_FECS_ERR_UNIMP_FIRMWARE_METHOD", gpu.NoRemedy},
	38:  {"ROBUST_CHANNEL_FECS_ERR_WATCHDOG_TIMEOUT", gpu.NoRemedy},
	39:  {"ROBUST_CHANNEL_CE0_ERROR", gpu.RestartApp},
	40:  {"ROBUST_CHANNEL_CE1_ERROR", gpu.RestartApp},
	41:  {"ROBUST_CHANNEL_CE2_ERROR", gpu.RestartApp},
	42:  {"ROBUST_CHANNEL_VIC_ERROR", gpu.Support},
	43:  {"ROBUST_CHANNEL_RESETCHANNEL_VERIF_ERROR", gpu.NoRemedy},
	44:  {"ROBUST_CHANNEL_GR_FAULT_DURING_CTXSW", gpu.NoRemedy},
	45:  {"ROBUST_CHANNEL_PREEMPTIVE_REMOVAL", gpu.NoRemedy},
	46:  {"ROBUST_CHANNEL_GPU_TIMEOUT_ERROR", gpu.ResetGPU},
	47:  {"ROBUST_CHANNEL_NVENC0_ERROR", gpu.Support},
	48:  {"ROBUST_CHANNEL_GPU_ECC_DBE", gpu.ResetGPU},
	49:  {"SILENT_RUNNING_CONSTANT_LEVEL_SET_BY_REGISTRY", gpu.Support},
	50:  {"SILENT_RUNNING_LEVEL_TRANSITION_DUE_TO_RC_ERROR", gpu.Support},
	51:  {"SILENT_RUNNING_STRESS_TEST_FAILURE", gpu.Support},
	52:  {"SILENT_RUNNING_LEVEL_TRANS_DUE_TO_TEMP_RISE", gpu.Support},
	53:  {"SILENT_RUNNING_TEMP_REDUCED_CLOCKING", gpu.Support},
	54:  {"SILENT_RUNNING_PWR_REDUCED_CLOCKING", gpu.NoRemedy},
	55:  {"SILENT_RUNNING_TEMPERATURE_READ_ERROR", gpu.Support},
	56:  {"DISPLAY_CHANNEL_EXCEPTION", gpu.Support},
	57:  {"FB_LINK_TRAINING_FAILURE_ERROR", gpu.Support},
	58:  {"FB_MEMORY_ERROR", gpu.Support},
	59:  {"PMU_ERROR", gpu.Support},
	60:  {"ROBUST_CHANNEL_SEC2_ERROR", gpu.RestartApp},
	61:  {"PMU_BREAKPOINT", gpu.Support},
	62:  {"PMU_HALT_ERROR", gpu.ResetGPU},
	63:  {"INFOROM_DRAM_RETIREMENT_EVENT", gpu.NoRemedy},
	64:  {"INFOROM_DRAM_RETIREMENT_FAILURE", gpu.ResetGPU},
	65:  {"ROBUST_CHANNEL_NVENC1_ERROR", gpu.Support},
	66:  {"ROBUST_CHANNEL_FECS_ERR_REG_ACCESS_VIOLATION", gpu.NoRemedy},
	67:  {"ROBUST_CHANNEL_FECS_ERR_VERIF_VIOLATION", gpu.NoRemedy},
	68:  {"ROBUST_CHANNEL_NVDEC0_ERROR", gpu.RestartApp},
	69:  {"ROBUST_CHANNEL_GR_CLASS_ERROR", gpu.RestartApp},
	70:  {"ROBUST_CHANNEL_CE3_ERROR", gpu.RestartApp},
	71:  {"ROBUST_CHANNEL_CE4_ERROR", gpu.RestartApp},
	72:  {"ROBUST_CHANNEL_CE5_ERROR", gpu.RestartApp},
	73:  {"ROBUST_CHANNEL_NVENC2_ERROR", gpu.Support},
	74:  {"NVLINK_ERROR", gpu.ResetGPU},
	75:  {"ROBUST_CHANNEL_CE6_ERROR", gpu.RestartApp},
	76:  {"ROBUST_CHANNEL_CE7_ERROR", gpu.RestartApp},
	77:  {"ROBUST_CHANNEL_CE8_ERROR", gpu.RestartApp},
	78:  {"VGPU_START_ERROR", gpu.NoRemedy},
	79:  {"ROBUST_CHANNEL_GPU_HAS_FALLEN_OFF_THE_BUS", gpu.RebootNode},
	80:  {"PBDMA_PUSHBUFFER_CRC_MISMATCH", gpu.RestartApp},
	81:  {"ROBUST_CHANNEL_VGA_SUBSYSTEM_ERROR", gpu.Support},
	82:  {"ROBUST_CHANNEL_NVJPG0_ERROR", gpu.RestartApp},
	83:  {"ROBUST_CHANNEL_NVDEC1_ERROR", gpu.RestartApp},
	84:  {"ROBUST_CHANNEL_NVDEC2_ERROR", gpu.RestartApp},
	85:  {"ROBUST_CHANNEL_CE9_ERROR", gpu.RestartApp},
	86:  {"ROBUST_CHANNEL_OFA0_ERROR", gpu.RestartApp},
	87:  {"NVTELEMETRY_DRIVER_REPORT", gpu.Support},
	88:  {"ROBUST_CHANNEL_NVDEC3_ERROR", gpu.RestartApp},
	89:  {"ROBUST_CHANNEL_NVDEC4_ERROR", gpu.RestartApp},
	90:  {"LTC_ERROR", gpu.Support},
	91:  {"RESERVED_XID", gpu.Support},
	92:  {"EXCESSIVE_SBE_INTERRUPTS", gpu.NoRemedy},
	93:  {"INFOROM_ERASE_LIMIT_EXCEEDED", gpu.NoRemedy},
	94:  {"ROBUST_CHANNEL_CONTAINED_ERROR", gpu.RestartApp},
	95:  {"ROBUST_CHANNEL_UNCONTAINED_ERROR", gpu.ResetGPU},
	96:  {"ROBUST_CHANNEL_NVDEC5_ERROR", gpu.RestartApp},
	97:  {"ROBUST_CHANNEL_NVDEC6_ERROR", gpu.RestartApp},
	98:  {"ROBUST_CHANNEL_NVDEC7_ERROR", gpu.RestartApp},
	99:  {"ROBUST_CHANNEL_NVJPG1_ERROR", gpu.RestartApp},
	100: {"ROBUST_CHANNEL_NVJPG2_ERROR", gpu.RestartApp},
	101: {"ROBUST_CHANNEL_NVJPG3_ERROR", gpu.RestartApp},
	102: {"ROBUST_CHANNEL_NVJPG4_ERROR", gpu.RestartApp},
	103: {"ROBUST_CHANNEL_NVJPG5_ERROR", gpu.RestartApp},
	104: {"ROBUST_CHANNEL_NVJPG6_ERROR", gpu.RestartApp},
	105: {"ROBUST_CHANNEL_NVJPG7_ERROR", gpu.RestartApp},
	106: {"SMBPBI_TEST_MESSAGE", gpu.NoRemedy},
	107: {"SMBPBI_TEST_MESSAGE_SILENT", gpu.NoRemedy},
	108: {"NVLINK_REMOTE_TRANSLATION_ERROR", gpu.NoRemedy},
	109: {"ROBUST_CHANNEL_CTXSW_TIMEOUT_ERROR", gpu.ResetGPU},
	110: {"SEC_FAULT_ERROR", gpu.ResetGPU},
	111: {"BUNDLE_ERROR_EVENT", gpu.Support},
	112: {"DISP_SUPERVISOR_ERROR", gpu.Support},
	113: {"DP_LT_FAILURE", gpu.Support},
	114: {"HEAD_RG_UNDERFLOW", gpu.Support},
	115: {"CORE_CHANNEL_REGS", gpu.Support},
	116: {"WINDOW_CHANNEL_REGS", gpu.Support},
	117: {"CURSOR_CHANNEL_REGS", gpu.Support},
	118: {"HEAD_REGS", gpu.Support},
	119: {"GSP_RPC_TIMEOUT", gpu.ResetGPU},
	120: {"GSP_ERROR", gpu.ResetGPU},
	121: {"C2C_ERROR", gpu.NoRemedy},
	122: {"SPI_PMU_RPC_READ_FAIL", gpu.Support},
	123: {"SPI_PMU_RPC_WRITE_FAIL", gpu.Support},
	124: {"SPI_PMU_RPC_ERASE_FAIL", gpu.Support},
	125: {"INFOROM_FS_ERROR", gpu.Support},
	126: {"ROBUST_CHANNEL_CE10_ERROR", gpu.RestartApp},
	127: {"ROBUST_CHANNEL_CE11_ERROR", gpu.RestartApp},
	128: {"ROBUST_CHANNEL_CE12_ERROR", gpu.RestartApp},
	129: {"ROBUST_CHANNEL_CE13_ERROR", gpu.RestartApp},
	130: {"ROBUST_CHANNEL_CE14_ERROR", gpu.RestartApp},
	131: {"ROBUST_CHANNEL_CE15_ERROR", gpu.RestartApp},
	132: {"ROBUST_CHANNEL_CE16_ERROR", gpu.RestartApp},
	133: {"ROBUST_CHANNEL_CE17_ERROR", gpu.RestartApp},
	134: {"ROBUST_CHANNEL_CE18_ERROR", gpu.RestartApp},
	135: {"ROBUST_CHANNEL_CE19_ERROR", gpu.RestartApp},
	136: {"ALI_TRAINING_FAIL", gpu.ResetGPU},
	137: {"NVLINK_PRIV_ERR", gpu.NoRemedy},
	138: {"ROBUST_CHANNEL_DLA_ERROR", gpu.Support},
	139: {"ROBUST_CHANNEL_OFA1_ERROR", gpu.RestartApp},
	140: {"UNRECOVERABLE_ECC_ERROR_ESCAPE", gpu.ResetGPU},
	141: {"ROBUST_CHANNEL_FAST_PATH_ERROR", gpu.NoRemedy},
	142: {"ROBUST_CHANNEL_NVENC3_ERROR", gpu.Support},
	143: {"GPU_INIT_ERROR", gpu.ResetGPU},
	144: {"NVLINK_SAW_ERROR", gpu.ResetGPU},
	145: {"NVLINK_RLW_ERROR", gpu.ResetGPU},
	146: {"NVLINK_TLW_ERROR", gpu.ResetGPU},
	147: {"NVLINK_TREX_ERROR", gpu.ResetGPU},
	148: {"NVLINK_NVLPW_CTRL_ERROR", gpu.ResetGPU},
	149: {"NVLINK_NETIR_ERROR", gpu.ResetGPU},
	150: {"NVLINK_MSE_ERROR", gpu.ResetGPU},
	151: {"ROBUST_CHANNEL_KEY_ROTATION_ERROR", gpu.RebootNode},
	152: {"ROBUST_CHANNEL_DLA_SMMU_ERROR", gpu.NoRemedy},
	153: {"ROBUST_CHANNEL_DLA_TIMEOUT", gpu.NoRemedy},
	154: {"GPU_RECOVERY_ACTION_CHANGED", gpu.NoRemedy},
	155: {"NVLINK_SW_DEFINED_ERROR", gpu.ResetGPU},
	156: {"RESOURCE_RETIREMENT_EVENT", gpu.ResetGPU},
	157: {"RESOURCE_RETIREMENT_FAILURE", gpu.NoRemedy},
	158: {"GPU_FATAL_TIMEOUT", gpu.ResetGPU},
	159: {"ROBUST_CHANNEL_CHI_NON_DATA_ERROR", gpu.ResetGPU},
	160: {"CHANNEL_RETIREMENT_EVENT", gpu.NoRemedy},
	161: {"CHANNEL_RETIREMENT_FAILURE", gpu.NoRemedy},
	162: {"PSHC_REENGAGED", gpu.NoRemedy},
	163: {"PSHC_DISENGAGED", gpu.NoRemedy},
	164: {"PSHC_LOW_LIFETIME", gpu.NoRemedy},
	165: {"PSHC_ZERO_LIFETIME", gpu.NoRemedy},
	166: {"NVLINK_SECURE_CRYPTO_ERR", gpu.NoRemedy},
	167: {"PCIE_FATAL_TIMEOUT", gpu.ResetGPU},
	168: {"REDUCED_GPU_MEMORY_CAPACITY", gpu.NoRemedy},
	169: {"SEC2_HALT_ERROR", gpu.ResetGPU},
	170: {"NVLINK_SECURE_OTHER", gpu.NoRemedy},
	171: {"UNCORRECTABLE_DRAM_ERROR", gpu.ResetGPU},
	172: {"UNCORRECTABLE_SRAM_ERROR", gpu.ResetGPU},
}
