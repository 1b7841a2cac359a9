package process_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/internal/process"
)

func shell(script string) process.Command {
	return process.Command{Path: "/bin/sh", Args: []string{"-c", script}}
}

func TestTheAnswerIsReadAndTheNoiseIsNot(t *testing.T) {
	var r process.Runner
	c := shell(`echo noise >&2; cat; echo " $V"`)
	c.Stdin, c.Env = []byte("in"), []string{"V=out"}
	out, err := r.Run(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, "in out\n", string(out))
}

func TestAProgramThatDiesSaysItsLastWords(t *testing.T) {
	var r process.Runner
	_, err := r.Run(t.Context(), shell(`echo noise >&2; echo 'symbol lookup error: nvmlFoo' >&2; kill -SEGV $$`))
	require.EqualError(t, err, "signal: segmentation fault: symbol lookup error: nvmlFoo")
	_, err = r.Run(t.Context(), shell(`exit 3`))
	require.EqualError(t, err, "exit status 3")
	_, err = r.Run(t.Context(), process.Command{Path: "/no/such/program"})
	require.ErrorContains(t, err, "no such file or directory")
}

func TestAProgramThatHangsIsKilledWithWhateverHoldsItsOutput(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var r process.Runner
	began := time.Now()
	_, err := r.Run(ctx, shell(`sleep 5 & exec sleep 60`))
	require.ErrorIs(t, err, process.ErrDeadline)
	require.Less(t, time.Since(began), 30*time.Second)
	_, err = r.Run(t.Context(), shell(`true`))
	require.NoError(t, err, "it is gone, and the next may run")
}
