package nvml

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
)

const (
	day = 24 * time.Hour

	// near is how far apart an uncorrectable memory error and the XID that says it was contained may be.
	near = time.Minute

	// shown is how many troubles and XIDs are named in one text; a GPU may have one of each code.
	shown = 3
)

// health is what keeps one GPU out of use, and what is to be known of it besides. Owned by the loop.
type health struct {
	troubles     []trouble
	cordon       *cordon
	uncordoned   time.Time    // the last time that an operator did
	acknowledged []gpu.Reason // conditions that an operator has accepted, for as long as they last
	recoveries   []time.Time  // of the last day
	persistent   bool         // persistence mode was on in the last sample

	notices   map[noticeKey]shownNotice
	questions []question
	contained time.Time // the last XID 63 or 94
	ecc       *uint64   // volatile uncorrected errors in the last sample of this session
	session   int       // of the last sample; 0 before the first
	sampledAt time.Time // of the last sample
	evidence  string    // of the last recovery
}

// cordon is an operator's word.
type cordon struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

type noticeKey struct {
	code gpu.NoticeCode
	text string
}

// shownNotice is shown until a time; one that a sample shows is renewed by every sample.
type shownNotice struct {
	gpu.Notice
	until time.Time
}

// question is an XID whose verdict waits for the driver's recovery action.
type question struct {
	xid    uint64
	action action
	text   string
	round  int // the first sample that answers it
	at     time.Time
}

// verdict is the health that counts: the worst trouble first, then the operator's word.
func (h *health) verdict() gpu.Health {
	if len(h.troubles) == 0 {
		if h.cordon == nil {
			return gpu.Health{}
		}
		return gpu.Health{Reason: gpu.Cordoned, Text: "cordoned: " + h.cordon.Reason, Since: h.cordon.Since, Needs: gpu.Operator}
	}
	sorted := slices.Clone(h.troubles)
	slices.SortStableFunc(sorted, func(a, b trouble) int { return cmp.Compare(gravity(&b), gravity(&a)) })
	texts := make([]string, 0, shown+2)
	for _, t := range sorted[:min(len(sorted), shown)] {
		texts = append(texts, t.Text)
	}
	if more := len(sorted) - shown; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	if h.cordon != nil {
		texts = append(texts, "cordoned: "+h.cordon.Reason)
	}
	worst := sorted[0]
	return gpu.Health{Reason: worst.Reason, Text: strings.Join(texts, "; "), Since: worst.Since, Needs: worst.Needs}
}

// gravity orders troubles: one that does not answer first, then by what is needed.
func gravity(t *trouble) int {
	if unreachable(t.Reason) {
		return 10
	}
	if t.Reason == gpu.Flapping {
		return 9
	}
	switch t.Needs {
	case gpu.RebootNode:
		return 5
	case gpu.Support:
		return 4
	case gpu.Operator:
		return 3
	case gpu.ResetGPU:
		return 2
	}
	return 1
}

// unreachable are the reasons of a GPU that gave no readings; it has one of them at a time.
func unreachable(r gpu.Reason) bool { return r == gpu.Lost || r == gpu.Hung || r == gpu.Unreadable }

// ail adds a trouble, unless the GPU has it; a GPU that recovered too often of late is flapping, too.
func (r rules) ail(h *health, t trouble) {
	for i := range h.troubles {
		if old := &h.troubles[i]; old.same(&t) {
			old.standing, old.good, old.Evidence = t.standing, 0, ""
			if t.standing {
				old.Text, old.Needs = t.Text, t.Needs
			}
			return
		}
	}
	well := len(h.troubles) == 0
	h.troubles = append(h.troubles, t)
	h.recoveries = slices.DeleteFunc(h.recoveries, func(at time.Time) bool { return t.Since.Sub(at) >= day })
	if n := len(h.recoveries); well && n > r.relapses {
		h.troubles = append(h.troubles, trouble{
			Reason: gpu.Flapping, Since: t.Since, Needs: gpu.Operator, Until: provenByOperator, At: t.At,
			Text: fmt.Sprintf("fell ill again %d times within a day, the last time of: %s", n, t.Text),
		})
	}
}

// unreached notes why a GPU gave no readings.
func (r rules) unreached(h *health, why gpu.Health, at marks, now time.Time) {
	for i := range h.troubles {
		h.troubles[i].good = 0
	}
	t := trouble{Reason: why.Reason, Text: why.Text, Since: now, Needs: why.Needs, Until: provenByProbes, At: at, standing: true}
	// Another reason of the same kind takes the place of the one before: it is one trouble all along.
	for i := range h.troubles {
		if old := &h.troubles[i]; unreachable(old.Reason) && !old.same(&t) {
			*old = t
			return
		}
	}
	r.ail(h, t)
}

// xid judges an XID. It reports whether the driver is to be asked, which sample answers being round.
func (r rules) xid(h *health, code uint64, round int, at marks, now time.Time) (ask bool) {
	act, text := r.xids.judge(code)
	if code == xidRowRemapped || code == xidContained {
		h.contained = now
		h.forgive(now)
	}
	needs, until, sick := act.trouble()
	n := gpu.Notice{Code: gpu.XIDNotice, Text: text, Since: now}
	switch {
	case act.asks():
		if !slices.ContainsFunc(h.questions, func(q question) bool { return q.xid == code }) {
			h.questions = append(h.questions, question{code, act, text, round, now})
		}
		return true
	case act == untilContained && !h.contained.IsZero() && now.Sub(h.contained) < near:
		n.Code, n.Needs = gpu.Contained, gpu.ResetGPU
		h.notify(n, now.Add(day))
	case sick:
		r.ail(h, trouble{
			Reason: gpu.XID, XID: code, Text: text, Since: now, Needs: needs, Until: until, At: at, Contained: act == untilContained,
		})
	case act == noticeReset:
		n.Needs = gpu.ResetGPU
		h.notify(n, now.Add(day))
	case act == noticeOnly:
		h.notify(n, now.Add(day))
	}
	return false
}

// forgive ends the memory errors that an XID has just called contained.
func (h *health) forgive(now time.Time) {
	h.troubles = slices.DeleteFunc(h.troubles, func(t trouble) bool {
		if !t.Contained || now.Sub(t.Since) >= near {
			return false
		}
		h.notify(gpu.Notice{Code: gpu.Contained, Text: t.Text, Since: t.Since, Needs: gpu.ResetGPU}, now.Add(day))
		h.evidence = "the driver contained the error"
		return true
	})
}

// unavailable notes the driver's event of that name.
func (r rules) unavailable(h *health, at marks, now time.Time) {
	if r.ignore[gpu.Unavailable] {
		h.notify(gpu.Notice{Code: gpu.NoticeCode(gpu.Unavailable), Text: unavailableText, Since: now}, now.Add(day))
		return
	}
	r.ail(h, trouble{Reason: gpu.Unavailable, Text: unavailableText, Since: now, Needs: gpu.ResetGPU, Until: provenByDriver, At: at})
}

const unavailableText = "the driver says that the GPU is unavailable"

// answer settles the questions that a sample of a round answers. action is nil where the driver has none.
func (r rules) answer(h *health, round int, action *uint64, at marks) {
	h.questions = slices.DeleteFunc(h.questions, func(q question) bool {
		if q.round > round {
			return false
		}
		if needs, until, sick := q.action.trouble(); sick && action == nil {
			r.ail(h, trouble{Reason: gpu.XID, XID: q.xid, Text: q.text, Since: q.at, Needs: needs, Until: until, At: at})
		}
		return true // where the action is not 0, it is a condition of the same sample
	})
}

// sampled judges a sample and counts it towards recoveries.
func (r rules) sampled(h *health, f facts, session int, now time.Time) {
	good := r.conditions(h, f, now)
	r.memoryErrors(h, f, now)
	h.session, h.sampledAt, h.persistent = session, now, is(f.stats.PersistenceMode)

	sick, returned := len(h.troubles) > 0, slices.ContainsFunc(h.troubles, reattached)
	kept := h.troubles[:0]
	for i := range h.troubles {
		t := &h.troubles[i]
		if returned && t.Until == provenRescan && t.Evidence == "" {
			t.Evidence = "it was lost and answers again"
		}
		if r.probe(t, f, good, now) {
			h.evidence = t.Evidence
			continue
		}
		kept = append(kept, *t)
	}
	h.troubles = kept
	if sick && len(h.troubles) == 0 {
		h.recoveries = append(h.recoveries, now)
	}
}

// reattached says that the driver had called the GPU lost or in need of a reset, which it takes back after one
// of the two alone.
func reattached(t trouble) bool { return t.Reason == gpu.Lost && t.Needs != gpu.NoRemedy }

// conditions takes over what the sample shows by itself. It reports whether the sample is a good probe.
func (r rules) conditions(h *health, f facts, now time.Time) (good bool) {
	good = true
	for i := range h.troubles {
		h.troubles[i].standing = false
	}
	standing := map[gpu.Reason]bool{}
	for _, c := range conditionsOf(f.stats) {
		switch {
		case c.reason == gpu.Healthy:
			h.notify(gpu.Notice{Code: c.notice, Text: c.text, Since: now, Needs: c.needs}, now)
		case r.ignore[c.reason], slices.Contains(h.acknowledged, c.reason):
			standing[c.reason] = true
			h.notify(gpu.Notice{Code: gpu.NoticeCode(c.reason), Text: c.text, Since: now, Needs: c.needs}, now)
		default:
			good = false
			r.ail(h, trouble{Reason: c.reason, Text: c.text, Since: now, Needs: c.needs, Until: c.until, At: f.marks, standing: true})
		}
	}
	h.acknowledged = slices.DeleteFunc(h.acknowledged, func(a gpu.Reason) bool { return !standing[a] })
	for k, n := range h.notices {
		if n.until.Before(now) {
			delete(h.notices, k)
		}
	}
	return good
}

// memoryErrors looks for uncorrectable errors since the last sample. One that was contained hit one
// application, which the driver has ended.
func (r rules) memoryErrors(h *health, f facts, now time.Time) {
	before, gap := h.ecc, now.Sub(h.sampledAt)
	h.ecc = f.stats.ECCUncorrectedVolatile
	if before == nil || h.ecc == nil || !f.held || *h.ecc <= *before {
		return
	}
	n := gpu.Notice{
		Code: gpu.Contained, Since: now, Needs: gpu.ResetGPU,
		Text: fmt.Sprintf("%d uncorrectable memory errors", *h.ecc-*before),
	}
	switch contained := !h.contained.IsZero() && now.Sub(h.contained) < near+gap; {
	case contained:
		h.notify(n, now.Add(day))
	case r.ignore[gpu.ECC]:
		n.Code = gpu.NoticeCode(gpu.ECC)
		h.notify(n, now.Add(day))
	default:
		r.ail(h, trouble{
			Reason: gpu.ECC, Text: n.Text, Since: now, Needs: gpu.ResetGPU, Until: provenReset, At: f.marks, Contained: true,
		})
	}
}

// notify shows a notice until a time; the moment that it began stays.
func (h *health) notify(n gpu.Notice, until time.Time) {
	if h.notices == nil {
		h.notices = map[noticeKey]shownNotice{}
	}
	k := noticeKey{n.Code, n.Text}
	if old, ok := h.notices[k]; ok {
		n.Since = old.Since
	}
	h.notices[k] = shownNotice{n, until}
}

// noticed is what is shown of the notices.
func (h *health) noticed() []gpu.Notice {
	var all []gpu.Notice
	for _, n := range h.notices {
		all = append(all, n.Notice)
	}
	slices.SortFunc(all, func(a, b gpu.Notice) int { return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Text, b.Text)) })
	return all
}

// uncordon takes an operator's word that the GPU may be used: it ends the cordon and every trouble that does
// not stop the GPU from answering, and accepts the conditions that last. It says what it ended. What began after the
// word was given stays.
func (h *health) uncordon(at time.Time) (ended []string) {
	if h.cordon != nil && !h.cordon.Since.After(at) {
		ended = append(ended, "cordoned: "+h.cordon.Reason)
		h.cordon = nil
	}
	h.recoveries, h.questions, h.uncordoned = nil, nil, at
	h.troubles = slices.DeleteFunc(h.troubles, func(t trouble) bool {
		if unreachable(t.Reason) || t.Since.After(at) {
			return false
		}
		ended = append(ended, t.Text)
		if t.standing {
			h.acknowledged = append(h.acknowledged, t.Reason)
		}
		return true
	})
	return ended
}
