// Package hf reads models from the Hugging Face hub and servers that speak its protocol: the API under
// /api/models, the files under /<repository>/resolve/<commit>.
package hf

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hub"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Config is one hub. The zero value is the public one, without a token.
type Config = hub.Config

// Source reads scheme hf. Safe for concurrent use.
type Source struct{ *hub.Client }

// New checks the configuration and the files it names. It opens no connection.
func New(c Config) (*Source, error) {
	client, err := hub.New(hub.Protocol{
		Scheme: "hf", Public: "https://huggingface.co", Branch: "main",
		Authorize: func(h http.Header, token string) { h.Set("Authorization", "Bearer "+token) },
		File: func(f model.File) (path, query string) {
			name, commit, _ := strings.Cut(f.Key, "@")
			return "/" + name + "/resolve/" + commit + (&url.URL{Path: "/" + f.Path}).EscapedPath(), ""
		},
		Check: check, Refusal: refusal,
	}, c)
	if err != nil {
		return nil, err
	}
	return &Source{client}, nil
}

// Check says why ref can never be read, whatever the hub has.
func Check(ref model.Ref) error { return hub.Check(ref) }

var objectForm = lazyregexp.New(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// check refuses an answer of a hub that speaks of another commit, size or object than f's.
func check(u *url.URL, resp *http.Response, redirected bool, f model.File) error {
	h := resp.Header
	switch h.Get("X-Error-Code") {
	case "RevisionNotFound", "EntryNotFound": // history was rewritten
		return web.Changed(u, "the commit is gone")
	}
	_, commit, _ := strings.Cut(f.Key, "@")
	if got := h.Get("X-Repo-Commit"); got != "" && got != commit {
		return web.Changed(u, fmt.Sprintf("commit %.40q, was %s", got, commit))
	}
	if got := h.Get("X-Linked-Size"); got != "" && got != fmt.Sprint(f.Size) {
		return web.Changed(u, fmt.Sprintf("size %.20q, was %d", got, f.Size))
	}
	tag := h.Get("X-Linked-Etag")
	if tag == "" && !redirected && h.Get("X-Repo-Commit") != "" { // others make up ETags of their own
		tag = h.Get("ETag")
	}
	tag = strings.Trim(strings.TrimPrefix(tag, "W/"), `"`)
	if objectForm().MatchString(tag) && tag != f.Version {
		return web.Changed(u, fmt.Sprintf("object %s, was %s", tag, f.Version))
	}
	return nil
}

// refusal is what the hub's codes and messages mean.
func refusal(c *hub.Client, resp *http.Response) (reason, what string) {
	status, code := resp.StatusCode, resp.Header.Get("X-Error-Code")
	says := strings.ToLower(resp.Header.Get("X-Error-Message"))
	switch {
	case code == "GatedRepo":
		return "Gated", gated(c)
	case strings.Contains(says, "disabled"):
		return "Disabled", "the hub has disabled this repository: take another"
	case strings.Contains(says, "invalid credentials"):
		return "Forbidden", "the hub does not accept the token, which is wrong or has expired: " + c.NameToken()
	case code == "RevisionNotFound":
		return "NotFound", "the repository has no such revision: correct what follows the @"
	case code == "EntryNotFound":
		return "NotFound", "the revision has no such file"
	case status == http.StatusNotFound, status == http.StatusGone, code == "RepoNotFound",
		status == http.StatusUnauthorized && !c.HasToken():
		return "NotFound", "no such repository, or a private one, which the hub does not tell apart: correct the name, or " + c.NameToken()
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return "Forbidden", "the token has no right to read this repository, or has expired: " + c.NameToken()
	}
	return "Refused", ""
}

// gated says what to do about a repository whose terms have to be accepted.
func gated(c *hub.Client) string {
	if c.HasToken() {
		return "the repository is gated and the token's account has no access: ask for it on the repository's page, or " + c.NameToken()
	}
	return "the repository is gated: accept its terms on its page, and " + c.NameToken()
}
