package nvml

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/internal/watch"
)

const (
	recordName = "health.json"
	// copyName is the same once more, written second: where the first is damaged, it is at worst one change older.
	copyName = "health.copy.json"
	// readTries is how often it is tried to read either.
	readTries = 3
	// writeAgain is the pause after a write that failed.
	writeAgain = 10 * time.Second
	// lookEvery is how often it is looked whether the file is still ours: during a rolling update there is another
	// agent, and an operator may have spoken to that one.
	lookEvery = 2 * time.Second
	// lookAgain is after how long a file is written over that somebody else wrote and that says nothing new: the
	// agent that leaves may write last.
	lookAgain = time.Minute
)

// keeper writes the newest record to the disk. It does so beside the loop, which must not wait for a disk.
// A keeper without a directory keeps nothing and never fails.
type keeper struct {
	dir      string
	readOnly bool
	disk     durable.Disk
	log      *slog.Logger

	// met, if set, takes over what another agent wrote, until quit is closed, and reports whether that one does
	// not know everything that an operator said here.
	met    func(r record, quit <-chan struct{}) (behind bool)
	loaded time.Time // when the record was read

	last    edition     // owned by the loop
	written os.FileInfo // the file of the last write, or that was read; owned by run
	wroteAt time.Time   // of the same
	wanted  watch.Value[edition]
	done    watch.Value[kept]
}

// edition is one state of the record.
type edition struct {
	number int
	data   []byte
}

// kept is the last edition that was tried, and why it is not on the disk.
type kept struct {
	number int
	err    error
}

// load reads what was kept, or its copy where that cannot be. A file that makes no sense is moved aside, so that it
// can be looked at; one that could not be read may yet be good, and stays. An error says what was lost; without a
// copy the record is then empty, and GPUs are judged by what the driver says now.
func (k *keeper) load() (record, error) {
	if k.dir == "" {
		return record{}, nil
	}
	k.loaded = time.Now()
	path := filepath.Join(k.dir, recordName)
	found, _ := os.Stat(path) // before it is read: what is written after that is looked at again
	data, r, err := readRecord(path)
	if err == nil {
		k.last.data, k.written, k.wroteAt = data, found, k.loaded
		return r, nil
	}
	_, r, copyErr := readRecord(filepath.Join(k.dir, copyName))
	switch {
	case errors.Is(err, fs.ErrNotExist) && errors.Is(copyErr, fs.ErrNotExist):
		return record{}, nil
	case copyErr == nil:
		k.log.Error("the health of the GPUs cannot be read; its copy is used", "error", err)
		return r, k.putAside(path, err)
	case errors.Is(err, fs.ErrNotExist):
		err = copyErr
	}
	return record{}, errors.Join(fmt.Errorf("which GPUs were unhealthy before this start is not known: %s cannot be read (%w)", path, err), k.putAside(path, err))
}

// putAside moves a file that was read and makes no sense.
func (k *keeper) putAside(path string, why error) error {
	if disk := (*fs.PathError)(nil); k.readOnly || errors.As(why, &disk) {
		return nil
	}
	return k.disk.Rename(path, path+".damaged")
}

// readRecord reads a record. A disk may fail once: what cannot be read is tried again.
func readRecord(path string) (data []byte, r record, err error) {
	for range readTries {
		data, err = os.ReadFile(path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err == nil {
		r, err = decodeRecord(data)
	}
	return data, r, err
}

// keep asks for an edition with this content and returns its number.
func (k *keeper) keep(data []byte) int {
	if k.dir != "" && !k.readOnly && !bytes.Equal(data, k.last.data) {
		k.last = edition{k.last.number + 1, data}
		k.wanted.Set(k.last)
	}
	return k.last.number
}

// err is why the newest edition that was tried is not on the disk.
func (k *keeper) err() error { return k.done.Get().err }

// await waits until an edition, or a newer one, was tried.
func (k *keeper) await(ctx context.Context, number int) error {
	for {
		done, changed := k.done.Watch()
		if done.number >= number {
			return done.err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// run writes until quit is closed, and then once more if something is not on the disk.
func (k *keeper) run(quit <-chan struct{}) {
	for {
		behind := k.meet(quit)
		next, changed := k.wanted.Watch()
		done := k.done.Get()
		if next.number > done.number || done.err != nil || next.number > 0 && !k.stands() && (behind || time.Since(k.wroteAt) >= lookAgain) {
			done = kept{next.number, k.write(next.data)}
			k.say(done.err)
			k.done.Set(done)
		}
		pause := lookEvery
		if done.err != nil {
			pause = writeAgain
		}
		select {
		case <-changed:
		case <-time.After(pause):
		case <-quit:
			if next = k.wanted.Get(); next.number > done.number {
				k.done.Set(kept{next.number, k.write(next.data)})
				k.say(k.err())
			}
			return
		}
	}
}

func (k *keeper) write(data []byte) error {
	if err := k.disk.MkdirAll(k.dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(k.dir, recordName)
	if err := k.disk.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	var err error
	k.wroteAt = time.Now()
	if k.written, err = os.Stat(path); err != nil {
		return err
	}
	return k.disk.WriteFile(filepath.Join(k.dir, copyName), data, 0o600)
}

// stands reports whether the file is the one that was written last.
func (k *keeper) stands() bool {
	info, err := os.Stat(filepath.Join(k.dir, recordName))
	return err == nil && os.SameFile(info, k.written) && info.ModTime().Equal(k.written.ModTime())
}

// say tells a person once when writing begins to fail, and when it works again.
func (k *keeper) say(err error) {
	before := k.err()
	switch {
	case err != nil && (before == nil || cause(before) != cause(err)):
		k.log.Error("the health of the GPUs cannot be kept: a restart would forget it", "error", err)
	case err == nil && before != nil:
		k.log.Info("the health of the GPUs is kept again", "dir", k.dir)
	}
}

// cause is what is wrong with the disk, without the name of the file aside, which is another one each time.
func cause(err error) string {
	op := ""
	for path := (*fs.PathError)(nil); errors.As(err, &path); err = path.Err {
		op += path.Op + ": "
	}
	return op + err.Error()
}
