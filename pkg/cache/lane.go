package cache

import (
	"context"
	"fmt"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	firstStreams = 8 // to an origin nobody was at before
	leastWindow  = 100 * time.Millisecond
	probeEvery   = 5 * time.Second  // more streams are tried again so long after they brought nothing
	calm         = 10 * time.Second // and so long after an origin complained
	lively       = time.Second      // an origin of which bytes came so lately does not fail as a whole
)

// lane is the way to one origin: how many streams it gets, and whether it asked to be left alone.
//
// The number climbs: it doubles while that brings at least a quarter of what twice as many could bring. When it
// does not, the number goes back and a quarter more is tried now and then, because what was the bottleneck
// may not be it any more. An origin that says it is asked too much gets half; another failure takes one away, where
// nothing else comes from there.
// Guarded by the mutex of its streams.
type lane struct {
	limit int       // streams at a time, from 1 to the cap
	cap   int       // of limit
	busy  int       // streams in use
	until time.Time // it asked to be left alone until then

	from    time.Time     // of the window in which bytes are counted
	bytes   int64         // that came since from
	first   time.Duration // to the first byte, lately
	proven  int           // a limit below the present one, whose rate was best; or the present one
	best    float64       // bytes a second with proven
	leap    bool          // the next step doubles: nothing stood in the way yet
	hold    time.Time     // no next step before then
	alive   time.Time     // when bytes came last
	shrunk  time.Time     // what began before then does not count as a failure a second time
	strikes int           // complaints without a byte in between
}

func newLane(most int) *lane {
	n := min(firstStreams, most)
	return &lane{limit: n, cap: most, proven: n, leap: true}
}

// open reports whether another stream may begin. After a complaint one finds out for all.
func (l *lane) open(now time.Time) bool {
	return l.busy < l.limit && !now.Before(l.until) && (l.strikes == 0 || l.busy == 0)
}

// answered notes how long an answer's first byte took. Half of what there was stays, so that one late
// answer does not make the windows long.
func (l *lane) answered(took time.Duration) { l.first = (l.first + took) / 2 }

// moved counts n bytes that came, and reports whether there is a stream more to be had. hungry says
// that somebody waits for one: else the rate says nothing of what more of them would bring.
func (l *lane) moved(n int, now time.Time, hungry bool) (more bool) {
	found := l.strikes > 0
	l.strikes, l.alive = 0, now
	if found {
		l.restart(now, 0)
		return true
	}
	if !hungry || l.from.IsZero() {
		l.restart(now, 0)
		return false
	}
	if now.Before(l.from) {
		return false // streams that were just added have not brought their first byte
	}
	l.bytes += int64(n)
	took := now.Sub(l.from)
	if took < max(leastWindow, 4*l.first) {
		return false
	}
	rate := float64(l.bytes) / took.Seconds()
	was := l.limit
	switch grown := float64(l.limit-l.proven) / float64(l.proven); {
	case l.limit <= l.proven:
		l.best = rate // what this limit brings, in this weather
		if !now.Before(l.hold) {
			l.step()
		}
	case rate >= l.best*(1+grown/4):
		l.proven, l.best = l.limit, rate
		l.step()
	default:
		l.limit, l.leap, l.hold = l.proven, false, now.Add(probeEvery)
	}
	settle := time.Duration(0)
	if l.limit > was {
		settle = 2 * l.first
	}
	l.restart(now, settle)
	return l.limit > was
}

func (l *lane) step() {
	by := max(1, l.limit/4)
	if l.leap {
		by = l.limit
	}
	l.limit = min(l.cap, l.limit+by)
}

func (l *lane) restart(now time.Time, settle time.Duration) { l.from, l.bytes = now.Add(settle), 0 }

// failed notes the failure of what began at began. From an origin that complains nothing is asked for as
// long as it says, or for a second, twice as long each time up to half a minute. What was asked before the last failure was
// noted tells nothing new, and one model that fails says nothing of another whose bytes come.
func (l *lane) failed(err error, began, now time.Time) {
	fresh, fewer := !began.Before(l.shrunk), l.limit-1
	switch model.ReasonOf(err) {
	case "Throttled":
		fewer = l.limit / 2
		if fresh {
			l.strikes++
		}
		wait := max(backoff(min(max(0, l.strikes-1), 5)), min(model.RetryAfter(err), patience))
		if until := now.Add(wait); until.After(l.until) {
			l.until = until
		}
	case "Unavailable", "Unreachable", "Stalled":
		if l.alive.After(began.Add(-lively)) {
			return
		}
	default:
		return
	}
	if fresh {
		l.limit = max(1, fewer)
		l.proven, l.best, l.leap = l.limit, 0, false
		l.shrunk, l.hold = now, now.Add(calm)
		l.restart(now, 0)
	}
}

// shut is for how long nothing may be asked of it.
func (l *lane) shut(now time.Time) time.Duration { return max(0, l.until.Sub(now)) }

// oneEndpoint are the schemes all of whose references go to the same few hosts, whatever is in the
// reference in a host's place.
var oneEndpoint = map[string]bool{"s3": true, "gs": true, "hf": true, "ms": true, "az": true}

// originOf tells origins apart, as far as a reference shows them.
func originOf(ref model.Ref) string {
	if oneEndpoint[ref.Scheme] {
		return ref.Scheme
	}
	return ref.Scheme + "://" + ref.Host
}

// look resolves ref, unless its origin asked to be left alone.
func (c *Cache) look(ctx context.Context, src Source, ref model.Ref) (model.Manifest, error) {
	l, began := c.streams.lane(originOf(ref)), time.Now()
	if until := c.streams.shut(l); !until.IsZero() {
		return model.Manifest{}, &model.Error{Reason: "Throttled", RetryAfter: until.Sub(began), Text: leftAlone(ref, until)}
	}
	m, err := resolve(ctx, src, ref)
	if err != nil {
		c.streams.failed(l, err, began)
	}
	return m, err
}

// leftAlone says why nothing is asked of the origin of ref.
func leftAlone(ref model.Ref, until time.Time) string {
	return fmt.Sprintf("%s: the origin asked to be left alone until %s", ref, until.Format(time.TimeOnly))
}
