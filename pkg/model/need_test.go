package model

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNeedsAreReadAsPodsWriteThem(t *testing.T) {
	hub := func(path string) Ref { return Ref{Scheme: "hf", Host: "Org", Path: path} }
	for text, want := range map[string][]Need{
		"":                       nil,
		" llama , ,mistral@abc1": {{Name: "llama"}, {Name: "mistral", Revision: "abc1"}},
		"hf://Org/Llama_3.B":     {{Name: "llama_3.b", Source: hub("/Llama_3.B")}},
		"hf://Org/Llama@main":    {{Name: "llama", Source: hub("/Llama@main")}},
		"a=hf://Org/Llama@v=1":   {{Name: "a", Source: hub("/Llama@v=1")}},
		"s3://b/models/x/":       {{Name: "x", Source: Ref{Scheme: "s3", Host: "b", Path: "/models/x/"}}},
		"oci://r:5000/x/y:v1":    {{Name: "y", Source: Ref{Scheme: "oci", Host: "r:5000", Path: "/x/y:v1"}}},
	} {
		got, problems := ParseNeeds(text)
		require.Empty(t, problems, text)
		require.Equal(t, want, got, text)
	}
	for text, want := range map[string]string{
		"Llama":                      "model name",
		"a@":                         "want name@revision",
		"a@../x":                     "want name@revision",
		"a@1234567890123":            "want name@revision",
		"s3://b/x/../y":              "no ..",
		"s3://b/%2e%2e/y":            "no escaped characters",
		"https://h/x?sig=s":          "no query",
		"https://u:p@h/x":            "credentials in the URL",
		"a/b=s3://b/x":               "model name",
		strings.Repeat("a,", 17):     "more than 16 models",
		strings.Repeat("aaaa", 1025): "want at most 4096",
	} {
		_, problems := ParseNeeds(text)
		require.Len(t, problems, 1, text)
		require.ErrorContains(t, problems[0], want)
		require.NotContains(t, problems[0].Error(), "sig=s")
	}
	got, problems := ParseNeeds("ok,BAD,fine")
	require.Equal(t, []Need{{Name: "ok"}, {Name: "fine"}}, got, "one that is wrong does not take the others with it")
	require.Len(t, problems, 1)
}

func TestAPrefixEndsWithAWholePart(t *testing.T) {
	r := Ref{Scheme: "hf", Host: "org", Path: "/llama@main"}
	for prefix, want := range map[string]bool{
		"hf://org/": true, "hf://org": true, "hf://or": false, "hf://org/llama": true, "hf://org/lla": false, "hf://org/llama@main": true, "s3://org/": false, "hf://": true,
	} {
		require.Equal(t, want, r.Under([]string{"x://", prefix}), prefix)
	}
}
