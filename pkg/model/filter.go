package model

import (
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
)

// Filter chooses among the files of a repository. The zero value takes all but pickle files.
//
// A pattern is a shell's: * and ? stand for "/" too, as in the hub's own client, so that "*.json" is every
// JSON file; one that ends with "/" is all of a directory.
type Filter struct {
	Include     []string // a file matches one of these; none given: every file does
	Exclude     []string // and none of these
	AllowPickle bool     // take files that may run code when they are loaded
}

// The keys of a Filter in the query of a reference.
const (
	filterInclude = "include"
	filterExclude = "exclude"
	filterPickle  = "allowPickle"
)

// ParseFilter reads a Filter from the query of a reference, such as include=*.json&allowPickle=true.
func ParseFilter(query string) (Filter, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return Filter{}, fmt.Errorf("query %q: want key=value, joined by &", query)
	}
	f := Filter{Include: values[filterInclude], Exclude: values[filterExclude]}
	for key, given := range values {
		switch {
		case key == filterInclude, key == filterExclude:
		case key == filterPickle && len(given) == 1 && (given[0] == "true" || given[0] == "false"):
			f.AllowPickle = given[0] == "true"
		default:
			return Filter{}, fmt.Errorf("query %q: want include=<pattern>, exclude=<pattern>, allowPickle=true", query)
		}
	}
	return f, f.Check()
}

// Query is what ParseFilter reads; "" for the zero value.
func (f Filter) Query() string {
	values := url.Values{}
	if len(f.Include) > 0 {
		values[filterInclude] = f.Include
	}
	if len(f.Exclude) > 0 {
		values[filterExclude] = f.Exclude
	}
	if f.AllowPickle {
		values.Set(filterPickle, "true")
	}
	return values.Encode()
}

// Check reports a pattern that is none.
func (f Filter) Check() error {
	for _, p := range slices.Concat(f.Include, f.Exclude) {
		if _, err := path.Match(pattern(p), ""); err != nil || p == "" {
			return fmt.Errorf("pattern %q: want one such as *.safetensors, original/ or model-?.gguf", p)
		}
	}
	return nil
}

// Files returns those that f takes, in their order. Pickle files are left out where the weights are there
// as safetensors or GGUF too; a model that has nothing else is refused.
func (f Filter) Files(files []File) ([]File, error) {
	var kept []File
	var pickle string
	weights := false
	for _, file := range files {
		switch {
		case !f.match(file.Path):
		case !f.AllowPickle && IsPickle(file.Path):
			pickle = file.Path
		default:
			kept = append(kept, file)
			ext := strings.ToLower(path.Ext(file.Path))
			weights = weights || ext == ".safetensors" || ext == ".gguf"
		}
	}
	if pickle != "" && !weights {
		return nil, &Error{Reason: "Pickle", Final: true, Text: fmt.Sprintf(
			"%s may run code when it is loaded, and the model has neither safetensors nor GGUF: "+
				"take another revision, or set allowPickle for it if you trust its authors", pickle)}
	}
	if len(kept) == 0 {
		return nil, &Error{Reason: "Empty", Final: true,
			Text: fmt.Sprintf("none of %d files is left by include and exclude: correct the patterns", len(files))}
	}
	return kept, nil
}

func (f Filter) match(name string) bool {
	is := func(p string) bool {
		ok, err := path.Match(pattern(p), flat(name))
		return ok && err == nil
	}
	return (len(f.Include) == 0 || slices.ContainsFunc(f.Include, is)) && !slices.ContainsFunc(f.Exclude, is)
}

// pattern is p for path.Match, in which * and ? stop at a "/".
func pattern(p string) string {
	if strings.HasSuffix(p, "/") {
		p += "*"
	}
	return strings.ReplaceAll(flat(p), "[!", "[^")
}

func flat(p string) string { return strings.ReplaceAll(p, "/", "\x00") }

// IsPickle says whether a file of that name may be a Python pickle, which runs code when it is loaded. The
// name is all there is to go by before it is fetched.
func IsPickle(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill":
		return true
	}
	return false
}
