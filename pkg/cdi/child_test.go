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

func TestTheChildIsAskedInJSONAndAnswersInJSON(t *testing.T) {
	got, err := shell(`grep -q '"units":\["GPU-a"\]' && echo '{"failed":{"GPU-a":"lost"}}'`).Generate(t.Context(), cdi.Request{Units: []string{"GPU-a"}})
	require.NoError(t, err)
	require.Equal(t, cdi.Result{Failed: map[string]string{"GPU-a": "lost"}}, got)
	_, err = shell(`echo half`).Generate(t.Context(), cdi.Request{})
	require.ErrorContains(t, err, "answer of the generation: invalid character")
}

func TestAChildThatHangsIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := shell(`exec sleep 60`).Generate(ctx, cdi.Request{})
	require.EqualError(t, err, "the driver did not answer in time")
}
