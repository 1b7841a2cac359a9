package multibuffer

import "github.com/klauspost/cpuid/v2"

// together is whether blocks runs here.
var together = cpuid.CPU.Supports(cpuid.SHA, cpuid.SSSE3)

// blocks hashes n blocks of each message.
//
//go:noescape
func blocks(states *[lanes]state, messages *[lanes]*byte, n int, k *[64]uint32)
