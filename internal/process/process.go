// Package process runs other programs that may never come back: one that sits in an uninterruptible call
// into a driver outlives even SIGKILL.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// reapPatience is how long a killed program has to go.
const reapPatience = 2 * time.Second

var (
	// ErrDeadline says that the program was killed because it did not end in time.
	ErrDeadline = errors.New("no answer in time")
	// ErrStuck says that a program could not be killed; until it has gone, no other is started.
	ErrStuck = errors.New("hangs and cannot be killed")
)

// Command is a program to run.
type Command struct {
	Path  string
	Args  []string
	Env   []string // besides our own
	Name  string   // argv[0]; default Path
	Stdin []byte
}

// Runner runs one program at a time. The zero Runner is ready to use, by one goroutine.
type Runner struct {
	stuck <-chan result // of a program that could not be killed; nil when there is none
}

type result struct {
	out []byte
	err error
}

// Run returns what the program wrote to its standard output, once it has ended. It returns shortly after ctx
// is done in any case. An error of the program's has the last line of its standard error.
func (r *Runner) Run(ctx context.Context, c Command) ([]byte, error) {
	if r.stuck != nil {
		select {
		case <-r.stuck:
			r.stuck = nil
		default:
			return nil, fmt.Errorf("an earlier call %w", ErrStuck)
		}
	}
	done := make(chan result, 1)
	go func() {
		out, err := run(ctx, c)
		done <- result{out, err}
	}()
	select {
	case got := <-done:
		return got.out, got.err
	case <-ctx.Done():
	}
	select {
	case got := <-done:
		return got.out, got.err
	case <-time.After(reapPatience):
		r.stuck = done
		return nil, ErrStuck
	}
}

func run(ctx context.Context, c Command) ([]byte, error) {
	var out, log bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	if c.Name != "" {
		cmd.Args[0] = c.Name
	}
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.Stdin), &out, &log
	cmd.WaitDelay = reapPatience / 2 // a child of its own may hold its output
	err := cmd.Run()
	switch {
	case err == nil:
		return out.Bytes(), nil
	case ctx.Err() != nil:
		return nil, ErrDeadline
	case log.Len() > 0:
		return nil, fmt.Errorf("%w: %s", err, lastLine(log.String()))
	}
	return nil, err
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
