package main

import (
	"context"
	"io"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAWaitThatIsInterruptedSaysForWhat(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "by-name", "m")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.EqualError(t, awaitDir(ctx, root, dir, 0, io.Discard),
		"interrupted: "+dir+" is not there: "+root+" has no by-name yet, which the agent makes in the models directory of its cache")
}
