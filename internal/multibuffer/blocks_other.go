//go:build !amd64

package multibuffer

const together = false

func blocks(*[lanes]state, *[lanes]*byte, int, *[64]uint32) { panic("not together") }
