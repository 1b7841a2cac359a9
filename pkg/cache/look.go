package cache

import (
	"math/rand/v2"
	"time"
)

// A reference that can move is resolved again on a schedule. The nodes of a cluster pull a model at the same
// time and must not come back together, so each look is a quarter of the interval early or late; one that is
// overdue, after a night without power say, is spread over as much.

// refresh is how often e is looked at; 0 is never. c.mu is held.
func (c *Cache) refresh(e *entry) time.Duration {
	if e.listed {
		return e.spec.Refresh
	}
	return c.cfg.Refresh
}

// nextLook is when the schedule has the origin of e looked at; zero where it does not. c.mu is held.
func (c *Cache) nextLook(e *entry, now time.Time) time.Time {
	every := c.refresh(e)
	if every <= 0 || !e.asked() || e.visible == nil || e.ref().Fixed() {
		e.look = time.Time{}
		return e.look
	}
	if e.look.IsZero() || e.every != every || e.look.Sub(now) > 2*every {
		last := e.memory.Looked
		if last.IsZero() || last.After(now) { // the clock was set back
			last = now
		}
		e.every = every
		e.look = last.Add(every*3/4 + rand.N(every/2+1))
		if e.look.Before(now) {
			e.look = now.Add(rand.N(every/4 + 1))
		}
	}
	return e.look
}
