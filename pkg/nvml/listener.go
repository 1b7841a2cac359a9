package nvml

import "time"

// listenFor bounds one wait for events, and so how long a stop waits for the listener.
const listenFor = time.Second

// notice is what the listener tells the loop: an XID, how many GPUs there are, or that Count failed.
type notice struct {
	xid   *xidEvent
	count int
	fault code // of Count
}

// listen forwards XIDs, and counts the GPUs once an interval, until quit is closed.
// A driver without events is only counted.
func listen(s session, interval time.Duration, quit <-chan struct{}, notices chan<- notice) {
	send := func(n notice) {
		select {
		case notices <- n:
		case <-quit:
		}
	}
	pause := func(d time.Duration) {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-quit:
		}
	}
	counted, silent := time.Now(), false
	for {
		select {
		case <-quit:
			return
		default:
		}
		if time.Since(counted) >= interval {
			counted = time.Now()
			n, c := s.Count()
			send(notice{count: n, fault: c})
		}
		if silent {
			pause(listenFor)
			continue
		}
		e, c := s.Wait(listenFor)
		switch {
		case c == success:
			send(notice{xid: &e})
		case c == errTimeout:
		case c.unsupported():
			silent = true
		default:
			// A lost GPU makes every wait return at once; without a pause this would be a busy loop.
			pause(listenFor)
		}
	}
}
