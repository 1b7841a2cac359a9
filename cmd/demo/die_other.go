//go:build !linux

package main

import "syscall"

// dieWithUs is Linux alone: elsewhere an agent outlives a demo that is killed.
func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
