package main

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// pace limits what each connection of a listening socket sends, in bytes per second. The kernel does
// it (socket(7), SO_MAX_PACING_RATE), so sendfile and its cost stay what they are.
func pace(c syscall.RawConn, rate uint64) error {
	var err error
	ctl := c.Control(func(fd uintptr) {
		err = unix.SetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate)
	})
	if err = errors.Join(ctl, err); err != nil {
		return fmt.Errorf("limit the rate: %w", err)
	}
	return nil
}
