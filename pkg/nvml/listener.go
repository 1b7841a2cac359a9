package nvml

import "time"

// listenFor bounds one wait for events, and so how long a stop waits for the listener. It is also how often each
// GPU's listener wakes up for nothing.
const listenFor = 2 * time.Second

// notice is what the listeners and the counter tell the loop: an event of a GPU, how many GPUs there are, or that
// Count failed.
type notice struct {
	event *event
	gpu   int // index of the event's
	count int
	asked time.Time // when Count was
	fault code      // of Count
}

// listen forwards the events of one GPU until quit is closed, or at once when it has none. It begins once the GPU
// was opened, and anew each time that it was: after a reset nothing may come by the registration of before. A GPU
// that is lost, or hangs in the registration, holds up no other's listener.
func listen(s session, index int, opened, quit <-chan struct{}, notices chan<- notice) {
	select {
	case <-opened:
	case <-quit:
		return
	}
	for !closed(quit) {
		e, c := s.Listen(index)
		if c == success {
			c = forward(e, index, opened, quit, notices)
			e.Close()
		}
		switch {
		case c == success:
		case c.unsupported():
			return
		default:
			// With a lost GPU every wait returns at once; without a pause this would be a busy loop.
			idle(time.Second, quit)
		}
	}
}

// forward forwards events until quit is closed or the GPU was opened anew, and then answers success, or until the
// wait fails.
func forward(e ear, index int, opened, quit <-chan struct{}, notices chan<- notice) code {
	patience := listenFor
	for {
		select {
		case <-quit:
			return success
		case <-opened:
			patience = 0 // what came before is not lost
		default:
		}
		heard, c := e.Wait(patience)
		switch {
		case c == success:
			select {
			case notices <- notice{event: &heard, gpu: index}:
			case <-quit:
			}
		case c != errTimeout:
			return c
		case patience == 0:
			return success
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

func closed(quit <-chan struct{}) bool {
	select {
	case <-quit:
		return true
	default:
		return false
	}
}
