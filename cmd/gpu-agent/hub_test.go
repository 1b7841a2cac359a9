package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// handleHub has mux speak the hub's protocol for two models of one content: org/tiny, and org/damaged, whose
// config.json is not of the git object that the hub names; and ModelScope's for org/tiny.
func handleHub(mux *http.ServeMux, content string) {
	const config, commit = "{\"model_type\":\"llama\"}\n", "0123456789abcdef0123456789abcdef01234567"
	file := func(of string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(of))
		}
	}
	for name, listed := range map[string]string{"org/tiny": config, "org/damaged": "other"} {
		mux.HandleFunc("/api/models/"+name+"/revision/main", file(`{"id":"`+name+`","sha":"`+commit+`"}`))
		mux.HandleFunc("/api/models/"+name+"/tree/"+commit, file(fmt.Sprintf(
			`[{"type":"file","path":"config.json","size":%d,"oid":"%x"},`+
				`{"type":"file","path":"model.safetensors","size":%d,"oid":"","lfs":{"oid":"%x","size":%[3]d}},`+
				`{"type":"file","path":"pytorch_model.bin","size":%[3]d,"oid":"","lfs":{"oid":"%[4]x","size":%[3]d}}]`,
			len(config), sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(config), listed)), len(content), sha256.Sum256([]byte(content)))))
		mux.HandleFunc("/"+name+"/resolve/"+commit+"/config.json", file(config))
		mux.HandleFunc("/"+name+"/resolve/"+commit+"/model.safetensors", file(content))
	}
	mux.HandleFunc("/api/v1/models/org/tiny/repo/files", file(fmt.Sprintf(
		`{"Code":200,"Data":{"Files":[{"Type":"blob","Path":"config.json","Size":%d,"Sha256":"%x","Revision":"%s"}]}}`,
		len(config), sha256.Sum256([]byte(config)), commit)))
	mux.HandleFunc("/api/v1/models/org/tiny/repo", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("Revision") == commit && r.URL.Query().Get("FilePath") == "config.json" {
			file(config)(w, r)
		}
	})
}
