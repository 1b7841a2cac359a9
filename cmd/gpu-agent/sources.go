package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/gpu-agent/gpu-agent/pkg/cache"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/az"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/file"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/gs"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hf"
	httpsource "github.com/gpu-agent/gpu-agent/pkg/cache/source/http"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/hub"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/ms"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/oci"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/s3"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// kind is a kind of sources, as it is configured.
type kind struct {
	name    string // of its section below cache.sources
	schemes []string
	build   func() (cache.Source, error)
	check   func(model.Ref) error // why a reference can never be read
}

func kinds(cfg config.Cache) []kind {
	c, agent := cfg.Sources, "gpu-agent/"+version
	pages := httpsource.Config{
		CAFile: c.HTTP.CAFile, Proxy: c.HTTP.Proxy, Mirrors: mirrors(c.HTTP.Mirrors), TokenFile: c.HTTP.TokenFile, Hosts: c.HTTP.TokenHosts,
		AllowPlain: c.HTTP.AllowPlain, UserAgent: agent, Streams: cfg.Streams,
	}
	local := file.Config{Roots: c.File.Roots}
	of := func(c config.SourceHub) hub.Config {
		return hub.Config{Endpoint: c.Endpoint, Mirrors: c.Mirrors, TokenFile: c.TokenFile, CAFile: c.CAFile, Proxy: c.Proxy,
			AllowPickle: c.AllowPickle, UserAgent: agent, Streams: cfg.Streams}
	}
	return []kind{
		{"http", []string{"https", "http"}, built(httpsource.New, pages), func(r model.Ref) error { return httpsource.Check(pages, r) }},
		{"s3", []string{"s3"}, built(s3.New, s3.Config{
			Endpoint: c.S3.Endpoint, Region: c.S3.Region, PathStyle: c.S3.PathStyle, Anonymous: c.S3.Anonymous,
			CredentialsFile: c.S3.CredentialsFile, CAFile: c.S3.CAFile, Proxy: c.S3.Proxy, Mirrors: c.S3.Mirrors, Streams: cfg.Streams,
		}), s3.Check},
		{"oci", []string{"oci"}, built(oci.New, oci.Config{
			CredentialsFile: c.OCI.CredentialsFile, CAFile: c.OCI.CAFile, Proxy: c.OCI.Proxy, Mirrors: mirrors(c.OCI.Mirrors), PlainHosts: c.OCI.PlainHosts,
			UserAgent: agent, Streams: cfg.Streams,
		}), oci.Check},
		{"hf", []string{"hf"}, built(hf.New, of(c.HF)), hf.Check},
		{"ms", []string{"ms"}, built(ms.New, of(c.MS)), ms.Check},
		{"file", []string{"file"}, built(file.New, local), func(r model.Ref) error { return file.Check(local, r) }},
		{"gs", []string{"gs"}, built(gs.New, gs.Config{
			Endpoint: c.GS.Endpoint, Anonymous: c.GS.Anonymous, CredentialsFile: c.GS.CredentialsFile, CAFile: c.GS.CAFile, Proxy: c.GS.Proxy,
			Mirrors: c.GS.Mirrors, UserAgent: agent, Streams: cfg.Streams,
		}), gs.Check},
		{"az", []string{"az"}, built(az.New, az.Config{
			Endpoint: c.AZ.Endpoint, Anonymous: c.AZ.Anonymous, CredentialsFile: c.AZ.CredentialsFile, CAFile: c.AZ.CAFile, Proxy: c.AZ.Proxy,
			Mirrors: c.AZ.Mirrors, UserAgent: agent, Streams: cfg.Streams,
		}), az.Check},
	}
}

// built is New of a source with its configuration, to be called.
func built[C any, S cache.Source](build func(C) (S, error), c C) func() (cache.Source, error) {
	return func() (cache.Source, error) { return build(c) }
}

func mirrors(list []config.Mirror) (all []web.Mirror) {
	for _, m := range list {
		all = append(all, web.Mirror{Of: m.Of, URL: m.URL})
	}
	return all
}

// make builds the source. What is wrong with its settings has the keys of the file.
func (k kind) make() (cache.Source, web.Faults) {
	source, err := k.build()
	faults, known := errors.AsType[web.Faults](err)
	if err != nil && !known {
		faults.Add("", err)
	}
	for i := range faults {
		faults[i].Key = strings.TrimSuffix("cache.sources."+k.name+"."+faults[i].Key, ".")
	}
	return source, faults
}

// unbuilt stands for a source whose settings are wrong, or name a file that is not here. What has to be read from it
// fails with that, and what is here already, and the other sources, see nothing of it.
type unbuilt struct {
	kind   kind
	faults web.Faults // when it was tried first
	lines  func(web.Faults) faultLines

	mu   sync.Mutex
	made cache.Source // once it can be: a Secret may come late
}

// source is what u stands for, tried again at each call.
func (u *unbuilt) source() (cache.Source, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.made != nil {
		return u.made, nil
	}
	source, faults := u.kind.make()
	if len(faults) == 0 {
		u.made = source
		return source, nil
	}
	// A file may come or become another; a setting is what it is until an edit, which makes other sources.
	final := slices.ContainsFunc(faults, func(f web.Fault) bool { return f.Cause == web.Setting })
	return nil, &model.Error{Reason: "BadConfig", Text: u.lines(faults).Error(), Final: final}
}

// Resolve is that of the source.
func (u *unbuilt) Resolve(ctx context.Context, ref model.Ref) (model.Manifest, error) {
	source, err := u.source()
	if err != nil {
		return model.Manifest{}, err
	}
	return source.Resolve(ctx, ref)
}

// Open is that of the source.
func (u *unbuilt) Open(ctx context.Context, ref model.Ref, f model.File, offset, n int64) (io.ReadCloser, error) {
	source, err := u.source()
	if err != nil {
		return nil, err
	}
	return source.Open(ctx, ref, f, offset, n)
}

// buildSources builds what the cache pulls from, by scheme, and names those that stand for others. lines tells faults.
func buildSources(cfg config.Cache, lines func(web.Faults) faultLines) (sources map[string]cache.Source, waiting []*unbuilt) {
	sources = map[string]cache.Source{}
	for _, k := range kinds(cfg) {
		source, faults := k.make()
		if len(faults) > 0 {
			u := &unbuilt{kind: k, faults: faults, lines: lines}
			source, waiting = u, append(waiting, u)
		}
		for _, scheme := range k.schemes {
			sources[scheme] = source
		}
	}
	return sources, waiting
}

// referenceFaults are the sources of models that can never be read.
func referenceFaults(cfg config.Cache) (faults web.Faults) {
	check := map[string]func(model.Ref) error{}
	for _, k := range kinds(cfg) {
		for _, scheme := range k.schemes {
			check[scheme] = k.check
		}
	}
	for i, spec := range cfg.Specs() {
		if check := check[spec.Source.Scheme]; check != nil {
			faults.Add(fmt.Sprintf("cache.models[%d].source", i), check(spec.Source))
		}
	}
	return faults
}

// sourceFaults is what the sources say of a file, as config check tells it: what is of the machine that it runs on
// may be otherwise on the nodes.
func sourceFaults(c config.Config) (told []config.Fault) {
	if !c.Cache.Enabled {
		return nil
	}
	var faults web.Faults
	for _, k := range kinds(c.Cache) {
		_, wrong := k.make()
		faults = append(faults, wrong...)
	}
	for _, f := range append(faults, referenceFaults(c.Cache)...) {
		fault := config.Fault{Key: f.Key, Text: f.Err.Error(), Note: f.Cause == web.Machine}
		if fault.Note {
			fault.Text += "; nothing is pulled from this source on nodes where it is so"
		}
		told = append(told, fault)
	}
	return told
}

// faultLines are faults with their places in the file, as one error.
type faultLines []string

func (f faultLines) Error() string { return strings.Join(f, "; ") }

func linesOf(c config.Config, faults web.Faults) (lines faultLines) {
	for _, f := range faults {
		lines = append(lines, c.At(f.Key)+": "+f.Err.Error())
	}
	return lines
}
