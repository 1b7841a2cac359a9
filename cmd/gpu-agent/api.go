package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// pullRequest asks for a model that the configuration does not name.
type pullRequest struct {
	Name   string `json:"name"`
	Source string `json:"source"` // "" for where the model is known to come from
	Pinned bool   `json:"pinned"`
}

// pullAnswer tells which outcome is the request's: see model.Status.
type pullAnswer struct {
	Asked int64 `json:"asked"`
}

// api is what the command line may do, over the private socket.
func (a *agent) api() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, a.state()) })
	a.deviceAPI(mux)
	mux.HandleFunc("POST /models/pull", a.model(func(ctx context.Context, c *cache.Set, r *http.Request) (any, error) {
		var in pullRequest
		if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 1<<20)).Decode(&in); err != nil {
			return nil, err
		}
		return pull(ctx, c, in)
	}))
	mux.HandleFunc("GET /models/{name}/explain", a.model(func(_ context.Context, c *cache.Set, r *http.Request) (any, error) {
		return c.Explain(r.PathValue("name"))
	}))
	mux.HandleFunc("DELETE /models/{name}", a.model(func(ctx context.Context, c *cache.Set, r *http.Request) (any, error) {
		force, err := strconv.ParseBool(cmp.Or(r.URL.Query().Get("force"), "false"))
		if err != nil {
			return nil, fmt.Errorf("force: %w", err)
		}
		return nil, c.Remove(ctx, r.PathValue("name"), force)
	}))
	mux.HandleFunc("POST /models/{name}/pin", a.model(func(_ context.Context, c *cache.Set, r *http.Request) (any, error) {
		return nil, c.Pin(r.PathValue("name"))
	}))
	mux.HandleFunc("POST /models/{name}/unpin", a.model(func(_ context.Context, c *cache.Set, r *http.Request) (any, error) {
		return nil, c.Unpin(r.PathValue("name"))
	}))
	mux.HandleFunc("POST /models/{name}/rollback", a.model(func(ctx context.Context, c *cache.Set, r *http.Request) (any, error) {
		return c.Rollback(ctx, r.PathValue("name"), r.URL.Query().Get("revision"))
	}))
	mux.HandleFunc("POST /models/{name}/verify", a.model(func(ctx context.Context, c *cache.Set, r *http.Request) (any, error) {
		name := r.PathValue("name")
		damaged, err := c.Verify(ctx, name)
		if err == nil && len(damaged) > 0 {
			err = fmt.Errorf("model %s: these files are not what was pulled: %s", name, strings.Join(damaged, ", "))
		}
		return nil, err
	}))
	a.bundleAPI(mux)
	return mux
}

func (a *agent) model(do func(context.Context, *cache.Set, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !a.caches.Open() {
			http.Error(w, a.noCache(), http.StatusServiceUnavailable)
			return
		}
		out, err := do(r.Context(), a.caches, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		writeJSON(w, http.StatusOK, out)
	}
}

func (a *agent) noCache() string {
	if !a.now().config.Cache.Enabled {
		return "the model cache is off: set cache.enabled"
	}
	if task := a.tasks()["cache"]; task.Error != "" {
		return "the model cache is not open: " + task.Error
	}
	return "the model cache is not open yet, or held by an agent that is being replaced: try again"
}

// cached is the newest inventory. While the cache is not open it names what the configuration asks for,
// each with what keeps the cache; nil where it is off.
func (a *agent) cached() *model.Inventory {
	if inv := a.caches.Get(); inv != nil || !a.now().config.Cache.Enabled {
		return inv
	}
	inv := &model.Inventory{Time: time.Now(), Root: a.now().config.Cache.Root, Limit: int64(a.now().config.Cache.Limit), Models: []model.Status{},
		Problems: []model.Problem{{Reason: "CacheClosed", Message: a.noCache()}}}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.models {
		inv.Models = append(inv.Models, model.Status{Name: s.Name, Source: s.Source.String(), State: model.Pending,
			Reason: "CacheClosed", Message: a.noCache(), Pinned: s.Pinned, Wanted: true})
	}
	slices.SortFunc(inv.Models, func(a, b model.Status) int { return strings.Compare(a.Name, b.Name) })
	return inv
}

// pull asks the cache for a model.
func pull(ctx context.Context, c *cache.Set, in pullRequest) (pullAnswer, error) {
	spec := model.Spec{Name: in.Name, Pinned: in.Pinned}
	if in.Source != "" {
		var err error
		if spec.Source, err = model.ParseRef(in.Source); err != nil {
			return pullAnswer{}, err
		}
	}
	asked, err := c.Pull(ctx, spec)
	return pullAnswer{Asked: asked}, err
}
