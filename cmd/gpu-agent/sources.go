package main

import (
	"fmt"

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
)

// buildSources builds what the cache pulls from, by scheme.
func buildSources(cfg config.Cache) (map[string]cache.Source, error) {
	c := cfg.Sources
	pages, err := httpsource.New(httpsource.Config{
		CAFile: c.HTTP.CAFile, Proxy: c.HTTP.Proxy, Mirrors: mirrors(c.HTTP.Mirrors), TokenFile: c.HTTP.TokenFile, Hosts: c.HTTP.TokenHosts,
		AllowPlain: c.HTTP.AllowPlain, UserAgent: "gpu-agent/" + version, Streams: cfg.Streams,
	})
	if err != nil {
		return nil, usageError{fmt.Errorf("cache.sources.http: %w", err)}
	}
	bucket, err := s3.New(s3.Config{
		Endpoint: c.S3.Endpoint, Region: c.S3.Region, PathStyle: c.S3.PathStyle, Anonymous: c.S3.Anonymous,
		CredentialsFile: c.S3.CredentialsFile, CAFile: c.S3.CAFile, Proxy: c.S3.Proxy, Mirrors: c.S3.Mirrors, Streams: cfg.Streams,
	})
	if err != nil {
		return nil, usageError{fmt.Errorf("cache.sources.s3: %w", err)}
	}
	registry, err := oci.New(oci.Config{
		CredentialsFile: c.OCI.CredentialsFile, CAFile: c.OCI.CAFile, Proxy: c.OCI.Proxy, Mirrors: mirrors(c.OCI.Mirrors), PlainHosts: c.OCI.PlainHosts,
		UserAgent: "gpu-agent/" + version, Streams: cfg.Streams,
	})
	if err != nil {
		return nil, usageError{fmt.Errorf("cache.sources.oci: %w", err)}
	}
	of := func(c config.SourceHub) hub.Config {
		return hub.Config{Endpoint: c.Endpoint, Mirrors: c.Mirrors, TokenFile: c.TokenFile, CAFile: c.CAFile, Proxy: c.Proxy,
			AllowPickle: c.AllowPickle, UserAgent: "gpu-agent/" + version, Streams: cfg.Streams}
	}
	huggingFace, err := hf.New(of(c.HF))
	if err != nil {
		return nil, usageError{fmt.Errorf("cache.sources.hf: %w", err)}
	}
	modelScope, err := ms.New(of(c.MS))
	if err != nil {
		return nil, usageError{fmt.Errorf("cache.sources.ms: %w", err)}
	}
	local, err := file.New(file.Config{Roots: c.File.Roots})
	if err != nil {
		return nil, usageError{fmt.Errorf("cache.sources.file: %w", err)}
	}
	google, err := gs.New(gs.Config{
		Endpoint: c.GS.Endpoint, Anonymous: c.GS.Anonymous, CredentialsFile: c.GS.CredentialsFile, CAFile: c.GS.CAFile, Proxy: c.GS.Proxy, Mirrors: c.GS.Mirrors,
		UserAgent: "gpu-agent/" + version, Streams: cfg.Streams,
	})
	if err != nil {
		return nil, usageError{fmt.Errorf("cache.sources.gs: %w", err)}
	}
	azure, err := az.New(az.Config{
		Endpoint: c.AZ.Endpoint, Anonymous: c.AZ.Anonymous, CredentialsFile: c.AZ.CredentialsFile, CAFile: c.AZ.CAFile, Proxy: c.AZ.Proxy, Mirrors: c.AZ.Mirrors,
		UserAgent: "gpu-agent/" + version, Streams: cfg.Streams,
	})
	if err != nil {
		return nil, usageError{fmt.Errorf("cache.sources.az: %w", err)}
	}
	return map[string]cache.Source{"https": pages, "http": pages, "s3": bucket, "oci": registry, "hf": huggingFace, "ms": modelScope,
		"file": local, "gs": google, "az": azure}, nil
}

func mirrors(list []config.Mirror) (all []web.Mirror) {
	for _, m := range list {
		all = append(all, web.Mirror{Of: m.Of, URL: m.URL})
	}
	return all
}
