//go:build !linux

package cache

import (
	"errors"
	"io"
	"os"
)

// coldFile reads as any file is read: this system says nothing of its page cache. For development only.
type coldFile struct {
	file *os.File
	buf  []byte
}

func openCold(path string, _ bool) (*coldFile, error) {
	f, err := os.Open(path)
	return &coldFile{file: f, buf: make([]byte, scrubChunk)}, err
}

func (f *coldFile) read(off int64) ([]byte, error) {
	n, err := f.file.ReadAt(f.buf, off)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return f.buf[:n], err
}

func (f *coldFile) close() { _ = f.file.Close() }
