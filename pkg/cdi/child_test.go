package cdi_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cdi"
)

func shell(script string) *cdi.Child {
	return &cdi.Child{Path: "/bin/sh", Args: []string{"-c", script}}
}

func TestTheChildsAnswerIsReadAndItsNoiseIsNot(t *testing.T) {
	got, err := shell(`echo noise >&2; cat >/dev/null; echo '{"failed":{"GPU-a":"lost"}}'`).Generate(t.Context(), cdi.Request{})
	require.NoError(t, err)
	require.Equal(t, cdi.Result{Failed: map[string]string{"GPU-a": "lost"}}, got)
}

func TestAChildThatDiesSaysItsLastWords(t *testing.T) {
	_, err := shell(`echo noise >&2; echo 'symbol lookup error: nvmlFoo' >&2; kill -SEGV $$`).Generate(t.Context(), cdi.Request{})
	require.EqualError(t, err, "signal: segmentation fault: symbol lookup error: nvmlFoo")
	_, err = shell(`echo half`).Generate(t.Context(), cdi.Request{})
	require.ErrorContains(t, err, "answer of the generation: invalid character")
}

func TestAChildThatHangsIsKilledAtTheDeadlineWithWhateverHoldsItsOutput(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	child := shell(`sleep 60 & exec sleep 60`)
	began := time.Now()
	_, err := child.Generate(ctx, cdi.Request{})
	require.EqualError(t, err, "the driver did not answer in time")
	require.Less(t, time.Since(began), 30*time.Second)
	_, err = child.Generate(ctx, cdi.Request{})
	require.Error(t, err, "and the next one is a new child")
}
