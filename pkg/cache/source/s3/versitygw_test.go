package s3_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/cache/source/s3"
	"github.com/gpu-agent/gpu-agent/pkg/cache/source/sourcetest"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// TestContractOnVersitygw runs against a real S3 server, where there is one.
func TestContractOnVersitygw(t *testing.T) {
	bin, err := exec.LookPath("versitygw")
	if err != nil {
		t.Skip("no versitygw on PATH: test/e2e/build.sh builds it, and prints the folder")
	}
	dir := t.TempDir()
	for _, bucket := range []string{"models", "versions"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, bucket), 0o755))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	cmd := exec.CommandContext(t.Context(), bin, "--access", "AKIDTEST", "--secret", "sEcReT", "--port", addr, "posix", "--versioning-dir", t.TempDir(), dir)
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, 20*time.Second, 20*time.Millisecond)

	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := sdk.New(sdk.Options{
		BaseEndpoint: aws.String("http://" + addr), UsePathStyle: true, Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider("AKIDTEST", "sEcReT", ""),
		HTTPClient:  &http.Client{Transport: transport},
	})
	put := func(t *testing.T, key string, b []byte) {
		_, err := client.PutObject(t.Context(), &sdk.PutObjectInput{
			Bucket: aws.String("models"), Key: aws.String(key), Body: bytes.NewReader(b), ChecksumAlgorithm: "SHA256",
		})
		require.NoError(t, err)
	}
	sourcetest.Contract(t, sourcetest.Store{Source: newSource(t, "http://"+addr), Root: "s3://models/", Put: put, Digests: true, // from x-amz-checksum-sha256
		Dir: func(t *testing.T, key string) { put(t, key+"/", nil) },
	}.Origin(t, "s3://models/missing/llama", false))

	for encoding, want := range map[string]string{"gzip": "Encoded", "aws-chunked, br": "Encoded", "identity": "", "aws-chunked": ""} {
		_, err = client.PutObject(t.Context(), &sdk.PutObjectInput{Bucket: aws.String("models"), Key: aws.String("packed/config.json"),
			Body: strings.NewReader("{}"), ContentEncoding: aws.String(encoding)})
		require.NoError(t, err)
		for _, name := range []string{"packed", "packed/config.json"} {
			_, err = newSource(t, "http://"+addr).Resolve(t.Context(), sourcetest.Ref(t, "s3://models/"+name))
			if want == "" {
				require.NoError(t, err, "%s %s", encoding, name)
				continue
			}
			require.Equal(t, want, model.ReasonOf(err), "%s %s: %v", encoding, name, err)
		}
	}

	// A secret that is corrected under its ID counts at once, and so does one that is not right any more.
	file := credentialsFile(t)
	keyed, err := s3.New(s3.Config{Endpoint: "http://" + addr, PathStyle: true, CredentialsFile: file})
	require.NoError(t, err)
	defer keyed.CloseIdle()
	for _, secret := range []string{"wrong", "sEcReT", "wrong"} {
		require.NoError(t, os.WriteFile(file, []byte("[default]\naws_access_key_id = AKIDTEST\naws_secret_access_key = "+secret+"\n"), 0o600))
		_, err = keyed.Resolve(t.Context(), sourcetest.Ref(t, "s3://models/packed"))
		require.Equal(t, secret == "wrong", model.ReasonOf(err) == "Forbidden", "%s: %v", secret, err)
	}

	// In a bucket that keeps versions, what was resolved stays readable.
	_, err = client.PutBucketVersioning(t.Context(), &sdk.PutBucketVersioningInput{
		Bucket: aws.String("versions"), VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	})
	require.NoError(t, err)
	write := func(text string) {
		_, err := client.PutObject(t.Context(), &sdk.PutObjectInput{
			Bucket: aws.String("versions"), Key: aws.String("m/w.bin"), Body: strings.NewReader(text), ChecksumAlgorithm: "CRC64NVME",
		})
		require.NoError(t, err)
	}
	s, ref := newSource(t, "http://"+addr), sourcetest.Ref(t, "s3://versions/m")
	write("the first")
	m, err := s.Resolve(t.Context(), ref)
	require.NoError(t, err)
	h, err := m.Files[0].Check.Hash(9)
	require.NoError(t, err)
	require.NotNil(t, h, "the store names its crc64nvme")
	_, _ = io.WriteString(h, "the first")
	require.True(t, m.Files[0].Check.Matches(h), m.Files[0].Check)
	write("the second")
	body, err := s.Open(t.Context(), ref, m.Files[0], 4, 5)
	require.NoError(t, err)
	defer body.Close()
	got, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Equal(t, "first", string(got))
}
