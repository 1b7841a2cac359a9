package model_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestAFilterChoosesFiles(t *testing.T) {
	repo := "README.md config.json model.safetensors onnx/decoder/model.onnx onnx/x.json original/consolidated.PTH pytorch_model.bin"
	for name, c := range map[string]struct{ query, files, want string }{
		"pickle is left out":             {"", repo, "README.md config.json model.safetensors onnx/decoder/model.onnx onnx/x.json"},
		"pickle is allowed":              {"allowPickle=true", repo, repo},
		"a star crosses directories":     {"include=*.json", repo, "config.json onnx/x.json"},
		"a directory":                    {"include=onnx/", repo, "onnx/decoder/model.onnx onnx/x.json"},
		"all but a directory":            {"exclude=onnx/&exclude=*.md", repo, "config.json model.safetensors"},
		"exclude wins":                   {"include=*.json&exclude=on*", repo, "config.json"},
		"a class, the hub's way":         {"include=[!r]*.json", "r.json c.json", "c.json"},
		"pickle alone":                   {"", "config.json pytorch_model.bin", "Pickle: pytorch_model.bin may run code"},
		"pickle that nobody asked for":   {"include=*.json", "config.json pytorch_model.bin", "config.json"},
		"GGUF beside pickle":             {"", "m.GGUF m.pt", "m.GGUF"},
		"nothing left":                   {"include=*.gguf", repo, "Empty: none of 7 files is left"},
		"a model without weights of its": {"", "a.json", "a.json"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := model.ParseFilter(c.query)
			require.NoError(t, err)
			again, err := model.ParseFilter(f.Query())
			require.NoError(t, err)
			require.Equal(t, f, again)
			var files []model.File
			for p := range strings.FieldsSeq(c.files) {
				files = append(files, model.File{Path: p})
			}
			kept, err := f.Files(files)
			if reason, text, bad := strings.Cut(c.want, ": "); bad {
				require.Equal(t, reason, model.ReasonOf(err))
				require.ErrorContains(t, err, text)
				require.True(t, model.IsFinal(err))
				return
			}
			require.NoError(t, err)
			var got []string
			for _, k := range kept {
				got = append(got, k.Path)
			}
			require.Equal(t, c.want, strings.Join(got, " "))
		})
	}
	for query, want := range map[string]string{
		"include=[":        "want one such as *.safetensors",
		"include=":         "want one such as *.safetensors",
		"exclude=x[":       "want one such as *.safetensors",
		"allowpickle=true": "want include=<pattern>",
		"allowPickle=yes":  "want include=<pattern>",
		"%zz":              "want key=value",
	} {
		_, err := model.ParseFilter(query)
		require.ErrorContains(t, err, want, query)
	}
}
