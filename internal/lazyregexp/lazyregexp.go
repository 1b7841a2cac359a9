// Package lazyregexp is for patterns in package variables. The commands of the agent are short: gpu-agent models wait
// runs in every init container, and compiling the tree's patterns took a fifth of its time.
package lazyregexp

import (
	"regexp"
	"sync"
)

// New is the compiled pattern, which is compiled at the first call, once, and panics there if it is none.
func New(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}
