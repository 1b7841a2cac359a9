//go:build cgo

package nvml

import (
	"time"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"
)

// watched are the events that we can use; which of them a GPU has depends on it and on the driver.
const watched = gonvml.EventTypeXidCriticalError | gonvml.EventTypeGpuUnavailableError |
	gonvml.EventTypeGpuRecoveryAction | gonvml.EventMigConfigChange

// cEar is an event set with one GPU in it.
type cEar struct {
	driver *cDriver
	set    gonvml.EventSet
}

func (s *cSession) Listen(index int) (ear, code) {
	d := s.driver
	if !d.has("nvmlEventSetCreate") || !d.has("nvmlDeviceRegisterEvents") || !d.has("nvmlEventSetWait", "nvmlEventSetWait_v2") {
		return nil, errFunctionNotFound
	}
	h, c := d.api.DeviceGetHandleByIndex(index)
	if c != gonvml.SUCCESS {
		return nil, code(c)
	}
	set, c := d.api.EventSetCreate()
	if c != gonvml.SUCCESS {
		return nil, code(c)
	}
	e := &cEar{d, set}
	if c := e.register(h); c != gonvml.SUCCESS {
		e.Close()
		return nil, code(c)
	}
	return e, success
}

// register asks for the events that the GPU has.
func (e *cEar) register(h gonvml.Device) gonvml.Return {
	types := uint64(gonvml.EventTypeXidCriticalError)
	if e.driver.has("nvmlDeviceGetSupportedEventTypes") {
		if all, c := h.GetSupportedEventTypes(); c == gonvml.SUCCESS {
			types |= all & watched
		}
	}
	c := h.RegisterEvents(types, e.set)
	if c != gonvml.SUCCESS && types != gonvml.EventTypeXidCriticalError {
		c = h.RegisterEvents(gonvml.EventTypeXidCriticalError, e.set)
	}
	return c
}

func (e *cEar) Wait(timeout time.Duration) (event, code) {
	data, c := e.set.Wait(uint32(timeout.Milliseconds()))
	if c != gonvml.SUCCESS {
		return event{}, code(c)
	}
	switch data.EventType {
	case gonvml.EventTypeXidCriticalError:
		return event{Kind: eventXID, Code: data.EventData}, success
	case gonvml.EventTypeGpuUnavailableError:
		return event{Kind: eventUnavailable}, success
	case gonvml.EventTypeGpuRecoveryAction:
		return event{Kind: eventRecoveryAction}, success
	case gonvml.EventMigConfigChange:
		return event{Kind: eventMIGChange}, success
	}
	return event{}, errTimeout // none that was asked for
}

func (e *cEar) Close() {
	if e.driver.has("nvmlEventSetFree") {
		e.set.Free()
	}
}
