// Package ms reads models from ModelScope: the lists of files under /api/v1/models/<repository>/repo/files, the files
// under /api/v1/models/<repository>/repo. Datasets and studios are not models.
//
// The hub documents no way from a branch to its commit, but each file names the commit that changed it last, and is read
// at that one. So what was resolved stays readable while the branch moves. The revision is the commit that the reference
// names, else a hash over the files.
package ms

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hub"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Config is one hub. The zero value is the public one, without a token.
type Config = hub.Config

// Source reads scheme ms. Safe for concurrent use.
type Source struct{ *hub.Client }

// New checks the configuration and the files it names. It opens no connection.
func New(c Config) (*Source, error) {
	client, err := hub.New(hub.Protocol{
		Scheme: "ms", Public: "https://modelscope.cn", Branch: "master",
		// Older parts of the API read the cookie and newer ones the header: the hub's own client sends both.
		Authorize: func(h http.Header, token string) {
			h.Set("Authorization", "Bearer "+token)
			h.Set("Cookie", "m_session_id="+token)
		},
		File: func(f model.File) (path, query string) {
			name, revision, _ := strings.Cut(f.Key, "@")
			return models + name + "/repo", url.Values{"Revision": {revision}, "FilePath": {f.Path}}.Encode()
		},
		Check: check, Refusal: refusal,
	}, c)
	if err != nil {
		return nil, err
	}
	return &Source{client}, nil
}

const models = "/api/v1/models/"

// What the hub's answers say in their field Code. Almost all refusals are a 404 to HTTP.
const (
	codeOK         = 200
	codeNoAccess   = 10010200001 // private or gated
	codeNoRevision = 10990101004
	codeNoFile     = 10990101007
)

// codeOf is the Code in a refusal's body, which stays readable; 0 where there is none.
func codeOf(resp *http.Response) int64 {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	resp.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(text), resp.Body}
	var answer struct{ Code int64 }
	_ = json.Unmarshal(text, &answer) // what is in between answers with pages
	return answer.Code
}

// check tells a file that is gone from a repository that may not be read.
func check(u *url.URL, resp *http.Response, _ bool, _ model.File) error {
	if resp.StatusCode == http.StatusNotFound {
		switch codeOf(resp) {
		case codeNoRevision, codeNoFile: // history was rewritten
			return web.Changed(u, "the commit is gone")
		}
	}
	return nil
}

func refusal(c *hub.Client, resp *http.Response) (reason, what string) {
	return meaning(c, resp.StatusCode, codeOf(resp))
}

// meaning is what a refusal says, by its status and its Code.
func meaning(c *hub.Client, status int, code int64) (reason, what string) {
	switch {
	case code == codeNoRevision:
		return "NotFound", noRevision
	case code == codeNoAccess, status == http.StatusUnauthorized, status == http.StatusForbidden:
		return "Forbidden", "the repository is private, or gated and wants its terms accepted on its page: " + c.NameToken()
	case status == http.StatusNotFound, status == http.StatusGone:
		return "NotFound", "no such repository, or one that may not be read: correct the name, or " + c.NameToken()
	}
	return "Refused", ""
}

const noRevision = "the repository has no such revision, or no file in it: correct what follows the @"
