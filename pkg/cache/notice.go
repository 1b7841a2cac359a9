package cache

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const (
	noticeEvery = time.Second
	noticeMost  = 64 << 10 // bytes that are read of one
)

func noticeDir(models string) string { return filepath.Join(models, "waiting") }

func noticePath(models, name string) string { return filepath.Join(noticeDir(models), name+".json") }

// notices has a file for each model that is not ready, in the directory that pods mount: whoever waits there has no right to
// talk to the agent. It is of now alone: none is left when ctx is done, or of an agent that was killed, and none need be on
// the disk. What cannot be written is tried again with the next change.
func (s *Set) notices(ctx context.Context, models string) {
	dir, shown := noticeDir(models), map[string]string{}
	_ = os.RemoveAll(dir)
	defer os.RemoveAll(dir)
	for {
		inv, changed := s.promised.Watch()
		now := map[string]string{}
		if inv != nil {
			for _, m := range inv.Models {
				if m.State != model.Ready {
					now[m.Name] = notice(m)
				}
			}
		}
		for name := range shown {
			if _, waits := now[name]; !waits && unposted(models, name) {
				delete(shown, name)
			}
		}
		for name, text := range now {
			if shown[name] != text && post(models, name, text) == nil {
				shown[name] = text
			}
		}
		if !sleep(ctx, noticeEvery) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// notice is what others may know of m. It changes with each hundredth.
func notice(m model.Status) string {
	done := m.Done
	if m.Size > 0 {
		done = m.Size * (100 * done / m.Size) / 100
	}
	text, err := json.Marshal(model.Status{Name: m.Name, State: m.State, Reason: m.Reason, Message: m.Message, Final: m.Final,
		RetryAt: m.RetryAt, Size: m.Size, Done: done})
	if err != nil {
		panic(err) // of strings and numbers
	}
	return string(text)
}

// unposted takes a notice away, and reports whether it is gone.
func unposted(models, name string) bool {
	err := os.Remove(noticePath(models, name))
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

// post replaces a notice as a whole.
func post(models, name, text string) error {
	if err := os.MkdirAll(noticeDir(models), 0o755); err != nil {
		return err
	}
	path := noticePath(models, name)
	next := filepath.Join(noticeDir(models), "."+name) // no model is called so
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return os.Rename(next, path)
}

// Notice is what the agent last said in the directory that pods mount of a model that is not ready: its state, how much is
// there, and why it does not come. It reports false where there is none: the model is ready, nobody asks for it, or no agent runs.
func Notice(models, name string) (model.Status, bool) {
	var m model.Status
	f, err := os.Open(noticePath(models, name))
	if err != nil {
		return m, false
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, noticeMost))
	return m, err == nil && json.Unmarshal(text, &m) == nil && m.Name == name
}
