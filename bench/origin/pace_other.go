//go:build !linux

package main

import (
	"fmt"
	"syscall"
)

func pace(syscall.RawConn, uint64) error { return fmt.Errorf("-rate works on Linux only") }
