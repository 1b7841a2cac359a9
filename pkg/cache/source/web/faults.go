package web

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// Cause is what has to be another for a fault to go.
type Cause int

// The causes.
const (
	Setting Cause = iota // the setting: it is wrong on every machine
	Content              // what is in the file that it names
	Machine              // this machine: the file cannot be read here, or something is not in its environment
)

// Fault is what is wrong with one setting of a source.
type Fault struct {
	Key   string // as it is named in the source's section of the file of settings, such as mirrors[0].url
	Cause Cause
	Err   error // what, and what was expected; nothing that is secret
}

// Faults are all that is wrong with the settings of a source: what its New fails with.
type Faults []Fault

func (f Faults) Error() string {
	texts := make([]string, len(f))
	for i, one := range f {
		texts[i] = fmt.Sprintf("%s: %v", one.Key, one.Err)
	}
	return strings.Join(texts, "; ")
}

// Wrong notes that a setting is not what it should be.
func (f *Faults) Wrong(key, format string, args ...any) {
	*f = append(*f, Fault{key, Setting, fmt.Errorf(format, args...)})
}

// Add notes err, if any, of a setting whose value is wrong.
func (f *Faults) Add(key string, err error) {
	if err != nil {
		*f = append(*f, Fault{key, Setting, err})
	}
}

// File notes err, if any, of reading the file that a setting names. One that is there and is not what it should be
// is told from one that another machine may have.
func (f *Faults) File(key string, err error) {
	if err == nil {
		return
	}
	cause := Content
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		cause = Machine
	}
	*f = append(*f, Fault{key, cause, err})
}

// Of is the error of a source's New: nil where nothing is wrong.
func (f Faults) Of(scheme string) error {
	if len(f) == 0 {
		return nil
	}
	return fmt.Errorf("%s source: %w", scheme, f)
}
