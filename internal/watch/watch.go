// Package watch publishes the latest of a value to any number of watchers.
//
// It carries state, not events: a watcher that slept through ten values sees the newest and can miss
// nothing that still matters. There is no queue, no subscription list and no slow reader.
package watch

import "sync"

// Value holds the latest T. The zero Value is ready to use and holds the zero T.
// It is safe for concurrent use; what it holds must not be changed after Set.
type Value[T any] struct {
	mu      sync.Mutex
	latest  T
	changed chan struct{} // closed by the next Set; nil until somebody watches
}

// Set publishes v and wakes every watcher.
func (v *Value[T]) Set(latest T) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.latest = latest
	if v.changed != nil {
		close(v.changed)
		v.changed = nil
	}
}

// Get is the latest value.
func (v *Value[T]) Get() T {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.latest
}

// Watch is the latest value, and a channel that is closed once a newer one is there.
func (v *Value[T]) Watch() (T, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.changed == nil {
		v.changed = make(chan struct{})
	}
	return v.latest, v.changed
}
