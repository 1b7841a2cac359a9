package cache

import (
	"errors"
	"fmt"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// A file of which the origin sent other content than it should be is not fetched over and over: it may have tens of
// gigabytes. It is when the origin says otherwise of it, which each try asks, or a person asks for the model, or content
// that comes from elsewhere the next time, or is mended under the same name, may be right: after ten minutes, and then
// twice as long each time, up to a day.

// wrong is the file of which the origin sent wrong content last; the zero wrong is none.
type wrong struct {
	Ref  string       `json:"ref"`  // fingerprint of where from
	File model.File   `json:"file"` // as the origin named it then
	Sent model.Digest `json:"sent"` // what came
	// Same says that the same had come before, and that the file's version tells of each change of it.
	Same  bool      `json:"same,omitempty"`
	Tries int       `json:"tries"`
	At    time.Time `json:"at"` // of the last
	Text  string    `json:"text"`
}

const (
	// wrongTries are as many as it takes until a mirror's content, or what went wrong on the way, is not what came.
	wrongTries = 3
	wrongRetry = 24 * time.Hour // at most between two
)

// sentError is that what came of a file is not what it should be.
type sentError struct {
	file model.File
	sum  model.Digest
	text string
}

func (e *sentError) Error() string { return e.text }

// wrongContent is the error of a slot all of whose content is here, is sum, and is not what it should be.
func wrongContent(s *slot, sum model.Digest, text string) error {
	return &model.Error{Reason: "WrongDigest", Final: true, Text: "wrong content", Err: &sentError{*s.file, sum, text}}
}

// isOf reports whether the origin says of a file what it said when it sent wrong content.
func (w wrong) isOf(ref model.Ref, f model.File) bool {
	if f.Digest == "" {
		f.Digest, f.FirstUse = w.File.Digest, w.File.FirstUse // it was recorded here
	}
	return w.Ref == fingerprint(ref) && w.File == f
}

// never reports whether nothing but another word of the origin's, or a person's, can help.
func (w wrong) never() bool { return w.Same && w.Tries >= wrongTries }

// next is when it is fetched again.
func (w wrong) next() time.Time {
	wait := finalRetry
	for range w.Tries - 1 {
		wait = min(2*wait, wrongRetry)
	}
	return w.At.Add(wait)
}

// error says when it is fetched again.
func (w wrong) error(name string) error {
	when := "it is fetched again at " + w.next().UTC().Format("2006-01-02 15:04 UTC") + ", or once the origin says otherwise of it"
	if w.never() {
		when = "it is fetched again once the origin says otherwise of it"
	}
	return &model.Error{Reason: "WrongDigest", Final: true, Text: fmt.Sprintf("%s; %s, or by gpu-agent models pull %s", w.Text, when, name)}
}

// sentWrong refuses to fetch m where a file of it would only be wrong again. The worker on e calls it.
func (c *Cache) sentWrong(e *entry, ref model.Ref, m model.Manifest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := e.memory.Wrong
	if w.Tries == 0 || e.taken > e.answered || !w.never() && !w.next().After(time.Now()) {
		return nil
	}
	if _, here := c.blobs[w.File.Digest]; here {
		return nil // another model brought it
	}
	for _, f := range m.Files {
		if w.isOf(ref, f) {
			return w.error(e.name)
		}
	}
	return nil
}

// noteWrong remembers what the origin sent, if err is that it was wrong, and returns the error that says what becomes of
// it. c.mu is held.
func (c *Cache) noteWrong(e *entry, ref model.Ref, err error) error {
	sent, ok := errors.AsType[*sentError](err)
	if !ok {
		return err
	}
	m := e.memory
	w := wrong{Ref: fingerprint(ref), File: sent.file, Sent: sent.sum, Tries: 1, At: time.Now().UTC(), Text: "file " + sent.file.Path + ": " + sent.text}
	if before := m.Wrong; before.Ref == w.Ref && before.File == w.File {
		// A commit and a digest are what content should be: they stay when it is mended.
		tells := w.File.Version != "" && !ref.OfHub() && ref.Scheme != "oci"
		w.Tries, w.Same = before.Tries+1, tells && before.Sent == w.Sent
	}
	m.Wrong = w
	if err := c.remember(e, m); err != nil {
		c.log.Warn("that an origin sent wrong content is not kept over a restart", "model", e.name, "err", err)
		e.memory = m
	}
	return w.error(e.name)
}

// insist has what an origin sent wrong fetched again at once. c.mu is held.
func (c *Cache) insist(e *entry) error {
	if e.memory.Wrong.Tries == 0 {
		return nil
	}
	m := e.memory
	m.Wrong = wrong{}
	e.retryAt = time.Time{}
	defer c.changed()
	return c.remember(e, m)
}
