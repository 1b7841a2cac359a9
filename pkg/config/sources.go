package config

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Sources are the origins' settings, by kind.
type Sources struct {
	HTTP SourceHTTP `yaml:"http"`
	S3   SourceS3   `yaml:"s3"`
	OCI  SourceOCI  `yaml:"oci"`
	HF   SourceHub  `yaml:"hf"`
	MS   SourceHub  `yaml:"ms"`
	File SourceFile `yaml:"file"`
	GS   SourceGS   `yaml:"gs"`
	AZ   SourceAZ   `yaml:"az"`
}

// Mirror is a server that is asked for what another one has.
type Mirror struct {
	Of  string `yaml:"of"`
	URL string `yaml:"url"`
}

// SourceHTTP is for https:// origins.
type SourceHTTP struct {
	CAFile     string   `yaml:"caFile"`
	TokenFile  string   `yaml:"tokenFile"`
	TokenHosts []string `yaml:"tokenHosts"`
	AllowPlain bool     `yaml:"allowPlain"`
	Proxy      string   `yaml:"proxy"`
	Mirrors    []Mirror `yaml:"mirrors"`
}

// SourceS3 is for s3:// origins.
type SourceS3 struct {
	Endpoint        string   `yaml:"endpoint"`
	Region          string   `yaml:"region"`
	PathStyle       bool     `yaml:"pathStyle"`
	Anonymous       bool     `yaml:"anonymous"`
	CredentialsFile string   `yaml:"credentialsFile"`
	CAFile          string   `yaml:"caFile"`
	Proxy           string   `yaml:"proxy"`
	Mirrors         []string `yaml:"mirrors"`
}

// SourceOCI is for oci:// origins: registries.
type SourceOCI struct {
	CredentialsFile string   `yaml:"credentialsFile"`
	CAFile          string   `yaml:"caFile"`
	PlainHosts      []string `yaml:"plainHosts"`
	Proxy           string   `yaml:"proxy"`
	Mirrors         []Mirror `yaml:"mirrors"`
}

// SourceHub is for hf:// and ms:// origins: a hub of models, or what speaks its protocol.
type SourceHub struct {
	Endpoint    string   `yaml:"endpoint"`
	Mirrors     []string `yaml:"mirrors"`
	TokenFile   string   `yaml:"tokenFile"`
	CAFile      string   `yaml:"caFile"`
	AllowPickle bool     `yaml:"allowPickle"`
	Proxy       string   `yaml:"proxy"`
}

// SourceGS is for gs:// origins.
type SourceGS struct {
	Endpoint        string   `yaml:"endpoint"`
	Anonymous       bool     `yaml:"anonymous"`
	CredentialsFile string   `yaml:"credentialsFile"`
	CAFile          string   `yaml:"caFile"`
	Proxy           string   `yaml:"proxy"`
	Mirrors         []string `yaml:"mirrors"`
}

// SourceAZ is for az:// origins, Azure Blob Storage.
type SourceAZ struct {
	Endpoint        string   `yaml:"endpoint"`
	Anonymous       bool     `yaml:"anonymous"`
	CredentialsFile string   `yaml:"credentialsFile"`
	CAFile          string   `yaml:"caFile"`
	Proxy           string   `yaml:"proxy"`
	Mirrors         []string `yaml:"mirrors"`
}

// SourceFile is for file:// origins: the directories that may be read.
type SourceFile struct {
	Roots []string `yaml:"roots"`
}

func (s Sources) check(f *file) {
	if len(s.HTTP.TokenHosts) > 0 != (s.HTTP.TokenFile != "") {
		f.wrong("cache.sources.http.tokenFile", "want tokenFile and tokenHosts together: a token goes only to named hosts")
	}
	if s.S3.Endpoint != "" {
		f.server("cache.sources.s3.endpoint", s.S3.Endpoint, "https://minio.example:9000")
	}
	if s.GS.Endpoint != "" {
		f.server("cache.sources.gs.endpoint", s.GS.Endpoint, "https://storage.example:4443")
	}
	if s.AZ.Endpoint != "" {
		f.server("cache.sources.az.endpoint", strings.Replace(s.AZ.Endpoint, "://{account}.", "://", 1), "https://{account}.blob.core.windows.net")
	}
	for kind, list := range map[string][]Mirror{"http": s.HTTP.Mirrors, "oci": s.OCI.Mirrors} {
		for i, m := range list {
			at := fmt.Sprintf("cache.sources.%s.mirrors[%d]", kind, i)
			f.server(at+".url", m.URL, "https://mirror.example")
			if u, err := url.Parse("https://" + m.Of); err != nil || m.Of == "" || u.Host != m.Of {
				f.wrong(at+".of", "want the host[:port] that it is a mirror of, such as registry.example")
			}
		}
	}
	for kind, proxy := range map[string]string{"http": s.HTTP.Proxy, "s3": s.S3.Proxy, "oci": s.OCI.Proxy, "hf": s.HF.Proxy, "ms": s.MS.Proxy, "gs": s.GS.Proxy, "az": s.AZ.Proxy} {
		if u, err := url.Parse(proxy); proxy != "" && (err != nil || u.Host == "" || u.User != nil) {
			f.wrong("cache.sources."+kind+".proxy", "want http://host:port without credentials; one that asks for a login goes into HTTPS_PROXY")
		}
	}
	for kind, hub := range map[string]SourceHub{"hf": s.HF, "ms": s.MS} {
		f.server("cache.sources."+kind+".endpoint", hub.Endpoint, "https://"+map[string]string{"hf": "huggingface.co", "ms": "modelscope.cn"}[kind])
		for i, m := range hub.Mirrors {
			f.server(fmt.Sprintf("cache.sources.%s.mirrors[%d]", kind, i), m, "https://hub.example")
		}
	}
	for kind, list := range map[string][]string{"s3": s.S3.Mirrors, "gs": s.GS.Mirrors, "az": s.AZ.Mirrors} {
		for i, m := range list {
			f.server(fmt.Sprintf("cache.sources.%s.mirrors[%d]", kind, i), m, "https://mirror.example")
		}
	}
	for i, dir := range s.File.Roots {
		at := fmt.Sprintf("cache.sources.file.roots[%d]", i)
		f.absolute(at, dir)
		if filepath.Clean(dir) == "/" {
			f.wrong(at, "want a directory of models, such as /mnt/models: the whole filesystem holds secrets")
		}
	}
}

// server checks the address of one.
func (f *file) server(path, address, such string) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		f.wrong(path, "want http(s)://host[:port] without credentials, such as %s", such)
	}
}

func (m Model) filter() model.Filter {
	return model.Filter{Include: m.Include, Exclude: m.Exclude, AllowPickle: m.AllowPickle}
}

// ref is where the model comes from, with the choice of its files.
func (m Model) ref() model.Ref {
	ref := m.Source.Ref
	if query := m.filter().Query(); query != "" {
		ref.Query = query
	}
	return ref
}

// checkFilter checks which of its files the model at a path asks for.
func (m Model) checkFilter(f *file, at string) {
	given := m.filter()
	if !m.Source.OfHub() {
		if given.Query() != "" {
			f.wrong(at+".source", "include, exclude and allowPickle are for hf:// and ms:// sources: remove them, or name another source")
		}
		return
	}
	if err := given.Check(); err != nil {
		f.wrong(at+".include", "%v", err)
	}
	if m.Source.Query == "" {
		return
	}
	if given.Query() != "" {
		f.wrong(at+".source", "want the choice of files either in the source's query or in include, exclude and allowPickle")
	} else if _, err := model.ParseFilter(m.Source.Query); err != nil {
		f.wrong(at+".source", "%v", err)
	}
}
