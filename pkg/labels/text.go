package labels

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// maxLength is the API server's limit on a label's value and on the name part of its key.
const maxLength = 63

const unknown = "unknown"

// sanitise is GFD's: drop what is not a letter, a digit, "-", "_", "." or a blank, and join the words
// with "-". Beyond it, a first or last character that is no letter or digit goes too: the API server
// refuses it, and the whole set with it.
func sanitise(s string) string {
	kept := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("-_. ", r):
			return r
		}
		return -1
	}, s)
	return trim(strings.Join(strings.Fields(kept), "-"))
}

func trim(s string) string { return strings.Trim(s, "-_.") }

// fit cuts a sanitised text to at most limit bytes. A cut text ends in eight digits of the sha256 of
// the whole, so that two long names that begin alike stay two.
func fit(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	tail := "-" + hex.EncodeToString(sum[:4])
	return s[:limit-len(tail)] + tail
}
