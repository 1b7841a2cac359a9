package model_test

import (
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

var hex64 = strings.Repeat("0123456789abcdef", 4)

func TestParseRefTakesReferencesApart(t *testing.T) {
	for s, want := range map[string]model.Ref{
		"s3://bucket":                          {Scheme: "s3", Host: "bucket"},
		"s3://bucket/a/b":                      {Scheme: "s3", Host: "bucket", Path: "/a/b"},
		"https://host:8443/m%20x?sig=1":        {Scheme: "https", Host: "host:8443", Path: "/m%20x", Query: "sig=1"},
		"https://h/f#sha256=" + hex64:          {Scheme: "https", Host: "h", Path: "/f", Digest: model.Digest(hex64)},
		"https://h/f#sha256=" + upper(hex64):   {Scheme: "https", Host: "h", Path: "/f", Digest: model.Digest(hex64)},
		"http://[::1]:80/f":                    {Scheme: "http", Host: "[::1]:80", Path: "/f"},
		"https://h/a?x=secret#sha256=" + hex64: {Scheme: "https", Host: "h", Path: "/a", Query: "x=secret", Digest: model.Digest(hex64)},
	} {
		t.Run(s, func(t *testing.T) {
			got, err := model.ParseRef(s)
			require.NoError(t, err)
			require.Equal(t, want, got)
			require.NotContains(t, got.String(), "secret")
		})
	}
}

func upper(s string) string { return strings.ToUpper(s) }

func TestParseRefSaysWhatIsWrongWithoutSecrets(t *testing.T) {
	for s, want := range map[string]string{
		"":                                   "want a URL",
		"org/name":                           "want a URL",
		"https:///f":                         "no host or bucket",
		"https://u:secret@h/f":               "credentials in the URL are not accepted",
		"https://h/f#sha256=12":              "want 64 hexadecimal digits",
		"https://h/f#md5=12":                 "want #sha256=",
		"https://u:secret@h/%zz?x=secret":    "want a URL",
		"https://h/f?token=secret#sha256=zz": "want 64 hexadecimal digits",
	} {
		t.Run(s, func(t *testing.T) {
			_, err := model.ParseRef(s)
			require.ErrorContains(t, err, want)
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"s3://bucket/a/b", "https://h/f?x=1#sha256=" + hex64, "https://u:p@h/f", "://", "https://h/%2e%2e/x", "hf://org/name@rev"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := model.ParseRef(s)
		if err != nil {
			return
		}
		if r.Scheme == "" || r.Host == "" || r.Digest != "" && len(r.Digest) != 64 {
			t.Fatalf("%q became %+v", s, r)
		}
		again, err := model.ParseRef(r.URL())
		if err != nil {
			t.Fatalf("%q became %q, which does not parse: %v", s, r.URL(), err)
		}
		again.Digest = r.Digest
		if again != r {
			t.Fatalf("%q became %+v and then %+v", s, r, again)
		}
	})
}

func TestCheckPath(t *testing.T) {
	for _, p := range []string{"a", "a/b.c", "...", "a..b", "sub/dir/model-00001-of-00002.safetensors", "ü/ß", " "} {
		require.NoError(t, model.CheckPath(p), p)
	}
	for p, want := range map[string]string{
		"": "empty", ".": "empty", "/a": "absolute", "..": "leaves", "../a": "leaves", "a/../../b": "leaves",
		"a//b": "not clean", "a/": "not clean", "./a": "not clean", `a\b`: "backslash", "a\x00": "control",
		"a\nb": "control", "\xff": "not UTF-8", strings.Repeat("a", 256): "longer than 255",
		strings.Repeat("a/", 600) + "a": "longer than 1024",
	} {
		require.ErrorContains(t, model.CheckPath(p), want, "%q", p)
	}
}

func FuzzCheckPath(f *testing.F) {
	for _, p := range []string{"a/b", "../a", "/etc/passwd", "a/../../b", `..\a`, "a\x00b", ".", "a/./b", "\xff"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if model.CheckPath(p) != nil {
			return
		}
		in := path.Join("/root", p)
		if in != "/root/"+p || strings.ContainsRune(p, 0) || !utf8.ValidString(p) {
			t.Fatalf("%q is accepted and becomes %q", p, in)
		}
		for part := range strings.SplitSeq(p, "/") {
			if part == ".." || part == "." || part == "" || len(part) > 255 {
				t.Fatalf("%q is accepted with a part %q", p, part)
			}
		}
	})
}

func TestCheckName(t *testing.T) {
	for _, n := range []string{"a", "llama-3.1-8b", "a_b", "0", strings.Repeat("a", 63)} {
		require.NoError(t, model.CheckName(n), n)
	}
	for _, n := range []string{"", "A", "-a", "a-", ".a", "a.", "a/b", "a+b", "a b", "..", strings.Repeat("a", 64), "a\n"} {
		require.Error(t, model.CheckName(n), "%q", n)
	}
}

func TestReasonsSurviveWrapping(t *testing.T) {
	e := &model.Error{Reason: "Forbidden", Text: "no", Final: true}
	require.Equal(t, "Forbidden", model.ReasonOf(wrap{e}))
	require.True(t, model.IsFinal(wrap{e}))
	require.Equal(t, "Failed", model.ReasonOf(wrap{nil}))
	require.False(t, model.IsFinal(nil))
}

type wrap struct{ err error }

func (w wrap) Error() string { return "wrapped" }
func (w wrap) Unwrap() error { return w.err }

func TestRevision12FitsLabelsAndDirectories(t *testing.T) {
	for in, want := range map[string]string{
		"0123456789abcdef0123456789abcdef01234567": "0123456789ab", "r1": "r1", "sha256:" + hex64: "0123456789ab",
		`"etag-5"`: "etag-5", "../../../etc": "etc", "v1.2.3-rc.11x": "v1.2.3-rc.11", "0123456789.-x": "0123456789",
		"": "unknown", "日本": "unknown",
	} {
		require.Equal(t, want, model.Revision12(in), "%q", in)
	}
}
