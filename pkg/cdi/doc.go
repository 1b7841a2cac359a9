// Package cdi keeps CDI specs of this node's GPUs and MIG instances under /var/run/cdi current, so that a
// container gets its GPUs by name ("k8s.device-plugin.nvidia.com/gpu=GPU-…") and with the files of the
// driver that is loaded now.
//
// What a container needs of a driver is NVIDIA's knowledge, and changes with each release: the specs are made
// by its nvcdi library. That library enters libnvidia-ml, where a call can hang, and where a function that an
// old driver lacks ends the process; so it runs in a child process of our own binary, which is killed at a
// deadline and loads whichever library is there now (pkg/cdi/generate).
//
// One loop derives from the newest snapshot what the specs must hold, compares it with the files, and acts
// where they differ. The files are the only memory: each says what it was made for. Each device has two names,
// by UUID and by index, so that the containers of a running pod start again after the id strategy was changed.
//
// A file that is not ours is never replaced. Our own files stay when the agent stops or when writing is turned
// off: the kubelet names the same devices again whenever a container of a running pod restarts.
package cdi
