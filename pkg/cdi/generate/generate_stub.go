//go:build !cgo

// Package generate makes CDI specs with NVIDIA's nvcdi, which calls C.
package generate

import (
	"errors"
	"io"
)

// Run fails: there is no driver access without cgo.
func Run(io.Reader, io.Writer) error {
	return errors.New("built without cgo: no driver access, so no CDI specs; set cdi.enabled to false")
}
