package arch_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	reasonForm = regexp.MustCompile("`([A-Z][A-Za-z]+)`")
	proofForm  = regexp.MustCompile("`([a-z0-9]+)\\.(Test[A-Za-z0-9]+)(?:/([^`]+))?`")
)

// TestEachFaultNamesATestThatIsThere holds docs/faults.md to the code: a reason is one that it gives, a test
// and the case in it are in the package that the row names.
func TestEachFaultNamesATestThatIsThere(t *testing.T) {
	root := filepath.Join("..", "..")
	table, err := os.ReadFile(filepath.Join(root, "docs", "faults.md"))
	require.NoError(t, err)
	code := sources(t, filepath.Join(root, "pkg", "*", "*.go"), filepath.Join(root, "pkg", "cache", "*", "*.go"), filepath.Join(root, "pkg", "cache", "source", "*", "*.go"))
	tests := map[string]map[string]string{} // text of each test file, by package
	for path, text := range code {
		if strings.HasSuffix(path, "_test.go") {
			pkg := filepath.Base(filepath.Dir(path))
			if tests[pkg] == nil {
				tests[pkg] = map[string]string{}
			}
			tests[pkg][path] = text
			delete(code, path)
		}
	}
	rows := 0
	for line := range strings.SplitSeq(string(table), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| Fault ") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), " |")
		require.Len(t, cells, 6, line)
		for _, reason := range reasonForm.FindAllStringSubmatch(cells[2], -1) {
			require.True(t, has(code, `"`+reason[1]+`"`), "no code gives the reason %s: %s", reason[1], line)
		}
		proofs := proofForm.FindAllStringSubmatch(cells[5], -1)
		require.NotEmpty(t, proofs, line)
		require.Len(t, proofs, strings.Count(cells[5], "`")/2, "want package.Test or package.Test/case: %s", cells[5])
		for _, p := range proofs {
			in := map[string]string{}
			for path, text := range tests[p[1]] {
				if strings.Contains(text, "func "+p[2]+"(t ") {
					in[path] = text
				}
			}
			require.NotEmpty(t, in, "package %s has no %s", p[1], p[2])
			require.True(t, p[3] == "" || has(in, `"`+p[3]+`"`), "%s.%s has no case %q", p[1], p[2], p[3])
		}
	}
	require.Greater(t, rows, 40, "the table was found")
}

func has(files map[string]string, text string) bool {
	for _, f := range files {
		if strings.Contains(f, text) {
			return true
		}
	}
	return false
}

func sources(t *testing.T, patterns ...string) map[string]string {
	files := map[string]string{}
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, path := range paths {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			files[path] = string(text)
		}
	}
	return files
}
