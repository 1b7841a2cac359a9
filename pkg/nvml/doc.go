// Package nvml is the only owner of libnvidia-ml: it publishes what the driver says as gpu.Snapshot values.
//
// One loop (Monitor.Run) owns all state and never enters C. Those who enter C own nothing that the loop
// reads: a reader per GPU, asked once an interval, and a listener for XID events. A C call cannot be
// cancelled, so an answer that misses its deadline makes that one GPU Hung until the call comes back; no
// other GPU waits for it.
//
// A driver that is not there, is lost or comes back is weather, not failure: Run keeps trying, and the
// snapshot says why there is nothing to see. The one thing it cannot ride out is a library file that was
// replaced under the process: the dynamic linker pins the first one, so Run ends with ErrLibraryReplaced.
//
// An XID whose catalog action is a reset, a reboot or support keeps its GPU unhealthy until the driver is
// initialised anew, which is the only sign of a reset that this package takes as proof.
package nvml
