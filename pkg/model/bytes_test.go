package model_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestSizesAreInPowersOf1024(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 40 << 30: "40.0 GiB",
		1<<40 - 1<<20: "1.0 TiB", 1e15: "909.5 TiB", math.MaxInt64: "8192.0 PiB",
	} {
		require.Equal(t, want, model.FormatBytes(n), n)
	}
	require.Equal(t, "79.6 GiB", model.FormatBytes(uint64(85_520_809_984)))
}
