package cache

// Line is the way to origins: how many streams there are, and how fast they may be. Caches that share one keep to it
// together. It is safe for concurrent use.
type Line struct {
	streams *streams
	pace    *pace
}

// NewLine makes a way with so many concurrent reads at most; 0 means 64.
func NewLine(most int, b Bandwidth) *Line {
	if most == 0 {
		most = defaultStreams
	}
	return &Line{streams: newStreams(most), pace: &pace{plan: b}}
}
