package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
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
	places
	nodes []place      // in the order of the file
	into  reflect.Type // of what strict decodes into
	found []problem

	unknown string // what is said of a key that there is not
}

// places says where each key of a file stands.
type places struct {
	name  string         // of the file; "": there is none
	lines map[string]int // of each path, such as "cache.models[1].name"
}

// place is where one value stands. Several may share a line.
type place struct {
	path         string
	line, column int
	value        string // of a scalar
	tag          string // what it is, such as !!map
	key          bool   // it is the key of path, not its value
}

type problem struct {
	line int
	path string
	text string
}

// open reads where everything stands. The error is an Errors.
func open(name string, data []byte, atLeast string) (*file, *yaml.Node, error) {
	f := &file{
		places:  places{name, map[string]int{}},
		unknown: "unknown key: see the reference for those that there are",
	}
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		return nil, nil, Errors{fmt.Sprintf("%s: empty: want at least %s", name, atLeast)}
	case err != nil:
		return nil, nil, Errors{syntax(name, err)}
	}
	switch err := dec.Decode(new(yaml.Node)); {
	case err == nil:
		return nil, nil, Errors{fmt.Sprintf("%s: holds more than one YAML document: want one", name)}
	case !errors.Is(err, io.EOF):
		return nil, nil, Errors{syntax(name, err)}
	}
	f.index("", root.Content[0])
	return f, root.Content[0], nil
}

// strict decodes data over what is in into. What is wrong is in f.found; what did not parse keeps its value,
// so that the rest can still be checked. It reports whether anything was decoded at all.
func (f *file) strict(data []byte, into any) bool {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	f.into = reflect.TypeOf(into)
	err := dec.Decode(into)
	if err == nil {
		return true
	}
	f.add(err)
	return errors.As(err, new(*yaml.TypeError))
}

var syntaxForm = lazyregexp.New(`^yaml: line (\d+): (.*)$`)

// syntax is the line for a file that is no YAML.
func syntax(name string, err error) string {
	m := syntaxForm().FindStringSubmatch(err.Error())
	if m == nil {
		return fmt.Sprintf("%s: %v", name, err)
	}
	text := m[2]
	if strings.Contains(text, "cannot start any token") {
		text += ": indent with blanks, not with tabs, and quote a value that starts with @ or `"
	}
	return fmt.Sprintf("%s:%s: not YAML: %s", name, m[1], text)
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
		f.lines[path] = n.Line
		f.nodes = append(f.nodes, place{path: path, line: n.Line, column: n.Column, value: n.Value, tag: n.ShortTag()})
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			sub := strings.TrimPrefix(path+"."+key.Value, ".")
			f.nodes = append(f.nodes, place{path: sub, line: key.Line, column: key.Column, value: key.Value, tag: key.ShortTag(), key: true})
			f.index(sub, n.Content[i+1])
			f.lines[sub] = key.Line
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			f.index(path+"["+strconv.Itoa(i)+"]", item)
		}
	}
}

// pathAt is the path of the first value or key on a line for which ok; "" when there is none.
func (f *file) pathAt(line int, ok func(place) bool) string {
	for _, n := range f.nodes {
		if n.line == line && ok(n) {
			return n.path
		}
	}
	return ""
}

// wrong records that the value at path is not what it should be, unless it did not even parse.
func (f *file) wrong(path, format string, args ...any) {
	if f.said(path) {
		return
	}
	f.found = append(f.found, problem{f.line(path), path, fmt.Sprintf(format, args...)})
}

// said reports whether something was found wrong at path.
func (f *file) said(path string) bool {
	return slices.ContainsFunc(f.found, func(p problem) bool { return p.path == path })
}

// typeAt is the name of the type of what is at path in a value of type t; "" where there is nothing.
func typeAt(t reflect.Type, path string) string {
	for _, key := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' }) {
		if t = elem(t); t == nil {
			return ""
		}
		if t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			t = t.Elem()
			continue
		}
		t = field(t, key)
	}
	if t = elem(t); t == nil {
		return ""
	}
	return t.String()
}

// elem is t, or what it points to.
func elem(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// field is the type of the field of a struct that a key fills; nil where there is none.
func field(t reflect.Type, key string) reflect.Type {
	if t.Kind() != reflect.Struct {
		return nil
	}
	for i := range t.NumField() {
		f := t.Field(i)
		switch name, options, _ := strings.Cut(f.Tag.Get("yaml"), ","); {
		case options == "inline":
			if in := field(elem(f.Type), key); in != nil {
				return in
			}
		case name == key:
			return f.Type
		}
	}
	return nil
}

// line is where the key is, or the innermost of its parents that is there.
func (p places) line(path string) int {
	line := 0
	for ; line == 0 && path != ""; path = parent(path) {
		line = p.lines[path]
	}
	return line
}

// at is the key at path with the file and the line before it.
func (p places) at(path string) string { return p.of(path, p.line(path)) }

func (p places) of(path string, line int) string {
	at := p.name
	if line > 0 {
		at += ":" + strconv.Itoa(line)
	}
	if at != "" && path != "" {
		at += ": "
	}
	return at + path
}

func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

func (f *file) oneOf(path, value string, want ...string) {
	if !slices.Contains(want, value) {
		f.wrong(path, "want one of %s, got %q", strings.Join(want, ", "), value)
	}
}

func (f *file) within(path string, value, low, high int) {
	if value < low || value > high {
		f.wrong(path, "want %d to %d, got %d", low, high, value)
	}
}

func (f *file) atLeast(path string, value Duration, low time.Duration) {
	if time.Duration(value) < low {
		f.wrong(path, "want at least %s, got %s", low, value)
	}
}

var (
	lineForm    = lazyregexp.New(`^line (\d+)(?: column (\d+))?: (.*)$`)
	unknownForm = lazyregexp.New(`^field (\S+) not found in type .*$`)
	twiceForm   = lazyregexp.New(`^mapping key "(.*)" already defined at line (\d+)$`)
	typeForm    = lazyregexp.New("^cannot unmarshal !!(\\w+) (`[^`]*` )?into (.*)$")
)

// add turns the decoder's messages into ours: with the path of the key, and without Go's types.
func (f *file) add(err error) {
	var types *yaml.TypeError
	if !errors.As(err, &types) {
		f.found = append(f.found, problem{0, "", err.Error()})
		return
	}
	for _, msg := range types.Errors {
		f.found = append(f.found, f.problem(msg))
	}
}

// problem finds the place of one message. The decoder names the line alone: on one with several keys the
// offending text tells them apart.
func (f *file) problem(msg string) problem {
	m := lineForm().FindStringSubmatch(msg)
	if m == nil {
		return problem{0, "", msg}
	}
	line, _ := strconv.Atoi(m[1])
	column, _ := strconv.Atoi(m[2]) // 0: not told
	text := m[3]
	if u := unknownForm().FindStringSubmatch(text); u != nil {
		path := f.pathAt(line, func(n place) bool { return n.key && n.value == u[1] })
		return problem{line, cmp.Or(path, u[1]), f.unknown}
	}
	if t := twiceForm().FindStringSubmatch(text); t != nil {
		return problem{line, t[1], "given twice, first on line " + t[2]}
	}
	if t := typeForm().FindStringSubmatch(text); t != nil {
		shown := strings.Trim(strings.TrimSpace(t[2]), "`")
		prefix, cut := strings.CutSuffix(shown, "...") // the decoder's, of more than ten characters
		same := func(n place) bool {
			return n.tag == "!!"+t[1] && (n.value == shown || cut && len(n.value) > 10 && strings.HasPrefix(n.value, prefix))
		}
		// On one line there may be several of the kind, a section within a section: this one was to be of that type.
		path := f.pathAt(line, func(n place) bool { return !n.key && same(n) && typeAt(f.into, n.path) == t[3] && !f.said(n.path) })
		if path == "" {
			path = f.pathAt(line, same) // of a section whose keys are numbers
		}
		return problem{line, path, fmt.Sprintf("want %s, got %s%s", plainType(t[3]), plainTag(t[1]), strings.TrimRight(" "+t[2], " "))}
	}
	return problem{line, f.pathAt(line, func(n place) bool { return !n.key && n.column == column }), text}
}

// plainTag names a value of the file as plainType names what is wanted.
func plainTag(tag string) string {
	switch tag {
	case "map":
		return "a section of keys"
	case "seq":
		return "a list"
	case "str":
		return "text"
	case "int", "float":
		return "the number"
	case "bool":
		return "true or false:"
	}
	return tag
}

func plainType(goType string) string {
	switch {
	case goType == "bool":
		return "true or false"
	case goType == "int", goType == "uint64":
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
		all = append(all, f.of(p.path, p.line)+": "+p.text)
	}
	return all
}
