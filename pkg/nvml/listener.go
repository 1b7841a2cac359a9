package nvml

import "time"

// listenFor bounds one wait for events, and so how long a stop waits for the listener.
const listenFor = time.Second

// notice is what the listener and the counter tell the loop: an event, how many GPUs there are, or that Count
// failed.
type notice struct {
	event *event
	count int
	asked time.Time // when Count was
	fault code      // of Count
}

// listen forwards events until quit is closed, or at once when the driver has none. It makes no other call
// than the wait, which no hung GPU holds up.
func listen(s session, quit <-chan struct{}, notices chan<- notice) {
	for {
		select {
		case <-quit:
			return
		default:
		}
		e, c := s.Wait(listenFor)
		switch {
		case c == success:
			select {
			case notices <- notice{event: &e}:
			case <-quit:
			}
		case c == errTimeout:
		case c.unsupported():
			return
		default:
			// A lost GPU makes every wait return at once; without a pause this would be a busy loop.
			idle(listenFor, quit)
		}
	}
}

// countGPUs counts the GPUs once an interval, and when it is asked to, until quit is closed. The call may hang
// with a GPU.
func countGPUs(s session, interval time.Duration, recount, quit <-chan struct{}, notices chan<- notice) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-recount:
		case <-quit:
			return
		}
		asked := time.Now()
		n, c := s.Count()
		select {
		case notices <- notice{count: n, asked: asked, fault: c}:
		case <-quit:
		}
	}
}

// idle waits for d, or until quit is closed, and then reports false.
func idle(d time.Duration, quit <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-quit:
		return false
	}
}
