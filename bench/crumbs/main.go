// Command crumbs serves a model of many files of 2 KB as the hub does, o/m, and as a registry does, o/m:v1, where all of them
// are in one layer. It prints its address.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	size = 2000 // of a file
	page = 1000 // files on a page of a tree, as the hub has them
)

type origin struct {
	content        []byte
	entries        []json.RawMessage // of the hub's tree
	etags          []string
	layer          []byte
	digest         string
	manifest       []byte
	manifestDigest string
	lfs            bool
}

func main() {
	n := flag.Int("files", 100000, "how many")
	lfs := flag.Bool("lfs", false, "the hub has them as LFS files, each behind a redirect")
	flag.Parse()
	if err := run(*n, *lfs); err != nil {
		fmt.Fprintln(os.Stderr, "crumbs:", err)
		os.Exit(1)
	}
}

func run(n int, lfs bool) error {
	o, err := newOrigin(n, lfs)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, o)
}

func newOrigin(n int, lfs bool) (*origin, error) {
	o := &origin{content: make([]byte, n*size), lfs: lfs}
	_, _ = rand.Read(o.content)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for i := range n {
		b := o.file(i)
		etag := fmt.Sprintf("%x", sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", size, b)))
		e := map[string]any{"type": "file", "oid": etag, "size": size, "path": fmt.Sprintf("f%06d", i)}
		if lfs {
			etag = fmt.Sprintf("%x", sha256.Sum256(b))
			e["lfs"] = map[string]any{"oid": etag, "size": size, "pointerSize": 134}
		}
		text, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		o.entries, o.etags = append(o.entries, text), append(o.etags, etag)
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("models/f%06d", i), Size: size, Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := w.Write(b); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	o.layer = layer.Bytes()
	o.digest = fmt.Sprintf("sha256:%x", sha256.Sum256(o.layer))
	o.manifest = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%x","size":2},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`, sha256.Sum256([]byte("{}")), o.digest, len(o.layer))
	o.manifestDigest = fmt.Sprintf("sha256:%x", sha256.Sum256(o.manifest))
	return o, nil
}

func (o *origin) file(i int) []byte { return o.content[i*size : (i+1)*size] }

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, commit := r.URL.Path, strings.Repeat("c", 40)
	name := path[strings.LastIndex(path, "/")+1:]
	i, err := strconv.Atoi(strings.TrimPrefix(name, "f"))
	isFile := err == nil && i >= 0 && i < len(o.entries)
	switch {
	case strings.Contains(path, "/revision/"):
		fmt.Fprintf(w, `{"_id":"1","id":"o/m","sha":%q,"gated":false,"private":false,"disabled":false}`, commit)
	case strings.Contains(path, "/tree/"):
		from, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
		to := min(from+page, len(o.entries))
		if to < len(o.entries) {
			q := r.URL.Query()
			q.Set("cursor", strconv.Itoa(to))
			w.Header().Set("Link", fmt.Sprintf(`<http://%s%s?%s>; rel="next"`, r.Host, path, q.Encode()))
		}
		_ = json.NewEncoder(w).Encode(o.entries[min(from, to):to])
	case strings.Contains(path, "/resolve/") && isFile && o.lfs:
		w.Header().Set("X-Repo-Commit", commit)
		w.Header().Set("X-Linked-Etag", `"`+o.etags[i]+`"`)
		w.Header().Set("X-Linked-Size", strconv.Itoa(size))
		w.Header().Set("Location", "http://"+r.Host+"/cdn/"+name)
		w.WriteHeader(http.StatusFound)
	case (strings.Contains(path, "/resolve/") || strings.HasPrefix(path, "/cdn/")) && isFile:
		w.Header().Set("X-Repo-Commit", commit)
		w.Header().Set("ETag", `"`+o.etags[i]+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.file(i)))
	case strings.Contains(path, "/manifests/"):
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", o.manifestDigest)
		_, _ = w.Write(o.manifest)
	case strings.HasSuffix(path, "/blobs/"+o.digest):
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.layer))
	case strings.Contains(path, "/blobs/"):
		_, _ = w.Write([]byte("{}"))
	case path != "/v2/":
		http.NotFound(w, r)
	}
}
