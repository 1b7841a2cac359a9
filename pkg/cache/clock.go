package cache

import (
	"maps"
	"slices"
	"time"
)

// A clock that was ahead and is set right, as by NTP after a start with a wrong one, leaves times that are to come, on
// the disk and in memory. Such a time counts as now, once: it ages from there on, or what was used "in four years"
// would be in use for four years.

// past is t, or now where t is later.
func past(t, now time.Time) time.Time {
	if t.Round(0).After(now.Round(0)) { // by the clock on the wall
		return now
	}
	return t
}

// setRight makes what is remembered of when things happened agree with the clock. c.mu is held, or the Cache is not
// shared yet.
func (c *Cache) setRight(now time.Time) {
	c.scrubbed.Ended = past(c.scrubbed.Ended, now)
	for _, e := range c.models {
		m := e.memory
		m.LastUse, m.Looked, m.Wrong.At = past(m.LastUse, now), past(m.Looked, now), past(m.Wrong.At, now)
		m.Uses = allPast(m.Uses, now)
		if m.LastUse != e.memory.LastUse || m.Looked != e.memory.Looked || m.Wrong != e.memory.Wrong || !maps.Equal(m.Uses, e.memory.Uses) {
			c.log.Warn("the clock was set back: what happened later than now happened now", "model", e.name)
			if c.remember(e, m) != nil { // the next start does it again
				e.memory = m
			}
		}
		e.used, e.usedOld = past(e.used, now), allPast(e.usedOld, now)
		for i, r := range e.old {
			if retired := past(r.Retired, now); retired != r.Retired {
				was := *r
				was.Retired = retired.UTC()
				e.old = slices.Clone(e.old)
				e.old[i] = &was
			}
		}
	}
}

// allPast is past of each, in the same map where nothing changes.
func allPast(times map[string]time.Time, now time.Time) map[string]time.Time {
	for name, t := range times {
		if p := past(t, now); p != t {
			times = maps.Clone(times)
			times[name] = p
		}
	}
	return times
}

// dateRecord is setRight of what is written down of a revision.
func (c *Cache) dateRecord(path string, r *record, now time.Time) error {
	published, retired := past(r.Published, now), past(r.Retired, now)
	if published == r.Published && retired == r.Retired {
		return nil
	}
	r.Published, r.Retired = published.UTC(), retired.UTC()
	return c.swept(writeJSON(c.disk, path, r, 0o644))
}
