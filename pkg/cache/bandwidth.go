package cache

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Bandwidth is how fast origins are read, all together, by the clock of this process's time zone.
type Bandwidth struct {
	Limit   int64    // bytes a second; 0 is no limit
	Windows []Window // the first that holds now counts in the place of Limit
}

// Window is a part of each day. From after To spans midnight.
type Window struct {
	From, To time.Duration // since midnight, by the clock on the wall; From is in it, To is not
	Limit    int64         // bytes a second; 0 is no limit
	Paused   bool          // nothing is read
}

func (w Window) holds(at time.Duration) bool {
	if w.From <= w.To {
		return w.From <= at && at < w.To
	}
	return at >= w.From || at < w.To
}

// at is what holds at a time, and the window it is of; nil where it is of none.
func (b Bandwidth) at(now time.Time) (limit int64, in *Window) {
	clock := time.Duration(now.Hour())*time.Hour + time.Duration(now.Minute())*time.Minute
	for i := range b.Windows {
		if b.Windows[i].holds(clock) {
			return b.Windows[i].Limit, &b.Windows[i]
		}
	}
	return b.Limit, nil
}

// paused is when reading goes on, as the clock on the wall shows it; "" while nothing is paused.
func (b Bandwidth) paused(now time.Time) string {
	if _, in := b.at(now); in != nil && in.Paused {
		return time.Time{}.Add(in.To).Format("15:04")
	}
	return ""
}

// clockEvery is how long a pause may outlast its window when the clock was set: a timer follows no clock.
const clockEvery = 30 * time.Second

// pace keeps to a Bandwidth. It is safe for concurrent use.
type pace struct {
	plan Bandwidth

	mu  sync.Mutex
	now int64         // the limit of lim
	lim *rate.Limiter // nil: none
}

// open waits until reading is not paused.
func (p *pace) open(ctx context.Context) error {
	for p.plan.paused(time.Now()) != "" {
		timer := time.NewTimer(clockEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
	return nil
}

// spend waits until n more bytes, which came, are within the limit.
func (p *pace) spend(ctx context.Context, n int) error {
	limit, _ := p.plan.at(time.Now())
	if limit == 0 || n == 0 {
		return nil
	}
	p.mu.Lock()
	if p.lim == nil {
		p.lim = rate.NewLimiter(rate.Limit(limit), bufferSize)
		p.now = limit
	} else if p.now != limit {
		p.lim.SetLimit(rate.Limit(limit))
		p.now = limit
	}
	lim := p.lim
	p.mu.Unlock()
	return lim.WaitN(ctx, n)
}
