package config

import (
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Sources are the origins' settings, by kind. The sources themselves check them: see Further.
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
