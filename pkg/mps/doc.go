// Package mps runs NVIDIA's MPS control daemon, one for each resource whose GPUs are shared by MPS.
//
// A daemon is nvidia-cuda-mps-control in the foreground, told of its folders by its environment and of the
// limits of its clients by commands. Before it starts, its GPUs are put into the compute mode
// EXCLUSIVE_PROCESS, so that nobody gets a context of such a GPU but through the daemon. All of this is as
// NVIDIA's mps-control-daemon does it; the daemon sees its own GPUs alone, named by UUID.
//
// A daemon that ends takes its clients with it. So one that already answers is used as it is, whoever started
// it; one that has clients is left running when the agent stops or is configured anew, and used again
// afterwards. Where the agent is the main process of a container its daemons end with the container.
//
// A GPU whose daemon does not answer is held back with the reason: see Daemons.Missing.
package mps
