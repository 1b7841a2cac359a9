package deviceplugin

import (
	"os"
	"time"
)

const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = 5 * time.Second
	// settled is how long a registration must have lived for the next one to come soon. Two instances on
	// a kubelet of 1.36 or older end each other's streams: without it they would do so as fast as they
	// can.
	settled = 10 * time.Second
	// Between looks without a sign that anything changed: inotify queues overflow, and it may be missing.
	lookWatched   = maxDelay
	lookUnwatched = time.Second
)

// pace spaces attempts to register. A kubelet that was not tried yet is always tried at once.
type pace struct {
	kubelet   os.FileInfo // the socket of the last attempt
	delay     time.Duration
	notBefore time.Time
	err       error // what the delay is for
}

// allows reports, as an error, why it is too early to try this kubelet again.
func (p *pace) allows(kubelet os.FileInfo, now time.Time) error {
	if !same(kubelet, p.kubelet) {
		p.delay = 0
		return nil
	}
	if now.Before(p.notBefore) {
		return p.err
	}
	return nil
}

// attempted notes the outcome of a round of registrations.
func (p *pace) attempted(kubelet os.FileInfo, now time.Time, err error) {
	p.kubelet, p.err = kubelet, err
	if err != nil {
		p.wait(now)
	}
}

// ended notes that a registration made at since is over. Even one that lasted is not renewed in the same
// moment: a kubelet of 1.36 or older, while it ends the old connection, would close the new one.
func (p *pace) ended(since, now time.Time, why error) {
	p.err = why
	if now.Sub(since) >= settled {
		p.delay = 0
	}
	p.wait(now)
}

func (p *pace) wait(now time.Time) {
	p.delay = min(max(2*p.delay, firstDelay), maxDelay)
	p.notBefore = now.Add(p.delay)
}

// next is how long to wait for a sign before looking again.
func (p *pace) next(now time.Time, watched bool) time.Duration {
	look := lookUnwatched
	if watched {
		look = lookWatched
	}
	if left := p.notBefore.Sub(now); left > 0 {
		return min(left, look)
	}
	return look
}
