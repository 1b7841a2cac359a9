package gpu

import "time"

// Health says whether a physical GPU may be given to pods. The zero value is healthy.
type Health struct {
	Reason Reason    `json:"reason,omitempty"`
	Text   string    `json:"text,omitempty"` // for people; empty when healthy
	Since  time.Time `json:"since,omitzero"` // of the present reason
	Needs  Remedy    `json:"needs,omitempty"`
}

// OK reports whether the GPU may be given to pods.
func (h Health) OK() bool { return h.Reason == Healthy }

// Reason is a bounded code for why a GPU is not healthy, safe as a metric label.
type Reason string

// The reasons. Healthy is the zero value.
const (
	Healthy        Reason = ""
	Lost           Reason = "Lost"           // its handle or every call on it fails
	Hung           Reason = "Hung"           // a driver call has not come back
	Unreadable     Reason = "Unreadable"     // it answers, but not what is needed to offer it
	XID            Reason = "XID"            // the driver reported an error that needs a reset, a reboot or support
	RecoveryAction Reason = "RecoveryAction" // the driver asks for a reset, a reboot or the like (NVML field 230)
	Unavailable    Reason = "Unavailable"    // the driver's event said that the GPU cannot be used
	ECC            Reason = "ECC"            // uncorrectable memory errors that were not contained
	RowRemapFailed Reason = "RowRemapFailed" // a bad row of its memory could not be replaced
	SRAMThreshold  Reason = "SRAMThreshold"  // more uncorrectable SRAM errors than NVIDIA allows a board
	FabricFault    Reason = "FabricFault"    // it is not a working member of its NVLink fabric
	Flapping       Reason = "Flapping"       // it fell ill again too often after it had recovered
	Cordoned       Reason = "Cordoned"       // an operator took it out of use
	Released       Reason = "Released"       // an operator had the agent let go of the driver, for a GPU reset
	NotReady       Reason = "NotReady"       // it is well, but no container could be given it: no CDI device, no MPS daemon, no IMEX channel
)

// Reasons are all reasons but Healthy.
func Reasons() []Reason {
	return []Reason{
		Lost, Hung, Unreadable, XID, RecoveryAction, Unavailable, ECC, RowRemapFailed, SRAMThreshold,
		FabricFault, Flapping, Cordoned, Released, NotReady,
	}
}

// Remedy is what an unhealthy GPU needs, or what a notice recommends.
type Remedy string

// The remedies.
const (
	NoRemedy   Remedy = ""
	RestartApp Remedy = "RestartApp"
	ResetGPU   Remedy = "ResetGPU"
	RebootNode Remedy = "RebootNode"
	Support    Remedy = "Support"  // NVIDIA's or the vendor's: the board may have to be replaced
	Operator   Remedy = "Operator" // a person who looks, and then says so: gpu-agent devices uncordon or resume
)

// Notice is something to know of a GPU that may be used all the same.
type Notice struct {
	Code  NoticeCode `json:"code"`
	Text  string     `json:"text"`
	Since time.Time  `json:"since,omitzero"`
	Needs Remedy     `json:"needs,omitempty"` // at the next chance
}

// NoticeCode is a bounded code, safe as a metric label. A Reason that an operator acknowledged, or that the
// configuration ignores, is a notice under its own name.
type NoticeCode string

// The notices.
const (
	RowRemapPending NoticeCode = "RowRemapPending" // a bad row is replaced at the next reset
	XIDNotice       NoticeCode = "XID"             // an XID that asks for attention, not for a reset
	FabricDegraded  NoticeCode = "FabricDegraded"  // its NVLink fabric works, with less than all of it
	Contained       NoticeCode = "Contained"       // an uncorrectable memory error hit one application alone
)
