package nvml

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

// action is what an XID does to its GPU.
type action uint8

const (
	countOnly      action = iota // an application's fault, or none: the GPU stays in use
	noticeOnly                   // worth a look; the GPU stays in use
	noticeReset                  // the GPU stays in use and should be reset at the next chance
	askOrCount                   // the driver's recovery action decides; without one, nothing
	askOrReset                   // the driver's recovery action decides; without one, untilReset
	askOrSupport                 // the driver's recovery action decides; without one, support must look
	untilReset                   // out of use until there is evidence of a reset
	untilContained               // untilReset, unless XID 63 or 94 near in time says that the error was contained
	untilRescan                  // untilReset, or until a GPU that was lost answers again
	untilReboot                  // out of use until the node was rebooted
	untilOperator                // out of use until an operator says otherwise
)

// asks says that the driver is to be asked for its recovery action at once.
func (a action) asks() bool { return a == askOrCount || a == askOrReset || a == askOrSupport }

// trouble is what the action makes of an XID; false where the GPU stays in use.
func (a action) trouble() (needs gpu.Remedy, until proof, sick bool) {
	switch a {
	case untilReset, untilContained, askOrReset:
		return gpu.ResetGPU, provenReset, true
	case untilRescan:
		return gpu.RebootNode, provenRescan, true
	case untilReboot:
		return gpu.RebootNode, provenReboot, true
	case askOrSupport:
		return gpu.Support, provenByOperator, true
	case untilOperator:
		return gpu.Operator, provenByOperator, true
	}
	return gpu.NoRemedy, provenByProbes, false
}

// These say that an uncorrectable memory error was dealt with: 63 that the row is to be replaced, 94 that the
// error was contained in one application.
const (
	xidRowRemapped = 63
	xidContained   = 94
)

// XIDPolicy is a policy for one XID in place of NVIDIA's catalog.
type XIDPolicy string

// The policies.
const (
	XIDCatalog  XIDPolicy = ""         // what NVIDIA's catalog and the driver's recovery action say
	XIDIgnore   XIDPolicy = "ignore"   // only counted
	XIDNotice   XIDPolicy = "notice"   // the GPU stays in use, with a notice
	XIDReset    XIDPolicy = "reset"    // unhealthy until there is evidence of a reset
	XIDReboot   XIDPolicy = "reboot"   // unhealthy until the node was rebooted
	XIDOperator XIDPolicy = "operator" // unhealthy until gpu-agent devices uncordon
)

// policyActions is a table, never written to.
var policyActions = map[XIDPolicy]action{
	XIDIgnore: countOnly, XIDNotice: noticeOnly, XIDReset: untilReset, XIDReboot: untilReboot, XIDOperator: untilOperator,
}

// XIDPolicies are the policies that a configuration may name.
func XIDPolicies() []string {
	names := make([]string, 0, len(policyActions))
	for p := range policyActions {
		names = append(names, string(p))
	}
	slices.Sort(names)
	return names
}

// xidRules judges XIDs: by the operator's policies first, then by the catalog.
type xidRules struct {
	policies map[uint64]XIDPolicy
	rest     XIDPolicy // of the codes that policies does not name
}

// judge is what to do about an XID, and its name for people. A code that the catalog does not list, and 999
// (NVML could not tell which), is treated as one that needs support: the driver sends these events for
// critical errors only.
func (r xidRules) judge(xid uint64) (action, string) {
	e, known := xidCatalog[xid]
	if !known {
		e = xidEntry{"not in NVIDIA's XID catalog", askOrSupport}
	}
	text := fmt.Sprintf("XID %d (%s)", xid, e.mnemonic)
	policy, named := r.policies[xid]
	if !named {
		policy = r.rest
	}
	if a, ok := policyActions[policy]; ok {
		return a, text
	}
	return e.action, text
}

// HealthChecks adds what the variables of NVIDIA's device plugin say, DP_DISABLE_HEALTHCHECKS and
// DP_ENABLE_HEALTHCHECKS: lists of codes, or "all" or "xids". A disabled code is ignored; an enabled one is not,
// whatever the other variable and the catalog say. The plugin's own list of ignored codes is not taken over:
// the catalog is in its place. Like the plugin it skips what is no code; those words are returned.
//
// "all" also turns what the driver reports besides XIDs into notices; a GPU that does not answer stays
// unhealthy all the same, for nobody could use it.
func (h *Health) HealthChecks(disable, enable string) (skipped []string) {
	off, offAll, bad := codes(disable)
	on, onAll, worse := codes(enable)
	xids := maps.Clone(h.XIDs)
	if xids == nil {
		xids = map[uint64]XIDPolicy{}
	}
	for _, c := range off {
		xids[c] = XIDIgnore
	}
	if offAll != "" {
		clear(xids)
		h.OtherXIDs = XIDIgnore
	}
	if offAll == "all" {
		h.Ignore = conditionReasons()
	}
	if onAll != "" {
		clear(xids)
		h.OtherXIDs = XIDCatalog
		on = slices.Collect(maps.Keys(xidCatalog))
	}
	for _, c := range on {
		xids[c] = XIDCatalog
		if _, _, sick := xidCatalog[c].action.trouble(); !sick {
			xids[c] = XIDReset
		}
	}
	h.XIDs = xids
	return append(bad, worse...)
}

// codes reads a comma list of XIDs; all is "all" or "xids" when one of these is in it.
func codes(list string) (found []uint64, all string, skipped []string) {
	for word := range strings.SplitSeq(strings.ToLower(list), ",") {
		switch word = strings.TrimSpace(word); word {
		case "":
		case "all", "xids":
			all = cmp.Or(all, word)
		default:
			n, err := strconv.ParseUint(word, 10, 64)
			if err != nil {
				skipped = append(skipped, word)
				continue
			}
			found = append(found, n)
		}
	}
	return found, all, skipped
}
