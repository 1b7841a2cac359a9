package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	apiVersion = "gpu-agent.dev/v1alpha1"
	kind       = "Config"
)

// Errors is everything that is wrong with a file, one line each.
type Errors []string

func (e Errors) Error() string { return strings.Join(e, "\n") }

// file is a parsed file: where each key stands, and what was found wrong so far.
type file struct {
	name  string
	lines map[string]int // of each path, such as "cache.models[1].name"
	at    map[int]string // the last path on a line
	found []problem
}

type problem struct {
	line int
	text string
}

// decode reads data over the defaults in c. The error is an Errors.
func decode(name string, data []byte, c *Config) (*file, error) {
	f := &file{name: name, lines: map[string]int{}, at: map[int]string{}}
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		return nil, Errors{fmt.Sprintf("%s: empty: want at least apiVersion: %s and kind: %s", name, apiVersion, kind)}
	case err != nil:
		return nil, Errors{fmt.Sprintf("%s: %v", name, err)}
	}
	if dec.Decode(new(yaml.Node)) == nil {
		return nil, Errors{fmt.Sprintf("%s: holds more than one YAML document: want one", name)}
	}
	f.index("", root.Content[0])

	f.header(root.Content[0])
	whole := struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
		*Config    `yaml:",inline"`
	}{Config: c}
	strict := yaml.NewDecoder(bytes.NewReader(data))
	strict.KnownFields(true)
	if err := strict.Decode(&whole); err != nil {
		f.add(err)
	}
	return f, f.err()
}

// header checks the two lines that every file has.
func (f *file) header(root *yaml.Node) {
	got := map[string]string{}
	for i := 0; root.Kind == yaml.MappingNode && i+1 < len(root.Content); i += 2 {
		got[root.Content[i].Value] = root.Content[i+1].Value
	}
	if got["apiVersion"] != apiVersion {
		f.wrong("apiVersion", "want %s, got %q", apiVersion, got["apiVersion"])
	}
	if got["kind"] != kind {
		f.wrong("kind", "want %s, got %q", kind, got["kind"])
	}
}

func (f *file) index(path string, n *yaml.Node) {
	if path != "" {
		f.note(path, n.Line)
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			sub := strings.TrimPrefix(path+"."+key.Value, ".")
			f.index(sub, n.Content[i+1])
			f.note(sub, key.Line)
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			f.index(path+"["+strconv.Itoa(i)+"]", item)
		}
	}
}

func (f *file) note(path string, line int) {
	f.lines[path] = line
	// The outermost key of a line is noted last; the innermost is the one that a message is about.
	if len(path) > len(f.at[line]) {
		f.at[line] = path
	}
}

// wrong records that the value at path is not what it should be.
func (f *file) wrong(path, format string, args ...any) {
	line := 0
	for p := path; line == 0 && p != ""; p = parent(p) {
		line = f.lines[p]
	}
	f.found = append(f.found, problem{line, path + ": " + fmt.Sprintf(format, args...)})
}

func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

func (f *file) oneOf(path, value string, want ...string) {
	if !slices.Contains(want, value) {
		f.wrong(path, "want one of %s, got %q", strings.Join(want, ", "), value)
	}
}

func (f *file) atLeast(path string, value Duration, low time.Duration) {
	if time.Duration(value) < low {
		f.wrong(path, "want at least %s, got %s", low, value)
	}
}

var (
	lineForm    = regexp.MustCompile(`^line (\d+): (.*)$`)
	unknownForm = regexp.MustCompile(`^field (\S+) not found in type .*$`)
	twiceForm   = regexp.MustCompile(`^mapping key "(.*)" already defined at line (\d+)$`)
	typeForm    = regexp.MustCompile("^cannot unmarshal !!(\\w+) (`[^`]*` )?into (.*)$")
)

// add turns the decoder's messages into ours: with the path of the key, and without Go's types.
func (f *file) add(err error) {
	var types *yaml.TypeError
	if !errors.As(err, &types) {
		f.found = append(f.found, problem{0, err.Error()})
		return
	}
	for _, msg := range types.Errors {
		line, text := 0, msg
		if m := lineForm.FindStringSubmatch(msg); m != nil {
			line, _ = strconv.Atoi(m[1])
			text = m[2]
		}
		path := f.at[line]
		if m := unknownForm.FindStringSubmatch(text); m != nil {
			text = "unknown key: see the reference for those that there are"
			if path == "" || !strings.HasSuffix(path, m[1]) {
				path = m[1]
			}
		} else if m := twiceForm.FindStringSubmatch(text); m != nil {
			path, text = m[1], "given twice, first on line "+m[2]
		} else if m := typeForm.FindStringSubmatch(text); m != nil {
			text = fmt.Sprintf("want %s, got %s%s", plainType(m[3]), m[1], strings.TrimRight(" "+m[2], " "))
		}
		f.found = append(f.found, problem{line, strings.TrimPrefix(path+": "+text, ": ")})
	}
}

func plainType(goType string) string {
	switch {
	case goType == "bool":
		return "true or false"
	case goType == "int":
		return "a whole number"
	case goType == "string":
		return "text"
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	}
	return "a section of keys"
}

// err is everything found so far, in the order of the file.
func (f *file) err() error {
	if len(f.found) == 0 {
		return nil
	}
	slices.SortStableFunc(f.found, func(a, b problem) int { return a.line - b.line })
	var all Errors
	for _, p := range f.found {
		at := f.name
		if p.line > 0 {
			at += ":" + strconv.Itoa(p.line)
		}
		all = append(all, at+": "+p.text)
	}
	return all
}
