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

	unknown string // what is said of a key that there is not
}

type problem struct {
	line int
	text string
}

// open reads where everything stands. The error is an Errors.
func open(name string, data []byte, atLeast string) (*file, *yaml.Node, error) {
	f := &file{
		name: name, lines: map[string]int{}, at: map[int]string{},
		unknown: "unknown key: see the reference for those that there are",
	}
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		return nil, nil, Errors{fmt.Sprintf("%s: empty: want at least %s", name, atLeast)}
	case err != nil:
		return nil, nil, Errors{fmt.Sprintf("%s: %v", name, err)}
	}
	if dec.Decode(new(yaml.Node)) == nil {
		return nil, nil, Errors{fmt.Sprintf("%s: holds more than one YAML document: want one", name)}
	}
	f.index("", root.Content[0])
	return f, root.Content[0], nil
}

// strict decodes data over what is in into. What is wrong is in f.found.
func (f *file) strict(data []byte, into any) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil {
		f.add(err)
	}
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
	f.found = append(f.found, problem{f.line(path), path + ": " + fmt.Sprintf(format, args...)})
}

// line is where the key is, or the innermost of its parents that is there.
func (f *file) line(path string) int {
	line := 0
	for ; line == 0 && path != ""; path = parent(path) {
		line = f.lines[path]
	}
	return line
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
			text = f.unknown
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
