package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// shards is a model of four files, whose last one stops after its first half until it is released.
type shards struct {
	files    map[string][]byte
	released chan struct{}

	mu     sync.Mutex
	served map[string]int // bytes of each file's content; guarded by mu
}

const shardSize = 1 << 20

func newShards() *shards {
	s := &shards{files: map[string][]byte{}, released: make(chan struct{}), served: map[string]int{}}
	var sums strings.Builder
	for i := range 4 {
		name, content := fmt.Sprintf("shard-%d", i), bytes.Repeat([]byte{byte('a' + i)}, shardSize)
		s.files[name] = content
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), name)
	}
	s.files["SHA256SUMS"] = []byte(sums.String())
	return s
}

func (s *shards) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/shards/")
	content, ok := s.files[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", `"1"`)
	http.ServeContent(counting{w, s, name, r}, r, name, time.Time{}, bytes.NewReader(content))
}

// counting counts what goes out, and holds the last shard back.
type counting struct {
	http.ResponseWriter
	shards *shards
	name   string
	req    *http.Request
}

func (c counting) Write(p []byte) (int, error) {
	c.shards.mu.Lock()
	c.shards.served[c.name] += len(p)
	held := c.name == "shard-3" && c.shards.served[c.name] > shardSize/2
	c.shards.mu.Unlock()
	if held {
		select {
		case <-c.shards.released:
		case <-c.req.Context().Done():
			return 0, c.req.Context().Err()
		}
	}
	return c.ResponseWriter.Write(p)
}

// release lets the last shard go: release.
func (s *shards) release(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: release")
	}
	close(s.released)
}

// sent checks how many bytes of a shard went out, all requests together: sent SHARD BYTES.
func (s *shards) sent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sent SHARD BYTES")
	}
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.served[args[0]]; got != want {
		ts.Fatalf("%s: %d bytes went out, want %d", args[0], got, want)
	}
}
