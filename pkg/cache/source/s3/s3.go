// Package s3 reads models from S3 and the stores that speak its protocol.
//
// Reads are pinned by ETag (If-Match), and by version id where the bucket keeps versions and the policy lets them be
// read (s3:GetObjectVersion, which read-only policies seldom give): then a model that is replaced during a pull can
// still be read to its end.
package s3

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/web"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// Config is one S3 store. The zero value is AWS, with the region and credentials of its default chain.
type Config struct {
	Endpoint        string   // http(s)://host[:port]; "" for AWS
	Region          string   // "" for what the environment says, or us-east-1 where Endpoint is set
	PathStyle       bool     // endpoint/bucket/key instead of bucket.endpoint/key
	Anonymous       bool     // sign nothing: public buckets
	CredentialsFile string   // in the form of ~/.aws/credentials, profile default, read anew for each request; "" for the default chain
	CAFile          string   // PEM certificates to trust beside the system's; "" for those of AWS_CA_BUNDLE
	Proxy           string   // http://host:port of a proxy to the store; "" for what the environment says
	Mirrors         []string // addresses below which other servers have the objects, at bucket/key: see web.ObjectMirrors
	UserAgent       string   // application id within the SDK's own; "" for gpu-agent
	Streams         int      // idle connections kept; 0 means 64
}

// Source reads scheme s3. Safe for concurrent use.
type Source struct {
	client   *s3.Client
	idle     *http.Transport
	mirrors  *web.ObjectMirrors
	endpoint string                // for error texts
	cached   *aws.CredentialsCache // what the default chain gave, until it ends or is refused; nil where there is none

	unversioned sync.Map // buckets whose versions may not be read, by name
}

// versioned stands between an object's key and its version id in model.File.Key. No key holds it.
const versioned = "\x00"

// New checks the configuration and the files it names. It opens no connection.
func New(c Config) (*Source, error) {
	faults := check(c)
	if c.CAFile == "" {
		c.CAFile = os.Getenv("AWS_CA_BUNDLE") // which the SDK reads too, and fails for below
		if _, err := web.Roots(c.CAFile); err != nil {
			c.CAFile = ""
		}
	}
	if c.Streams <= 0 {
		c.Streams = 64
	}
	if c.UserAgent == "" {
		c.UserAgent = "gpu-agent"
	}
	transport := faults.Transport(c.CAFile, c.Proxy, c.Streams)
	mirrors, wrong := web.NewObjectMirrors(c.Mirrors, transport, c.UserAgent)
	faults = append(faults, wrong...)
	client := &http.Client{
		Transport:     listings{transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // signatures stay here
	}
	load := []func(*config.LoadOptions) error{
		config.WithAppID(c.UserAgent),
	}
	if c.Region != "" {
		load = append(load, config.WithRegion(c.Region))
	}
	// Reads the environment and the files in ~/.aws; what needs a network is asked at the first request.
	cfg, err := config.LoadDefaultConfig(context.Background(), load...)
	switch {
	case err != nil:
		faults = append(faults, web.Fault{Key: "region", Cause: web.Machine, Err: fmt.Errorf("the environment's AWS settings cannot be read: %w", err)})
	case cfg.Region == "" && c.Endpoint == "":
		faults = append(faults, web.Fault{Key: "region", Cause: web.Machine, Err: errors.New("no region, and none in the environment: name the buckets' region")})
	case cfg.Region == "":
		cfg.Region = "us-east-1" // most other stores ignore it, and it has to be something
	}
	if err := faults.Of("s3"); err != nil {
		return nil, err
	}
	var cached *aws.CredentialsCache
	switch {
	case c.Anonymous:
		cfg.Credentials = aws.AnonymousCredentials{}
	case c.CredentialsFile != "":
		cfg.Credentials = fromFile(c.CredentialsFile)
	case cfg.Credentials != nil:
		cached, _ = cfg.Credentials.(*aws.CredentialsCache)
		cfg.Credentials = explained{cfg.Credentials}
	}
	api := s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.HTTPClient = client
		o.HTTPSignerV4 = signer{}
		o.Logger = logging.Nop{} // its words are of connections, and on standard error
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
		o.UsePathStyle = c.PathStyle
		o.Retryer = aws.NopRetryer{} // the fetcher retries, and knows what is still wanted
		// Checksums are the cache's own; those of the SDK cover whole objects, not ranges.
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	})
	return &Source{client: api, idle: transport, mirrors: mirrors, endpoint: c.Endpoint, cached: cached}, nil
}

// signer signs each request with a key that is derived for it: the SDK's keeps one for a day by the access key's ID alone, and
// would go on signing with a secret that was corrected, or that changed under its ID.
type signer struct{}

// SignHTTP is that of s3.HTTPSignerV4.
func (signer) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, hash, service, region string, at time.Time, with ...func(*v4.SignerOptions)) error {
	once := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }) // as S3 wants it
	return once.SignHTTP(ctx, c, r, hash, service, region, at, with...)
}

// CloseIdle closes the connections that are kept for the next request.
func (s *Source) CloseIdle() { s.idle.CloseIdleConnections() }

func check(c Config) (faults web.Faults) {
	if c.Endpoint != "" {
		faults.Endpoint(c.Endpoint, "http(s)://host[:port]")
	}
	switch {
	case c.CredentialsFile == "":
	case c.Anonymous:
		faults.Wrong("credentialsFile", "%s is not used when anonymous: remove one of the two", c.CredentialsFile)
	default:
		_, err := readCredentials(context.Background(), c.CredentialsFile)
		faults.File("credentialsFile", err)
	}
	return faults
}

// fromFile reads the file each time it is asked, so that credentials may rotate, and be corrected.
func fromFile(file string) aws.CredentialsProviderFunc {
	return func(ctx context.Context) (aws.Credentials, error) {
		c, err := readCredentials(ctx, file)
		if err != nil {
			err = &model.Error{Reason: "Credentials", Text: "S3 credentials", Err: err}
		}
		return c, err
	}
}

func readCredentials(ctx context.Context, file string) (aws.Credentials, error) {
	readable, err := os.Open(file)
	if err != nil { // the SDK takes a missing file for an empty one
		return aws.Credentials{}, fmt.Errorf("credentials file: %w", err)
	}
	readable.Close()
	p, err := config.LoadSharedConfigProfile(ctx, "default", func(o *config.LoadSharedConfigOptions) {
		o.CredentialsFiles, o.ConfigFiles = []string{file}, []string{}
	})
	if err != nil || !p.Credentials.HasKeys() {
		return aws.Credentials{}, fmt.Errorf("credentials file %s: want a [default] profile with aws_access_key_id and aws_secret_access_key", file)
	}
	return p.Credentials, nil
}

// explained says what to do when the default chain finds nothing.
type explained struct{ aws.CredentialsProvider }

func (e explained) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := e.CredentialsProvider.Retrieve(ctx)
	if err != nil && ctx.Err() == nil {
		err = &model.Error{Reason: "Credentials", Err: err,
			Text: "no S3 credentials: name a credentials file in the config, or say that the bucket is anonymous"}
	}
	return c, err
}

// maxListing bounds one page of a listing, in bytes: 1000 keys of at most 1 KiB, and room. The SDK would read on.
const maxListing = 8 << 20

// errNotS3 is of an answer in another language.
var errNotS3 = errors.New("not an answer of S3")

// listings holds answers to listings to their kind, for the SDK takes any XML for an empty one, and to their bound.
type listings struct{ http.RoundTripper }

func (l listings) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(req)
	if err != nil || req.URL.Query().Get("list-type") == "" {
		return resp, err
	}
	text := bufio.NewReaderSize(resp.Body, 512)
	start, err := text.Peek(512)
	if whole := err == nil || err == io.EOF; whole && resp.StatusCode == http.StatusOK &&
		!bytes.Contains(start, []byte("ListBucketResult")) && !bytes.Contains(start, []byte("<Error")) { // which may come late
		resp.Body.Close()
		return nil, errNotS3
	}
	resp.Body = &bounded{text, resp.Body, maxListing}
	return resp, nil
}

// bounded is a body of which no more than left is read.
type bounded struct {
	io.Reader
	io.Closer
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, &model.Error{Reason: "TooLarge", Final: true, Text: "a page of the listing is larger than 8 MiB: check the endpoint and what stands between"}
	}
	return n, err
}
