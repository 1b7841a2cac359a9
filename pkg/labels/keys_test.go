package labels

import (
	"flag"
	"maps"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

var update = flag.Bool("update", false, "write the generated documents")

func TestTheDocumentIsUpToDate(t *testing.T) {
	t.Parallel()
	const path = "../../docs/LABELS.md"
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(document()), 0o644))
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, document(), string(got), "run: go test ./pkg/labels -run Document -update")
}

func TestTheTableNamesEveryLabelAndNoOther(t *testing.T) {
	t.Parallel()
	s := gputest.Node(8)
	s.Simulated = true
	got := For(Input{Snapshot: s, Inventory: &model.Inventory{Models: []model.Status{{Name: "m", State: model.Ready}}}})
	for _, strategy := range []string{resource.MIGSingle, resource.MIGMixed} {
		maps.Copy(got, For(of(t, resource.Config{MIGStrategy: strategy}, split(gputest.Node(1), 0, "1g.10gb"))))
	}
	placeholder := regexp.MustCompile(`<[a-z]+>`)
	for _, k := range keys() {
		require.Regexp(t, validValue, k.example)
		form := regexp.MustCompile("^" + placeholder.ReplaceAllString(regexp.QuoteMeta(k.name), "[^/]+") + "$")
		found := 0
		for key := range got {
			if form.MatchString(key) {
				delete(got, key)
				found++
			}
		}
		require.Equal(t, 1, found, k.name)
	}
	require.Empty(t, got, "labels that the table lacks")
	require.False(t, strings.Contains(document(), "\t"))
}
