package ms_test

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/ms"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const lfsAbove = 900 // bytes; larger files are LFS here

// hub is a stand-in for ModelScope, and a CDN, another host to clients, that holds its large files. What it does is written from
// the hub's own client and from what others have measured of the hub: it ends a list at 3000 entries, ignores
// ranges of small files, and says by a code in its answers what HTTP calls a 404.
type hub struct {
	sourcetest.Standin
	*httptest.Server
	cdn *httptest.Server

	mu     sync.Mutex
	repos  map[string]*repository
	token  string         // that opens private repositories
	uses   int            // reads that one signed address is good for
	signed map[string]int // reads left, by signature
}

// repository is a history: each file of a commit with the commit that changed it last.
type repository struct {
	commits map[string]map[string]version
	refs    map[string]string
	private bool
}

type version struct {
	commit  string
	content []byte
}

func (r *repository) files(revision string) map[string]version {
	if c, ok := r.refs[revision]; ok {
		revision = c
	}
	return r.commits[revision]
}

func newHub(t *testing.T) *hub {
	h := &hub{repos: map[string]*repository{}, signed: map[string]int{}, uses: 1000}
	h.Server = h.Serve(t, h.serve)
	h.cdn = h.Serve(t, h.serveCDN)
	return h
}

// reads is how many files the hub was asked for.
func (h *hub) reads() int { return h.Count(h.Server, "/repo") - h.Count(h.Server, "/repo/files") }

// put commits files to a branch and returns the commit.
func (h *hub) put(name, branch string, files map[string][]byte) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repos[name]
	if r == nil {
		r = &repository{commits: map[string]map[string]version{}, refs: map[string]string{}}
		h.repos[name] = r
	}
	sum := sha1.New()
	for _, p := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(sum, "%q %q", p, files[p])
	}
	commit := fmt.Sprintf("%x", sum.Sum(nil))
	tree := map[string]version{}
	before := r.files(branch)
	for p, content := range files {
		tree[p] = version{commit, content}
		if v, ok := before[p]; ok && string(v.content) == string(content) {
			tree[p] = v
		}
	}
	r.commits[commit], r.refs[branch] = tree, commit
	return commit
}

// respond writes the envelope that all of the API's answers have.
func respond(w http.ResponseWriter, status int, code int64, data any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"Code": code, "Data": data, "Message": "获取模型信息失败",
		"RequestId": "3f52db02", "Success": code == 200})
}

func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(parts) < 6 || strings.Join(parts[:3], "/") != "api/v1/models" || parts[5] != "repo" {
		respond(w, 404, 404, nil)
		return
	}
	repo := h.repos[parts[3]+"/"+parts[4]]
	cookie, _ := r.Cookie("m_session_id")
	given := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case repo == nil:
		respond(w, 404, 10010205001, nil)
	case repo.private && (given != h.token || cookie == nil || cookie.Value != h.token): // else a wrong one is ignored
		respond(w, 404, 10010200001, nil)
	case len(parts) == 7 && parts[6] == "files":
		h.list(w, repo, r.URL.Query())
	default:
		h.file(w, r, repo, parts[3]+"/"+parts[4])
	}
}

func (h *hub) list(w http.ResponseWriter, repo *repository, q url.Values) {
	tree := repo.files(q.Get("Revision"))
	if tree == nil {
		respond(w, 200, 200, map[string]any{"Files": nil, "LatestCommitter": nil, "IsVisual": 0})
		return
	}
	deep := strings.EqualFold(q.Get("Recursive"), "true")
	var all []map[string]any
	seen := map[string]bool{}
	for _, p := range slices.Sorted(maps.Keys(tree)) {
		below, ok := p, true
		if root := q.Get("Root"); root != "" {
			below, ok = strings.CutPrefix(p, root+"/")
		}
		if !ok {
			continue
		}
		base := strings.TrimSuffix(p, below)
		for i, c := range below {
			if dir := base + below[:i]; c == '/' && !seen[dir] && (deep || !strings.Contains(below[:i], "/")) {
				seen[dir] = true
				all = append(all, map[string]any{"Type": "tree", "Path": dir, "Name": path.Base(dir), "Size": 0, "Sha256": "", "Revision": tree[p].commit})
			}
		}
		if deep || !strings.Contains(below, "/") {
			v := tree[p]
			all = append(all, map[string]any{"Type": "blob", "Path": p, "Name": path.Base(p), "Size": len(v.content), "IsLFS": len(v.content) > lfsAbove,
				"Sha256": fmt.Sprintf("%x", sha256.Sum256(v.content)), "Revision": v.commit, "CommittedDate": 1700000000})
		}
	}
	respond(w, 200, 200, map[string]any{"Files": all[:min(len(all), 3000)], "LatestCommitter": map[string]string{"Id": ""}, "IsVisual": 0})
}

func (h *hub) file(w http.ResponseWriter, r *http.Request, repo *repository, name string) {
	q := r.URL.Query()
	tree := repo.files(q.Get("Revision"))
	v, ok := tree[q.Get("FilePath")]
	switch {
	case tree == nil:
		respond(w, 404, 10990101004, nil)
	case !ok:
		respond(w, 404, 10990101007, nil)
	case len(v.content) <= lfsAbove: // the gateway sends it whole, whatever range is asked for
		w.Header().Set("Content-Length", strconv.Itoa(len(v.content)))
		_, _ = w.Write(v.content)
	default:
		signature := fmt.Sprintf("s%d", len(h.signed))
		h.signed[signature] = h.uses
		http.Redirect(w, r, fmt.Sprintf("%s/prod/lfs-objects/%x?auth_key=SECRET%s&name=%s&commit=%s&path=%s",
			strings.Replace(h.cdn.URL, "127.0.0.1", "localhost", 1), sha256.Sum256(v.content), signature,
			url.QueryEscape(name), v.commit, url.QueryEscape(q.Get("FilePath"))), http.StatusFound)
	}
}

func (h *hub) serveCDN(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := r.URL.Query()
	signature := strings.TrimPrefix(q.Get("auth_key"), "SECRET")
	switch {
	case r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "": // two kinds of rights at once
		w.WriteHeader(http.StatusBadRequest)
	case h.signed[signature] == 0:
		w.WriteHeader(http.StatusForbidden)
	default:
		h.signed[signature]--
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(h.repos[q.Get("name")].commits[q.Get("commit")][q.Get("path")].content)))
	}
}

func newSource(t *testing.T, c ms.Config) *ms.Source {
	s, err := ms.New(c)
	require.NoError(t, err)
	t.Cleanup(s.CloseIdle)
	return s
}
