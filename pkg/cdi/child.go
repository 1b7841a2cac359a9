package cdi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// reapPatience is how long a killed child has to go: one that sits in an uninterruptible call into the
// driver does not.
const reapPatience = 2 * time.Second

// Child is a Generator that runs another process for each request. It is used by one goroutine.
type Child struct {
	Path string // of our own binary
	Args []string

	stuck <-chan outcome // of a child that could not be killed; nil when there is none
}

type outcome struct {
	result Result
	err    error
}

// Generate runs the child until it has answered, or until the deadline of ctx.
func (c *Child) Generate(ctx context.Context, q Request) (Result, error) {
	if c.stuck != nil {
		select {
		case <-c.stuck:
			c.stuck = nil
		default:
			return Result{}, errors.New("an earlier generation still hangs in the driver and cannot be killed")
		}
	}
	done := make(chan outcome, 1)
	go func() {
		result, err := c.once(ctx, q)
		done <- outcome{result, err}
	}()
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
	}
	select {
	case o := <-done:
		return o.result, o.err
	case <-time.After(reapPatience):
		c.stuck = done
		return Result{}, errors.New("the generation hangs in the driver and cannot be killed")
	}
}

func (c *Child) once(ctx context.Context, q Request) (Result, error) {
	in, err := json.Marshal(q)
	if err != nil {
		return Result{}, err
	}
	var out, log bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Args[0] = os.Args[0] // what ps shows
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &log
	cmd.WaitDelay = reapPatience / 2
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return Result{}, errors.New("the driver did not answer in time")
		}
		return Result{}, fmt.Errorf("%w: %s", err, lastLine(log.String()))
	}
	var result Result
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		return Result{}, fmt.Errorf("answer of the generation: %w", err)
	}
	return result, nil
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
