package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Duration is a time.Duration written as 10s, 5m or 1h30m.
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	parsed, err := time.ParseDuration(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return bad(n, "want a duration such as 10s, 5m or 1h, got %q", n.Value)
	}
	*d = Duration(parsed)
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (d Duration) MarshalYAML() (any, error) { return d.String(), nil }

// Bytes is a size, written as a number of bytes or as Kubernetes writes quantities: 500Gi, 2T.
type Bytes int64

// Clock is a time of day since midnight, to the minute, written 22:00.
type Clock time.Duration

// minute counts from midnight.
func (c Clock) minute() int { return int(time.Duration(c) / time.Minute) }

// UnmarshalYAML implements yaml.Unmarshaler.
func (c *Clock) UnmarshalYAML(n *yaml.Node) error {
	t, err := time.Parse("15:04", n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return bad(n, "want a time of day such as \"22:00\", got %q", n.Value)
	}
	*c = Clock(t.Sub(time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)))
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (c Clock) MarshalYAML() (any, error) {
	return time.Time{}.Add(time.Duration(c)).Format("15:04"), nil
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (b *Bytes) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode && n.Value == "" {
		*b = 0
		return nil
	}
	q, err := resource.ParseQuantity(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return bad(n, "want a size such as 500Gi or 2T, got %q", n.Value)
	}
	size := q.Value() // rounded up: 5m is five thousandths of a byte
	if size <= 0 || size == math.MaxInt64 || q.Cmp(*resource.NewQuantity(size, resource.BinarySI)) != 0 {
		return bad(n, "want a size of whole bytes above 0 and below 8Ei, got %q", n.Value)
	}
	*b = Bytes(size)
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (b Bytes) MarshalYAML() (any, error) {
	if b == 0 {
		return "", nil
	}
	return resource.NewQuantity(int64(b), resource.BinarySI).String(), nil
}

// SourceURL is a model's reference.
type SourceURL struct{ model.Ref }

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *SourceURL) UnmarshalYAML(n *yaml.Node) error {
	ref, err := model.ParseRef(n.Value)
	if err != nil {
		return bad(n, "%v", err)
	}
	s.Ref = ref
	return nil
}

// MarshalYAML implements yaml.Marshaler. A query may hold a signature and is not shown, but for a hub, where
// it chooses files.
func (s SourceURL) MarshalYAML() (any, error) {
	if s.OfHub() {
		return s.URL(), nil
	}
	if s.Digest != "" {
		return s.String() + "#sha256=" + string(s.Digest), nil
	}
	return s.String(), nil
}

// bad is an error that the decoder collects with the others instead of stopping at it.
func bad(n *yaml.Node, format string, args ...any) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d column %d: %s", n.Line, n.Column, fmt.Sprintf(format, args...))}}
}

// Share is a part of a whole, written as 15% or as a size.
type Share struct {
	Percent int // 0 to 99
	Bytes   Bytes
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *Share) UnmarshalYAML(n *yaml.Node) error {
	*s = Share{}
	number, isPercent := strings.CutSuffix(n.Value, "%")
	if !isPercent {
		if n.Value == "" {
			return bad(n, "want a share such as 15%% or a size such as 100Gi; 0%% is nothing")
		}
		return s.Bytes.UnmarshalYAML(n)
	}
	percent, err := strconv.Atoi(number)
	if err != nil || percent < 0 || percent > 99 {
		return bad(n, "want 0%% to 99%%, or a size such as 100Gi, got %q", n.Value)
	}
	s.Percent = percent
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (s Share) MarshalYAML() (any, error) {
	if s.Bytes > 0 {
		return s.Bytes.MarshalYAML()
	}
	return strconv.Itoa(s.Percent) + "%", nil
}
