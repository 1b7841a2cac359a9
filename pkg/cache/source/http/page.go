package http

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// pageError refuses a web page that comes in place of f: the page about a model, a login, a portal. Whoever wants a page names
// it .html, or its digest.
func pageError(u *url.URL, resp *http.Response, f model.File) error {
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent || f.Digest != "" {
		return nil
	}
	kind := web.Page(resp.Header.Get("Content-Type"), f.Path)
	if kind == "" {
		return nil
	}
	at, from := resp.Request.URL, ""
	if at.Host != u.Host {
		from = " of " + at.Host
	}
	return &model.Error{Reason: "WrongAnswer", Final: true,
		Text: fmt.Sprintf("%s: a web page%s (%s) and not a file: %s", web.Bare(u), from, kind, instead(at.Hostname(), u.EscapedPath()))}
}

// instead is what to write in place of an address with path, for which host gives a page.
func instead(host, path string) string {
	scheme, below := "", ""
	switch strings.TrimPrefix(strings.ToLower(host), "www.") {
	case "huggingface.co":
		scheme = "hf"
	case "modelscope.cn":
		scheme, below = "ms", "models/"
	default:
		return "name the file's own address, or look at what stands between; a page that is wanted is named with its #sha256"
	}
	org, rest, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(path, "/"), below), "/")
	name, _, _ := strings.Cut(rest, "/")
	if name == "" || org == "datasets" || org == "spaces" {
		org, name = "organization", "name"
	}
	return fmt.Sprintf("write %s://%s/%s for the model", scheme, org, name)
}
