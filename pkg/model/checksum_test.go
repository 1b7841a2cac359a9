package model_test

import (
	"encoding"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

func TestAChecksumIsTheOneThatGitKeeps(t *testing.T) {
	for content, id := range map[string]string{ // git hash-object
		"":        "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
		"hello\n": "CE013625030BA8DBA906F756967F9E9CA394464A",
	} {
		c, err := model.GitSHA1(id)
		require.NoError(t, err)
		require.Equal(t, "git-sha1:"+strings.ToLower(id), string(c))
		h, err := c.Hash(int64(len(content)))
		require.NoError(t, err)
		require.Implements(t, (*encoding.BinaryMarshaler)(nil), h, "a download that is interrupted goes on")
		_, _ = h.Write([]byte(content))
		require.True(t, c.Matches(h))
		_, _ = h.Write([]byte("x"))
		require.False(t, c.Matches(h))
	}
	none, err := model.Checksum("").Hash(1)
	require.NoError(t, err)
	require.Nil(t, none)
	for _, bad := range []string{"", "abc", strings.Repeat("g", 40), strings.Repeat("a", 64)} {
		_, err := model.GitSHA1(bad)
		require.ErrorContains(t, err, "want 40 hexadecimal digits")
	}
	for _, bad := range []model.Checksum{"git-sha1:abc", "md5:d41d8cd98f00b204", "crc32c:abc", "x"} {
		_, err := bad.Hash(1)
		require.ErrorContains(t, err, "want git-sha1:")
	}
}

func TestACRC32CIsTheOneThatCloudStorageKeeps(t *testing.T) {
	c := model.CRC32C([4]byte{0xe3, 0x06, 0x92, 0x83}) // the check value of CRC-32C (RFC 3720, B.4 has others)
	require.Equal(t, "crc32c:e3069283", string(c))
	h, err := c.Hash(9)
	require.NoError(t, err)
	require.Implements(t, (*encoding.BinaryMarshaler)(nil), h, "a download that is interrupted goes on")
	_, _ = h.Write([]byte("123456789"))
	require.True(t, c.Matches(h))
	_, _ = h.Write([]byte("x"))
	require.False(t, c.Matches(h))
}

func TestAnMD5IsTheOneThatAzureKeeps(t *testing.T) {
	c := model.MD5([16]byte{0x90, 0x01, 0x50, 0x98, 0x3c, 0xd2, 0x4f, 0xb0, 0xd6, 0x96, 0x3f, 0x7d, 0x28, 0xe1, 0x7f, 0x72}) // RFC 1321, A.5: "abc"
	h, err := c.Hash(3)
	require.NoError(t, err)
	require.Implements(t, (*encoding.BinaryMarshaler)(nil), h, "a download that is interrupted goes on")
	_, _ = h.Write([]byte("abc"))
	require.True(t, c.Matches(h))
	_, _ = h.Write([]byte("x"))
	require.False(t, c.Matches(h))
}

func TestTheCRCsAreThoseThatS3Keeps(t *testing.T) {
	for _, c := range []model.Checksum{ // the check values of the CRC catalogue, of "123456789"
		model.CRC32([4]byte{0xcb, 0xf4, 0x39, 0x26}),
		model.CRC64NVME([8]byte{0xae, 0x8b, 0x14, 0x86, 0x0a, 0x79, 0x98, 0x88}),
	} {
		h, err := c.Hash(9)
		require.NoError(t, err)
		require.Implements(t, (*encoding.BinaryMarshaler)(nil), h, "a download that is interrupted goes on")
		_, _ = h.Write([]byte("123456789"))
		require.True(t, c.Matches(h), c)
		_, _ = h.Write([]byte("x"))
		require.False(t, c.Matches(h))
	}
}
