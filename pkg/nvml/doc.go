// Package nvml is the only owner of libnvidia-ml: it publishes what the driver says as gpu.Snapshot values.
//
// One loop (Monitor.Run) owns all state and never enters C. Those who enter C own nothing that the loop
// reads: a reader per GPU, asked once an interval, a listener per GPU for the driver's events, and one who counts the GPUs. A C call cannot be
// cancelled, so an answer that misses its deadline makes that one GPU Hung until the call comes back; no
// other GPU waits for it.
//
// How a GPU is split by MIG is learned anew on every sample, as nothing of it may be relied on after a
// reconfiguration: a list that cannot be read makes the GPU Unreadable, with the instances that it had.
//
// A driver that is not there, is lost or comes back is weather, not failure: Run keeps trying, and the
// snapshot says why there is nothing to see. The one thing it cannot ride out is an upgrade of the driver: the
// dynamic linker pins the first library, so Run ends with ErrLibraryReplaced, once. The container that is
// started next has the new one.
//
// Health is a verdict on evidence. What makes a GPU unhealthy is in xid.go and conditions.go, what counts as
// evidence that it is over in trouble.go; both are functions of values. Nothing heals because this process
// starts, or initialises the library: what was wrong is kept on disk, and only another boot, another binding of
// the kernel driver, another version of it, or the driver's own word is evidence. An operator's is, too.
package nvml
