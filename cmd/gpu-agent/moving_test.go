package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// moving is the model org/moving of a hub, whose main moves from commit 111… to 222….
type moving struct{ moved atomic.Bool }

func handleMoving(mux *http.ServeMux) *moving {
	m := &moving{}
	mux.HandleFunc("/api/models/org/moving/revision/main", func(w http.ResponseWriter, _ *http.Request) {
		n := "1"
		if m.moved.Load() {
			n = "2"
		}
		fmt.Fprintf(w, `{"id":"org/moving","sha":"%s"}`, strings.Repeat(n, 40))
	})
	for _, n := range []string{"1", "2"} {
		commit, content := strings.Repeat(n, 40), strings.Repeat(n, 1000)
		mux.HandleFunc("/api/models/org/moving/tree/"+commit, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `[{"type":"file","path":"model.safetensors","size":%d,"oid":"","lfs":{"oid":"%x","size":%[1]d}}]`,
				len(content), sha256.Sum256([]byte(content)))
		})
		mux.HandleFunc("/org/moving/resolve/"+commit+"/model.safetensors", func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
		})
	}
	return m
}

// move moves main: move.
func (m *moving) move(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: move")
	}
	m.moved.Store(true)
}
