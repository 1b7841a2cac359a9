//go:build !cgo

package nvml

import "errors"

// newDriver is the driver of a build without cgo: go-nvml calls C.
func newDriver(string) driver { return noDriver{} }

type noDriver struct{}

func (noDriver) Open() (session, error) {
	return nil, errors.New("built without cgo: no driver access; set nvml.simulate")
}
