package resource_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/gpu/gputest"
	"github.com/gpu-agent/gpu-agent/pkg/resource"
)

func TestTheModelsOfADiskThatIsGoneAreNotMounted(t *testing.T) {
	there := map[string]bool{"/b/models": true, "/c/models": true, "/cache/models/disks/c": true, "/cache/models/disks/d": true}
	p, err := resource.NewPolicy(resource.Config{
		Models: "/cache/models", ModelsPath: "/models",
		ModelsDisks: []resource.ModelsDisk{
			{Name: "b", HostPath: "/b/models", Point: "/cache/models/disks/b"},
			{Name: "c", HostPath: "/c/models", Point: "/cache/models/disks/c"},
			{Name: "d", HostPath: "/d/models", Point: "/cache/models/disks/d"},
		},
		Exists: func(path string) bool { return there[path] },
	})
	require.NoError(t, err)
	s := gputest.Node(1)
	edits, err := p.Edits(s, []resource.ID{p.Offers(s)[0].Units[0].ID})
	require.NoError(t, err)
	require.Equal(t, []resource.Mount{
		{HostPath: "/cache/models", ContainerPath: "/models", ReadOnly: true},
		{HostPath: "/c/models", ContainerPath: "/models/disks/c", ReadOnly: true},
	}, edits.Mounts)
}
