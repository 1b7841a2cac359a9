package sourcetest

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Faults are those that a source's New fails with, one line each: the cause, the key and what is wrong.
func Faults(t *testing.T, err error) (lines []string) {
	t.Helper()
	faults, ok := errors.AsType[web.Faults](err)
	require.True(t, ok, "%v", err)
	for _, f := range faults {
		lines = append(lines, []string{"setting", "content", "machine"}[f.Cause]+" "+f.Key+": "+f.Err.Error())
	}
	return lines
}

// Refused holds Check to what it says of references: of each the reason and part of the text, "" for one that is taken.
func Refused(t *testing.T, check func(model.Ref) error, refs map[string]string) {
	t.Helper()
	for source, want := range refs {
		err := check(Ref(t, source))
		if want == "" {
			require.NoError(t, err, source)
			continue
		}
		require.Error(t, err, source)
		require.True(t, model.IsFinal(err), source)
		require.Contains(t, model.ReasonOf(err)+" "+err.Error(), want, source)
	}
}
