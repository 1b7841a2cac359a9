package hf_test

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hf"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const lfsAbove = 900 // bytes; larger files are LFS here

// hub is a stand-in that speaks the hub's protocol, and a CDN on another host that holds its large files.
type hub struct {
	sourcetest.Standin
	*httptest.Server
	cdn *httptest.Server

	mu      sync.Mutex
	repos   map[string]*repository
	renamed map[string]string // old name to new
	token   string            // "" lets everybody in
	page    int               // files on a page of a tree
	public  string            // what the link to a tree's next page calls the hub: behind a proxy, not what we asked
	uses    int               // reads that one signed address is good for
	signed  map[string]int    // reads left, by signature
}

type repository struct {
	commits map[string]map[string][]byte
	refs    map[string]string
	gated   bool
}

// commit is what an escaped branch, tag or commit stands for; "" where there is none.
func (r *repository) commit(revision string) string {
	revision, _ = url.PathUnescape(revision)
	if r.commits[revision] != nil {
		return revision
	}
	return r.refs[revision]
}

func newHub(t *testing.T) *hub {
	h := &hub{repos: map[string]*repository{}, renamed: map[string]string{}, signed: map[string]int{}, page: 3, uses: 1000,
		public: "https://hub.invalid"}
	h.Server = h.Serve(t, h.serve)
	h.cdn = h.Serve(t, h.serveCDN)
	return h
}

// put commits files to a branch and returns the commit.
func (h *hub) put(name, branch string, files map[string][]byte) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repos[name]
	if r == nil {
		r = &repository{commits: map[string]map[string][]byte{}, refs: map[string]string{}}
		h.repos[name] = r
	}
	sum := sha1.New()
	for _, p := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(sum, "%q %q", p, files[p])
	}
	commit := hex.EncodeToString(sum.Sum(nil))
	r.commits[commit], r.refs[branch] = maps.Clone(files), commit
	return commit
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	if code != "" {
		w.Header().Set("X-Error-Code", code)
	}
	if message != "" {
		w.Header().Set("X-Error-Message", message)
	}
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":%q}`, message)
}

// enter is what every request to the hub goes through. It returns nil where it was answered.
func (h *hub) enter(w http.ResponseWriter, r *http.Request, name string) *repository {
	if to, ok := h.renamed[name]; ok {
		w.Header().Set("Location", strings.Replace(r.URL.EscapedPath(), name, to, 1))
		w.WriteHeader(http.StatusTemporaryRedirect)
		return nil
	}
	auth := r.Header.Get("Authorization")
	repo := h.repos[name]
	switch {
	case auth != "" && auth != "Bearer "+h.token:
		refuse(w, 401, "", "Invalid credentials in Authorization header")
	case repo == nil && auth == "", repo != nil && auth == "" && h.token != "" && !repo.gated:
		refuse(w, 401, "", "Invalid username or password.")
	case repo == nil:
		refuse(w, 404, "RepoNotFound", "Repository not found")
	default:
		return repo
	}
	return nil
}

func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	path := strings.TrimPrefix(r.URL.EscapedPath(), "/")
	if rest, ok := strings.CutPrefix(path, "api/models/"); ok {
		if name, revision, ok := strings.Cut(rest, "/revision/"); ok {
			h.info(w, r, name, revision)
			return
		}
		if name, commit, ok := strings.Cut(rest, "/tree/"); ok {
			h.tree(w, r, name, commit)
			return
		}
	}
	if name, rest, ok := strings.Cut(path, "/resolve/"); ok {
		commit, file, _ := strings.Cut(rest, "/")
		h.resolve(w, r, name, commit, file)
		return
	}
	refuse(w, 404, "", "Sorry, we can't find the page you are looking for.")
}

func (h *hub) info(w http.ResponseWriter, r *http.Request, name, revision string) {
	repo := h.enter(w, r, name)
	if repo == nil {
		return
	}
	commit := repo.commit(revision)
	if commit == "" {
		refuse(w, 404, "RevisionNotFound", "Invalid rev id: "+revision)
		return
	}
	gated := any(false)
	if repo.gated {
		gated = "manual"
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"_id": "1", "id": name, "sha": commit, "gated": gated, "private": false,
		"disabled": false, "siblings": []map[string]string{{"rfilename": "config.json"}}})
}

func (h *hub) tree(w http.ResponseWriter, r *http.Request, name, commit string) {
	repo := h.enter(w, r, name)
	if repo == nil {
		return
	}
	masked := repo.gated && (h.token == "" || r.Header.Get("Authorization") == "")
	type entry map[string]any
	all := []entry{{"type": "directory", "oid": strings.Repeat("d", 40), "size": 0, "path": "tokenizer"}}
	files := repo.commits[repo.commit(commit)]
	for _, p := range slices.Sorted(maps.Keys(files)) {
		sum, id := sha256.Sum256(files[p]), gitSHA1(files[p])
		e := entry{"type": "file", "oid": id, "size": len(files[p]), "path": p}
		if len(files[p]) > lfsAbove {
			oid := hex.EncodeToString(sum[:])
			if masked {
				oid = strings.Repeat("*", 64)
			}
			e["oid"] = strings.Repeat("b", 40)
			e["lfs"] = entry{"oid": oid, "size": len(files[p]), "pointerSize": 134}
			e["xetHash"] = strings.Repeat("e", 64)
		}
		if masked {
			e["oid"] = strings.Repeat("*", 40)
		}
		all = append(all, e)
	}
	from, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
	to := min(from+h.page, len(all))
	if to < len(all) {
		q := r.URL.Query()
		q.Set("cursor", strconv.Itoa(to))
		w.Header().Set("Link", fmt.Sprintf(`<%s%s?%s>; rel="next"`, h.public, r.URL.EscapedPath(), q.Encode()))
	}
	_ = json.NewEncoder(w).Encode(all[from:to])
}

func gitSHA1(b []byte) string {
	return fmt.Sprintf("%x", sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(b), b)))
}

func (h *hub) resolve(w http.ResponseWriter, r *http.Request, name, commit, file string) {
	repo := h.enter(w, r, name)
	if repo == nil {
		return
	}
	if repo.gated && r.Header.Get("Authorization") == "" {
		refuse(w, 401, "GatedRepo", "Access to model is restricted.")
		return
	}
	commit = repo.commit(commit)
	files := repo.commits[commit]
	if files == nil {
		refuse(w, 404, "RevisionNotFound", "Invalid rev id")
		return
	}
	path, _ := url.PathUnescape(file)
	content, ok := files[path]
	if !ok {
		refuse(w, 404, "EntryNotFound", "Entry not found")
		return
	}
	w.Header().Set("X-Repo-Commit", commit)
	if len(content) <= lfsAbove {
		w.Header().Set("ETag", `"`+gitSHA1(content)+`"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(content)))
		return
	}
	sum := sha256.Sum256(content)
	w.Header().Set("X-Linked-Etag", fmt.Sprintf(`"%x"`, sum))
	w.Header().Set("X-Linked-Size", strconv.Itoa(len(content)))
	signature := fmt.Sprintf("s%d", len(h.signed))
	h.signed[signature] = h.uses
	w.Header().Set("Location", fmt.Sprintf("%s/xet-bridge/%x?name=%s&commit=%s&X-Amz-Signature=SECRET%s&path=%s",
		h.cdn.URL, sum, url.QueryEscape(name), commit, signature, url.QueryEscape(path)))
	w.WriteHeader(http.StatusFound)
}

func (h *hub) serveCDN(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := r.URL.Query()
	signature := strings.TrimPrefix(q.Get("X-Amz-Signature"), "SECRET")
	switch {
	case r.Header.Get("Authorization") != "": // as S3 does: two kinds of rights at once
		w.WriteHeader(http.StatusBadRequest)
	case h.signed[signature] == 0:
		w.WriteHeader(http.StatusForbidden)
	default:
		h.signed[signature]--
		w.Header().Set("ETag", `"`+strings.Repeat("e", 64)+`"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(h.repos[q.Get("name")].commits[q.Get("commit")][q.Get("path")])))
	}
}

func newSource(t *testing.T, c hf.Config) *hf.Source {
	s, err := hf.New(c)
	require.NoError(t, err)
	t.Cleanup(s.CloseIdle)
	return s
}
