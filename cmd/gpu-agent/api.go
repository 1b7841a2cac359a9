package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// pullRequest asks for a model that the configuration does not name.
type pullRequest struct {
	Name   string `json:"name"`
	Source string `json:"source"` // "" tries a known model again, at once
	Pinned bool   `json:"pinned"`
}

// api is what the command line may do, over the private socket.
func (a *agent) api() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, a.state()) })
	mux.HandleFunc("POST /models/pull", a.model(func(ctx context.Context, c *cache.Cache, r *http.Request) (any, error) {
		var in pullRequest
		if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 1<<20)).Decode(&in); err != nil {
			return nil, err
		}
		return nil, a.pull(ctx, c, in)
	}))
	mux.HandleFunc("DELETE /models/{name}", a.model(func(ctx context.Context, c *cache.Cache, r *http.Request) (any, error) {
		return nil, c.Remove(ctx, r.PathValue("name"))
	}))
	mux.HandleFunc("POST /models/{name}/pin", a.model(func(_ context.Context, c *cache.Cache, r *http.Request) (any, error) {
		return nil, c.Pin(r.PathValue("name"))
	}))
	mux.HandleFunc("POST /models/{name}/unpin", a.model(func(_ context.Context, c *cache.Cache, r *http.Request) (any, error) {
		return nil, c.Unpin(r.PathValue("name"))
	}))
	mux.HandleFunc("POST /models/{name}/verify", a.model(func(ctx context.Context, c *cache.Cache, r *http.Request) (any, error) {
		name := r.PathValue("name")
		damaged, err := c.Verify(ctx, name)
		if err == nil && len(damaged) > 0 {
			err = fmt.Errorf("model %s: these files are not what was pulled: %s", name, strings.Join(damaged, ", "))
		}
		return nil, err
	}))
	return mux
}

func (a *agent) model(do func(context.Context, *cache.Cache, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := a.cache.Load()
		if c == nil {
			http.Error(w, a.noCache(), http.StatusServiceUnavailable)
			return
		}
		out, err := do(r.Context(), c, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		writeJSON(w, http.StatusOK, out)
	}
}

func (a *agent) noCache() string {
	if !a.config.Cache.Enabled {
		return "the model cache is off: set cache.enabled"
	}
	if task := a.tasks()["cache"]; task.Error != "" {
		return "the model cache is not open: " + task.Error
	}
	return "the model cache is not open yet: try again"
}

// pull asks the cache for a model; without a source, for one of the configuration's again, at once.
func (a *agent) pull(ctx context.Context, c *cache.Cache, in pullRequest) error {
	if in.Source != "" {
		ref, err := model.ParseRef(in.Source)
		if err != nil {
			return err
		}
		return c.Pull(ctx, model.Spec{Name: in.Name, Source: ref, Pinned: in.Pinned})
	}
	a.mu.Lock()
	at := slices.IndexFunc(a.models, func(s model.Spec) bool { return s.Name == in.Name })
	var spec model.Spec
	if at >= 0 {
		spec = a.models[at]
	}
	a.mu.Unlock()
	if at < 0 {
		return fmt.Errorf("model %s is not in the configuration: name its SOURCE, such as s3://bucket/prefix", in.Name)
	}
	return c.Pull(ctx, spec)
}
