package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vbauerster/mpb/v8/decor"
)

// TestANarrowTerminalHasFewerColumns joins the columns as mpb does, without the bar.
func TestANarrowTerminalHasFewerColumns(t *testing.T) {
	t.Parallel()
	line := func(name string, width int) string {
		before, after := columns(name)
		s, text := decor.Statistics{AvailableWidth: width, Total: 20 << 20, Current: 7 << 20}, ""
		for _, d := range append(before, after...) {
			more, n := d.Decor(s)
			s.AvailableWidth -= n
			text += more
		}
		require.GreaterOrEqual(t, s.AvailableWidth, 0, "%q in %d columns", text, width)
		return text
	}
	require.Regexp(t, `^llama 7\.0 MiB / 20\.0 MiB 35 % \S+ \S+ \S+$`, line("llama", 80))
	require.Equal(t, "llama 7.0 MiB / 20.0 MiB 35 %", line("llama", 30))
	require.Regexp(t, `^llama 35 %`, line("llama", 29), "100 % has to fit")
	require.Equal(t, "llama 35 %", line("llama", 12))
	require.Equal(t, "lla 35 %", line("llama", 9))
	require.Equal(t, " 35 %", line("llama", 6))
	require.Equal(t, "", line("llama", 2))
	long := strings.Repeat("m", 63)
	require.Equal(t, long[:34]+" 35 %", line(long, 40))
	for width := range 100 {
		require.NotRegexp(t, `B\d`, line("m", width), "%d columns", width)
	}
}
