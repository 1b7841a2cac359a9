package sourcetest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Ref parses a reference.
func Ref(t *testing.T, s string) model.Ref {
	r, err := model.ParseRef(s)
	require.NoError(t, err)
	return r
}

// Store is a store of objects in which a model is what begins with its name and a slash.
type Store struct {
	Source Source
	Root   string // what comes before a model's name in its reference, such as s3://models/
	Put    func(t *testing.T, key string, content []byte)
	// Dir marks a key as a directory, as people's tools do; nil where nobody does that.
	Dir     func(t *testing.T, key string)
	Digests bool // it names sha256s
}

// Origin is the store as one, with a reference to what is not there. With sums each model has the list of its digests.
func (s Store) Origin(t *testing.T, missing string, sums bool) Origin {
	all := map[string]map[string][]byte{}
	write := func(t *testing.T, name, path string, content []byte) {
		all[name][path] = content
		s.Put(t, name+"/"+path, content)
	}
	finish := func(t *testing.T, name string) model.Ref {
		if !sums {
			return Ref(t, s.Root+name)
		}
		s.Put(t, name+"/"+model.SumsName, Sums(all[name]))
		return Ref(t, s.Root+name+"/")
	}
	return Origin{
		Source: s.Source,
		Put: func(t *testing.T, name string, files map[string][]byte) model.Ref {
			if s.Dir != nil {
				s.Dir(t, name)
				s.Dir(t, name+"/tokenizer")
			}
			s.Put(t, name+"-other/x", []byte{1}) // not under it
			all[name] = map[string][]byte{}
			for path, content := range files {
				write(t, name, path, content)
			}
			return finish(t, name)
		},
		Change: func(t *testing.T, name, path string, content []byte) {
			write(t, name, path, content)
			finish(t, name)
		},
		File:    func(t *testing.T, name, path string) model.Ref { return Ref(t, s.Root+name+"/"+path) },
		Missing: Ref(t, missing),
		Digests: s.Digests || sums,
	}
}
