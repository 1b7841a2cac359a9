package main

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/gpu-agent/gpu-agent/pkg/config"
)

// logging is a slog.Handler whose level and format can be changed while it, and all that were made of it, are in use.
type logging struct {
	level        *slog.LevelVar
	json         *atomic.Bool
	text, asJSON slog.Handler
}

func newLogging(c config.Log, w io.Writer) *logging {
	l := &logging{level: &slog.LevelVar{}, json: &atomic.Bool{}}
	opts := &slog.HandlerOptions{Level: l.level}
	l.text, l.asJSON = slog.NewTextHandler(w, opts), slog.NewJSONHandler(w, opts)
	l.set(c)
	return l
}

func (l *logging) set(c config.Log) {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // checked with the configuration
	l.level.Set(level)
	l.json.Store(c.Format == "json")
}

// Enabled implements slog.Handler.
func (l *logging) Enabled(_ context.Context, level slog.Level) bool { return level >= l.level.Level() }

// Handle implements slog.Handler.
func (l *logging) Handle(ctx context.Context, r slog.Record) error {
	if l.json.Load() {
		return l.asJSON.Handle(ctx, r)
	}
	return l.text.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (l *logging) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logging{l.level, l.json, l.text.WithAttrs(attrs), l.asJSON.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (l *logging) WithGroup(name string) slog.Handler {
	return &logging{l.level, l.json, l.text.WithGroup(name), l.asJSON.WithGroup(name)}
}
