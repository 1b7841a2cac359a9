package cdi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/gpu-agent/gpu-agent/internal/process"
)

// Child is a Generator that runs another process for each request. It is used by one goroutine.
type Child struct {
	Path string // of our own binary
	Args []string

	runner process.Runner
}

// Generate runs the child until it has answered, or until the deadline of ctx.
func (c *Child) Generate(ctx context.Context, q Request) (Result, error) {
	in, err := json.Marshal(q)
	if err != nil {
		return Result{}, err
	}
	out, err := c.runner.Run(ctx, process.Command{Path: c.Path, Args: c.Args, Name: os.Args[0], Stdin: in})
	switch {
	case errors.Is(err, process.ErrDeadline):
		return Result{}, errors.New("the driver did not answer in time")
	case err != nil:
		return Result{}, err
	}
	var result Result
	if err := json.Unmarshal(out, &result); err != nil {
		return Result{}, fmt.Errorf("answer of the generation: %w", err)
	}
	return result, nil
}
