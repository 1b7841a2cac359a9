package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func modelsPull() *cobra.Command {
	var socket socketFlag
	var pinned bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "pull NAME [SOURCE]",
		Short: "Pull a model and wait until it is ready",
		Long: "Looks the model up at its source and waits until what is there now is ready. Without SOURCE that is\n" +
			"where the configuration says, or where the model came from before. A failure that trying again cannot\n" +
			"help ends it with exit code 1; others are shown and tried again, until --timeout if there is one.",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := pullRequest{Name: args[0], Pinned: pinned}
			if err := model.CheckName(in.Name); err != nil {
				return usageError{err}
			}
			if len(args) == 2 {
				in.Source = args[1]
				ref, err := model.ParseRef(in.Source)
				if err != nil {
					return usageError{err}
				}
				if !slices.Contains(config.Schemes, ref.Scheme) {
					return usageError{fmt.Errorf("source %s: scheme %q is not one of %s", ref, ref.Scheme, strings.Join(config.Schemes, ", "))}
				}
			}
			return follow(cmd.Context(), socket.client(), in, timeout, cmd.OutOrStdout())
		},
	}
	socket.add(cmd)
	cmd.Flags().BoolVar(&pinned, "pin", false, "never evict it")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up waiting after this long, with exit code 3; the pull goes on")
	return cmd
}

// follow asks for a model and shows its progress until that very request has come to an end.
func follow(ctx context.Context, c *client, in pullRequest, timeout time.Duration, out io.Writer) error {
	var asked pullAnswer
	if err := c.call(ctx, http.MethodPost, "/models/pull", in, &asked); err != nil {
		return err
	}
	show := newDisplay(ctx, out, in.Name)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var patience <-chan time.Time
	if timeout > 0 {
		patience = time.After(timeout)
	}
	for {
		m, err := c.model(ctx, in.Name)
		if err == nil && m.Asked < asked.Asked {
			// The agent started anew and knows of the wish, but not of this command.
			err = c.call(ctx, http.MethodPost, "/models/pull", in, &asked)
		}
		if err != nil {
			show.end()
			return err
		}
		switch over, err := outcome(m, asked.Asked); {
		case err != nil:
			show.end()
			return err
		case over:
			show.status(m)
			show.end()
			fmt.Fprintf(out, "%s is ready: %s, %s\n", in.Name, model.FormatBytes(m.Size), m.Path)
			return nil
		}
		show.status(m)
		if m.Answered >= asked.Asked || m.State == model.Pulling || m.Update != nil && m.Update.Waits() { // of this request, or what it waits for now
			show.note(obstacle(m))
		}
		select {
		case <-ctx.Done():
			show.end()
			return ctx.Err()
		case <-patience:
			show.end()
			return fmt.Errorf("%w after %s: model %s is %s", errTimeout, timeout, in.Name, progress(m))
		case <-tick.C:
		}
	}
}

// outcome says how the given request has ended, if it has.
func outcome(m model.Status, asked int64) (over bool, err error) {
	switch {
	case m.Answered < asked:
		return false, nil
	case m.Final:
		return true, fmt.Errorf("model %s: %s: %s", m.Name, m.Reason, m.Message)
	}
	return m.Reason == "" && m.State == model.Ready, nil
}

// model is the status of a named model.
func (c *client) model(ctx context.Context, name string) (model.Status, error) {
	s, err := c.state(ctx)
	switch {
	case err != nil:
		return model.Status{}, err
	case s.Cache == nil:
		return model.Status{}, errors.New("the model cache was closed meanwhile: the pull goes on when it is open again")
	case s.Cache.Model(name) == nil:
		return model.Status{}, fmt.Errorf("model %s is gone", name)
	}
	return *s.Cache.Model(name), nil
}

// display shows a pull. note tells what stands in its way, each thing once.
type display struct {
	status func(model.Status)
	note   func(text string)
	end    func()
}

func newDisplay(ctx context.Context, out io.Writer, name string) display {
	if f := terminal(out); f != nil {
		return barDisplay(ctx, f, name)
	}
	return plainDisplay(out, name)
}

// noter writes what is new.
func noter(out io.Writer, name string) func(string) {
	last := ""
	return func(text string) {
		if text != last && text != "" {
			fmt.Fprintf(out, "%s: %s\n", name, text)
		}
		last = text
	}
}

// coming is how far what is being pulled has come: the update, where the model is there already.
func coming(m model.Status) (size, done int64) {
	if m.Update != nil {
		return m.Update.Size, m.Update.Done
	}
	return m.Size, m.Done
}

// plainDisplay writes a line when the state changes and at each tenth.
func plainDisplay(out io.Writer, name string) display {
	last := ""
	return display{
		status: func(m model.Status) {
			now := string(m.State)
			if m.Reason != "" {
				now += " " + m.Reason
			}
			if size, done := coming(m); size > 0 && (m.State == model.Pulling || m.Update != nil) {
				now = fmt.Sprintf("Pulling %d %% of %s", 10*(10*done/size), model.FormatBytes(size))
			}
			if now != last && now != string(model.Ready) {
				fmt.Fprintf(out, "%s: %s\n", name, now)
			}
			last = now
		},
		note: noter(out, name),
		end:  func() {},
	}
}

// percentWidth is what stays free for the percentage, which is the last to go.
const percentWidth = len(" 100 %")

// columns are what stands before and after the bar. What does not fit into the terminal is left out as a whole.
func columns(name string) (before, after []decor.Decorator) {
	title := decor.Any(func(s decor.Statistics) string { return name[:max(0, min(len(name), s.AvailableWidth-percentWidth))] })
	size := decor.CountersKibiByte(" % .1f / % .1f")
	speed, left := decor.AverageSpeed(decor.SizeB1024(0), " % .1f"), spaced{decor.AverageETA(decor.ET_STYLE_GO)}
	return []decor.Decorator{title, fitting{size, percentWidth}},
		[]decor.Decorator{fitting{spaced{decor.Percentage()}, 0}, fitting{speed, 0}, fitting{left, 0}}
}

// spaced has a space before it.
type spaced struct{ decor.Decorator }

func (d spaced) Decor(s decor.Statistics) (string, int) {
	text, width := d.Decorator.Decor(s)
	return " " + text, width + 1
}

// fitting is nothing where it would leave less than rest columns.
type fitting struct {
	decor.Decorator
	rest int
}

func (d fitting) Decor(s decor.Statistics) (string, int) {
	if text, width := d.Decorator.Decor(s); width+d.rest <= s.AvailableWidth {
		return text, width
	}
	return "", 0
}

// barDisplay draws a bar with rate and time left, and notes above it.
func barDisplay(ctx context.Context, out io.Writer, name string) display {
	p := mpb.NewWithContext(ctx, mpb.WithOutput(out), mpb.WithWidth(48))
	before, after := columns(name)
	bar := p.AddBar(0, mpb.PrependDecorators(before...), mpb.AppendDecorators(after...), mpb.BarFillerTrim(),
		mpb.BarFillerMiddleware(func(base mpb.BarFiller) mpb.BarFiller {
			return mpb.BarFillerFunc(func(w io.Writer, s decor.Statistics) error {
				if s.AvailableWidth < 8 {
					return nil
				}
				s.AvailableWidth--
				_, err := io.WriteString(w, " ")
				return errors.Join(err, base.Fill(w, s))
			})
		}))
	return display{
		status: func(m model.Status) {
			if size, done := coming(m); size > 0 {
				bar.SetTotal(size, false)
				bar.SetCurrent(done)
			}
			if m.State == model.Ready && m.Update == nil {
				bar.SetTotal(m.Size, true)
			}
		},
		note: noter(p, name),
		end: func() {
			bar.Abort(false)
			p.Wait()
		},
	}
}
