package s3_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/s3"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func sum(b string) string {
	d := sha256.Sum256([]byte(b))
	return hex.EncodeToString(d[:])
}

func TestOneObjectIsAModelOfOneFile(t *testing.T) {
	t.Parallel()
	endpoint, put := store(t)
	put("dir/m.gguf", []byte("weights"), map[string]string{"X-Amz-Meta-Sha256": sum("weights")})
	put("dir/m.gguf.bak/x", []byte("no"), nil)
	s := newSource(t, endpoint)

	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/dir/m.gguf"))
	require.NoError(t, err)
	require.Len(t, m.Files, 1)
	f := m.Files[0]
	require.NotEmpty(t, f.Version)
	f.Version = ""
	f.Key, _, _ = strings.Cut(f.Key, "\x00") // this store keeps versions
	require.Equal(t, model.File{Path: "m.gguf", Key: "dir/m.gguf", Size: 7, Digest: model.Digest(sum("weights"))}, f,
		"the digest is from the object's metadata")

	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/dir/m.gguf#sha256="+sum("other")))
	require.Equal(t, "WrongDigest", model.ReasonOf(err), "%v", err)
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/dir/#sha256="+sum("weights")))
	require.Equal(t, "WrongDigest", model.ReasonOf(err), "a digest without a list cannot be that of a directory: %v", err)
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/dir/m.gguf?versionId=1"))
	require.ErrorContains(t, err, "has no query")
}

func TestAnEmptyObjectMayStandForADirectory(t *testing.T) {
	t.Parallel()
	endpoint, put := store(t)
	put("llama", nil, nil)
	s := newSource(t, endpoint)
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/llama"))
	require.NoError(t, err)
	require.Equal(t, "llama", m.Files[0].Path, "nothing under it: it is a file")
	put("llama/config.json", []byte("{}"), nil)
	m, err = s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/llama"))
	require.NoError(t, err)
	require.Len(t, m.Files, 1)
	require.Equal(t, "config.json", m.Files[0].Path)
	put("llama/"+model.SumsName, []byte(sum("x")+"  gone\n"), nil)
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/llama"))
	require.ErrorContains(t, err, `it names "gone", which is not there`, "not a model of one empty file")
}

func TestListsOfMoreThanAPage(t *testing.T) {
	t.Parallel()
	endpoint, put := store(t)
	for i := range 2100 {
		put(fmt.Sprintf("many/%04d", i), []byte{1}, nil)
	}
	m, err := newSource(t, endpoint).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/many"))
	require.NoError(t, err)
	require.Len(t, m.Files, 2100)
	require.Equal(t, "2099", m.Files[2099].Path)
}

func TestKeysThatCannotBeFiles(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"../../etc/passwd", "a//b", "/abs", "a/./b", `a\b`, "dir/"} {
		listing := `<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>m/ok</Key><Size>1</Size></Contents>` +
			`<Contents><Key>m/` + key + `</Key><Size>3</Size></Contents></ListBucketResult>`
		srv := httptest.NewServer(sourcetest.Answer(200, listing, "Content-Type: application/xml"))
		_, err := newSource(t, srv.URL).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/m/"))
		srv.Close()
		require.Equal(t, "BadPath", model.ReasonOf(err), "%s: %v", key, err)
		require.True(t, model.IsFinal(err))
		require.ErrorContains(t, err, fmt.Sprintf("object %q cannot be a file of the model: rename or remove it", "m/"+key))
	}
	endpoint, put := store(t)
	put("m/a", []byte{1}, nil)
	put("m/a/b", []byte{1}, nil)
	_, err := newSource(t, endpoint).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/m/"))
	require.ErrorContains(t, err, `"a" is a file and also the directory of "a/b"`)
}

func TestSumsMustMatchWhatIsThere(t *testing.T) {
	t.Parallel()
	endpoint, put := store(t)
	put("m/a", []byte("a"), nil)
	s, ref := newSource(t, endpoint), sourcetest.Ref(t, "s3://models/m")
	for text, want := range map[string]string{
		sum("a") + "  gone\n":                `object "m/SHA256SUMS": it names "gone", which is not there`,
		"<html>":                             `object "m/SHA256SUMS": line 1: want <sha256>`,
		strings.Repeat(" ", model.MaxSums+1): `object "m/SHA256SUMS": larger than 16 MiB`,
	} {
		put("m/SHA256SUMS", []byte(text), nil)
		_, err := s.Resolve(t.Context(), ref)
		require.ErrorContains(t, err, want)
		require.True(t, model.IsFinal(err))
	}
	text := sum("a") + "  a\n"
	put("m/SHA256SUMS", []byte(text), nil)
	put("m/b", []byte("b"), nil)
	m, err := s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/m#sha256="+sum(text)))
	require.NoError(t, err, "the digest in a ref pins the list")
	require.Equal(t, []model.Digest{model.Digest(sum("a")), ""}, []model.Digest{m.Files[0].Digest, m.Files[1].Digest})
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/m#sha256="+sum("other")))
	require.Equal(t, "WrongDigest", model.ReasonOf(err))
}

func TestChecksumsOfTheStore(t *testing.T) {
	t.Parallel()
	raw := sha256.Sum256([]byte("x"))
	b64 := "X-Amz-Checksum-Sha256: " + base64.StdEncoding.EncodeToString(raw[:])
	for name, c := range map[string]struct {
		headers []string
		want    string
	}{
		"of the whole":         {[]string{b64, "X-Amz-Checksum-Type: FULL_OBJECT", `ETag: "e-2"`}, sum("x")},
		"of the parts":         {[]string{b64, "X-Amz-Checksum-Type: COMPOSITE", `ETag: "e-2"`}, ""},
		"type unsaid":          {[]string{b64, `ETag: "e"`}, sum("x")},
		"type unsaid, parts":   {[]string{b64, `ETag: "e-2"`}, ""},
		"composite suffix":     {[]string{b64 + "-2", `ETag: "e"`}, ""},
		"metadata":             {[]string{"X-Amz-Meta-Sha256: " + strings.ToUpper(sum("x")), `ETag: "e-2"`}, sum("x")},
		"metadata of no sense": {[]string{"X-Amz-Meta-Sha256: yes", `ETag: "e"`}, ""},
	} {
		var asked string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = r.Header.Get("X-Amz-Checksum-Mode")
			sourcetest.Answer(200, "", append(c.headers, "Content-Length: 1")...)(w, r)
		}))
		m, err := newSource(t, srv.URL).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/x"))
		srv.Close()
		require.NoError(t, err, name)
		require.Equal(t, "ENABLED", asked, name)
		require.Equal(t, model.Digest(c.want), m.Files[0].Digest, name)
		require.Empty(t, m.Files[0].Check, name)
	}
	crc64, crc32 := "X-Amz-Checksum-Crc64nvme: rosUhgp5mIg=", "X-Amz-Checksum-Crc32c: 4waSgw==" // of "123456789"
	for name, c := range map[string]struct {
		headers []string
		want    model.Checksum
	}{
		"crc64nvme":               {[]string{crc64, "X-Amz-Checksum-Type: FULL_OBJECT", `ETag: "e-2"`}, "crc64nvme:ae8b14860a799888"},
		"crc64nvme before crc32c": {[]string{crc32, crc64, "X-Amz-Checksum-Type: FULL_OBJECT", `ETag: "e"`}, "crc64nvme:ae8b14860a799888"},
		"crc32c":                  {[]string{crc32, `ETag: "e"`}, "crc32c:e3069283"},
		"crc32":                   {[]string{"X-Amz-Checksum-Crc32: y/Q5Jg==", "X-Amz-Checksum-Type: FULL_OBJECT", `ETag: "e"`}, "crc32:cbf43926"},
		"of the parts":            {[]string{crc32, "X-Amz-Checksum-Type: COMPOSITE", `ETag: "e-2"`}, ""},
		"no sense":                {[]string{"X-Amz-Checksum-Crc64nvme: x", `ETag: "e"`}, ""},
	} {
		srv := httptest.NewServer(sourcetest.Answer(200, "", append(c.headers, "Content-Length: 9")...))
		m, err := newSource(t, srv.URL).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/x"))
		srv.Close()
		require.NoError(t, err, name)
		require.Equal(t, c.want, m.Files[0].Check, name)
	}
}

// What clients would unpack is no file of a model. HEAD, which is asked anyway, says so before anything is fetched.
func TestAnObjectThatIsStoredAsGzip(t *testing.T) {
	t.Parallel()
	for encoding, refused := range map[string]bool{"gzip": true, "aws-chunked,GZIP": true, "br, aws-chunked": true,
		"": false, "identity": false, "aws-chunked": false, "AWS-Chunked,": false} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Query().Has("list-type"):
				sourcetest.Answer(200, `<ListBucketResult><Contents><Key>m/config.json</Key><Size>2</Size><ETag>"v1"</ETag></Contents></ListBucketResult>`,
					"Content-Type: application/xml")(w, r)
			case strings.HasSuffix(r.URL.Path, "/m/config.json"):
				sourcetest.Answer(200, "{}", "Content-Length: 2", `ETag: "v1"`, "Content-Encoding: "+encoding)(w, r)
			default:
				w.WriteHeader(http.StatusNotFound)
			}
		}))
		s := newSource(t, srv.URL)
		check := func(name string, err error) {
			if !refused {
				require.NoError(t, err, "%q %s", encoding, name)
				return
			}
			sourcetest.Fails(t, err, "Encoded", true,
				fmt.Sprintf("s3://models/%s: object m/config.json is stored with Content-Encoding %q: upload it without", name, encoding))
		}
		for _, name := range []string{"m", "m/", "m/config.json"} {
			_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/"+name))
			check(name, err)
		}
		// A file whose digest a SHA256SUMS says is not asked for by HEAD.
		_, err := sourcetest.Read(t, s, sourcetest.Ref(t, "s3://models/m"), model.File{Path: "config.json", Key: "m/config.json", Size: 2, Version: "v1"}, 0, 2)
		check("m", err)
		srv.Close()
	}
}

func TestAVersionIsReadWhereThatIsAllowed(t *testing.T) {
	t.Parallel()
	const content = "0123456789"
	denied := false
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		version := r.URL.Query().Get("versionId")
		asked = append(asked, r.Method+" "+r.URL.Path+" "+version)
		switch {
		case r.Method == http.MethodHead:
			sourcetest.Answer(200, "", "Content-Length: 10", `ETag: "e1"`, "X-Amz-Version-Id: v1")(w, r)
		case version == "v1" && denied:
			refuse(403, "AccessDenied")(w, r)
		case version == "gone":
			refuse(404, "NoSuchVersion")(w, r)
		default:
			sourcetest.Answer(206, content[2:5], "Content-Range: bytes 2-4/10", `ETag: "e1"`)(w, r)
		}
	}))
	defer srv.Close()
	ref := sourcetest.Ref(t, "s3://models/a/m.gguf")
	for range 2 {
		s := newSource(t, srv.URL)
		m, err := s.Resolve(t.Context(), ref)
		require.NoError(t, err)
		asked = nil
		for range 2 {
			body, err := s.Open(t.Context(), ref, m.Files[0], 2, 3)
			require.NoError(t, err)
			got, err := io.ReadAll(body)
			require.NoError(t, err)
			require.NoError(t, body.Close())
			require.Equal(t, "234", string(got))
		}
		want := []string{"GET /models/a/m.gguf v1", "GET /models/a/m.gguf v1"}
		if denied {
			want = []string{"GET /models/a/m.gguf v1", "GET /models/a/m.gguf ", "GET /models/a/m.gguf "}
		}
		require.Equal(t, want, asked, "a right that is not there is tried once")
		denied = true
		gone := m.Files[0]
		gone.Key = "a/m.gguf\x00gone"
		_, err = newSource(t, srv.URL).Open(t.Context(), ref, gone, 2, 3)
		require.Equal(t, "Changed", model.ReasonOf(err), "%v", err)
		require.False(t, model.IsFinal(err))
		require.NotContains(t, err.Error(), "\x00")
	}
}

// What is no answer of S3 is said in our words: the SDK's are of Go, and repeat what came.
func TestAListingThatIsNone(t *testing.T) {
	t.Parallel()
	list := func(contents string) http.HandlerFunc {
		return sourcetest.Answer(200, "<ListBucketResult>"+contents+"</ListBucketResult>", "Content-Type: application/xml")
	}
	const none, object = ": the answer is not one of S3: check the endpoint and what stands between", "<Contents><Key>m/a</Key>"
	for name, c := range map[string]struct {
		serve        http.HandlerFunc
		reason, text string
	}{
		"a size":                {list(object + "<Size>SECRET</Size></Contents>"), "WrongAnswer", none},
		"a date":                {list(object + "<Size>1</Size><LastModified>SECRET</LastModified></Contents>"), "WrongAnswer", none},
		"whether it goes on":    {list("<IsTruncated>SECRET</IsTruncated>"), "WrongAnswer", none},
		"cut XML":               {sourcetest.Answer(200, "<ListBucketResult>"+object), "WrongAnswer", none},
		"a web page":            {sourcetest.Answer(200, "<!doctype html><html><meta charset=x><title>SECRET", "Content-Type: text/html"), "WrongAnswer", none},
		"a page of XML":         {sourcetest.Answer(200, "<html><p>SECRET</p></html>", "Content-Type: text/html"), "WrongAnswer", none},
		"JSON":                  {sourcetest.Answer(200, "{}"), "WrongAnswer", none},
		"nothing":               {sourcetest.Answer(200, ""), "WrongAnswer", none},
		"a header":              {sourcetest.Answer(200, "<ListBucketResult></ListBucketResult>", "X-Amz-Request-Charged: SECRET"), "NotFound", ": no object there"},
		"an error that is late": {sourcetest.Answer(200, "<Error><Code>InternalError</Code><Message>because</Message></Error>"), "Unavailable", "InternalError: because"},
		"cut off":               {sourcetest.Answer(200, "<ListBucketResult>"+strings.Repeat(" ", 600), "Content-Length: 6000"), "Unreachable", ": the connection ended in the middle of an answer"},
		"cut off at once":       {sourcetest.Answer(200, "<List", "Content-Length: 6000"), "Unreachable", ": the connection ended in the middle of an answer"},
	} {
		srv := httptest.NewServer(c.serve)
		_, err := newSource(t, srv.URL).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/m/"))
		srv.Close()
		require.Equal(t, c.reason, model.ReasonOf(err), "%s: %v", name, err)
		require.Equal(t, c.reason == "NotFound", model.IsFinal(err), name)
		require.NotContains(t, err.Error(), "SECRET", name)
		require.NotContains(t, err.Error(), "\n", name)
		require.ErrorContains(t, err, c.text, name)
		if c.text == none {
			require.EqualError(t, err, "s3://models/m/: list m/ at "+srv.URL+none)
		}
	}
	srv := httptest.NewServer(sourcetest.Answer(200, "", "Last-Modified: SECRET", "Content-Length: 5", "ETag: x"))
	defer srv.Close()
	_, err := newSource(t, srv.URL).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/m"))
	require.EqualError(t, err, "s3://models/m: ask for m at "+srv.URL+none)
}

func TestAListingForEverIsNotRead(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "<ListBucketResult><Name>"+strings.Repeat("x", 10<<20)+"</Name></ListBucketResult>")
	}))
	defer srv.Close()
	_, err := newSource(t, srv.URL).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/a/"))
	require.Equal(t, "TooLarge", model.ReasonOf(err), "%v", err)
	require.True(t, model.IsFinal(err))
}

// An answer to HEAD has no body, and so no more than "400 Bad Request" for a wrong region or a token that has expired.
func TestWhatARefusalOfHEADMeansIsAskedFor(t *testing.T) {
	t.Parallel()
	for code, reason := range map[string]string{
		"AuthorizationHeaderMalformed": "WrongRegion", "ExpiredToken": "Expired", "InvalidToken": "Forbidden",
		"": "Refused", // the listing knows no better: it is empty
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && code == "" {
				sourcetest.Answer(200, "<ListBucketResult/>", "Content-Type: application/xml")(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusBadRequest)
			if r.Method == http.MethodGet {
				fmt.Fprintf(w, "<Error><Code>%s</Code><Message>expecting eu-west-1</Message></Error>", code)
			}
		}))
		_, err := newSource(t, srv.URL).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/llama"))
		srv.Close()
		require.Equal(t, reason, model.ReasonOf(err), "%s: %v", code, err)
		if code != "" {
			require.ErrorContains(t, err, "expecting eu-west-1")
		}
	}
}

func TestAKeyThatMayNotBeReadIsLookedForInTheListing(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refuse(http.StatusForbidden, "AccessDenied")(w, r)
	}))
	defer srv.Close()
	_, err := newSource(t, srv.URL).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/x"))
	require.Equal(t, "Forbidden", model.ReasonOf(err))
	require.EqualError(t, err, "s3://models/x: list x/ at "+srv.URL+": check the credentials and that they may list and get here: 403 Forbidden: AccessDenied: because")
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	const server = "setting endpoint: want http(s)://host[:port] and nothing more"
	for _, tc := range []struct {
		config s3.Config
		want   []string
	}{
		{s3.Config{Region: "x", Endpoint: "minio:9000"}, []string{server}},
		{s3.Config{Region: "x", Endpoint: "https://key:secret@minio"}, []string{server}},
		{s3.Config{Region: "x", Endpoint: "https://minio/bucket", CAFile: "/nowhere", CredentialsFile: "/nowhere", Proxy: "p", Mirrors: []string{"https://m", "m"}}, []string{
			server,
			"machine credentialsFile: credentials file: open /nowhere: no such file or directory",
			"machine caFile: open /nowhere: no such file or directory",
			"setting proxy: want http://host:port, https://host:port or socks5://host:port; one that asks for a login goes into HTTPS_PROXY",
			"setting mirrors[1]: want http(s)://host[:port] without credentials, such as https://mirror.example",
		}},
		{s3.Config{Region: "x", CAFile: empty, CredentialsFile: empty}, []string{
			"content credentialsFile: credentials file " + empty + ": want a [default] profile with aws_access_key_id and aws_secret_access_key",
			"content caFile: " + empty + ": want PEM certificates, there is none in it",
		}},
		{s3.Config{Region: "x", Anonymous: true, CredentialsFile: empty}, []string{"setting credentialsFile: " + empty + " is not used when anonymous: remove one of the two"}},
	} {
		_, err := s3.New(tc.config)
		require.Equal(t, tc.want, sourcetest.Faults(t, err))
		require.NotContains(t, err.Error(), "secret@")
	}
}

// What the environment lacks here it may have where the agent runs.
func TestTheEnvironmentIsThatOfTheMachine(t *testing.T) {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/nowhere")
	_, err := s3.New(s3.Config{})
	require.Equal(t, []string{"machine region: no region, and none in the environment: name the buckets' region"}, sourcetest.Faults(t, err))
	t.Setenv("AWS_CA_BUNDLE", "/nowhere")
	_, err = s3.New(s3.Config{Region: "x"})
	lines := sourcetest.Faults(t, err)
	require.Len(t, lines, 1)
	require.Contains(t, lines[0], "machine region: the environment's AWS settings cannot be read: ")
}

func TestReferencesThatCanNeverBeRead(t *testing.T) {
	t.Parallel()
	sourcetest.Refused(t, s3.Check, map[string]string{"s3://b": "", "s3://b/p/": "", "s3://b/p?versionId=1": "BadSource s3://b/p: an s3 source has no query"})
}

func TestCredentialsAreReadAgain(t *testing.T) {
	t.Parallel()
	file := credentialsFile(t)
	s, err := s3.New(s3.Config{Endpoint: "http://127.0.0.1:1", CredentialsFile: file})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/m/"))
	require.Equal(t, "Credentials", model.ReasonOf(err), "%v", err)
	require.ErrorContains(t, err, file)
}

// keyed is a store that takes one access key, and lets nobody else see that there is nothing at models/m.
func keyed(t *testing.T, key, code string) string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Authorization"), "Credential="+key+"/") {
			refuse(http.StatusForbidden, code)(w, r)
			return
		}
		sourcetest.Answer(http.StatusOK, "<ListBucketResult/>", "Content-Type: application/xml")(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestCorrectedCredentialsCountAtOnce(t *testing.T) {
	t.Parallel()
	file := credentialsFile(t)
	s, err := s3.New(s3.Config{Endpoint: keyed(t, "AKIDRIGHT", "SignatureDoesNotMatch"), PathStyle: true, CredentialsFile: file})
	require.NoError(t, err)
	t.Cleanup(s.CloseIdle)
	for _, want := range [][2]string{{"AKIDWRONG", "Forbidden"}, {"AKIDRIGHT", "NotFound"}, {"AKIDWRONG", "Forbidden"}} {
		require.NoError(t, os.WriteFile(file, []byte("[default]\naws_access_key_id = "+want[0]+"\naws_secret_access_key = sEcReT\n"), 0o600))
		_, err = s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/m/"))
		require.Equal(t, want[1], model.ReasonOf(err), "%s: %v", want[0], err)
	}
}

// What the default chain gave is kept, until it is refused.
func TestRefusedCredentialsOfTheChainAreAskedForAnew(t *testing.T) {
	var key atomic.Pointer[string]
	var asked atomic.Int32
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprintf(w, `{"AccessKeyId": %q, "SecretAccessKey": "sEcReT", "Token": "t"}`, *key.Load())
	}))
	defer agent.Close()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
		"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/nowhere")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.URL)
	for code, reason := range map[string]string{"InvalidAccessKeyId": "Forbidden", "ExpiredToken": "Expired"} {
		s, err := s3.New(s3.Config{Endpoint: keyed(t, "AKIDRIGHT", code), PathStyle: true})
		require.NoError(t, err)
		resolve := func(want string, times int32) {
			_, err := s.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/m/"))
			require.Equal(t, want, model.ReasonOf(err), "%s: %v", code, err)
			require.Equal(t, times, asked.Swap(0), code)
		}
		key.Store(new("AKIDOLD"))
		resolve(reason, 1)
		resolve(reason, 1)
		key.Store(new("AKIDRIGHT"))
		resolve("NotFound", 1)
		resolve("NotFound", 0)
		s.CloseIdle()
	}
}

func TestAListingWithoutEndIsNotFollowed(t *testing.T) {
	t.Parallel()
	var more atomic.Pointer[func(int) bool]
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n, contents := int(asked.Add(1)), ""
		if (*more.Load())(n) {
			contents = fmt.Sprintf("<Contents><Key>m/%d/</Key><Size>0</Size></Contents>", n)
		}
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprintf(w, "<ListBucketResult><IsTruncated>true</IsTruncated>%s<NextContinuationToken>%d</NextContinuationToken></ListBucketResult>", contents, n)
	}))
	defer srv.Close()
	sourcetest.Endless(t, newSource(t, srv.URL), "s3://models/m/", func(page func(int) bool) { more.Store(&page) })
}
