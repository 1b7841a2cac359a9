package model

import (
	"crypto/md5"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"strings"

	"github.com/minio/crc64nvme"
)

// Checksum is what an origin says of content whose sha256 it does not name, as "<kind>:<hexadecimal>";
// "" where it says nothing. The kinds are git-sha1, the object id of a git blob, crc32c, crc32,
// crc64nvme and md5.
type Checksum string

const (
	gitSHA1 = "git-sha1:"
	crc32c  = "crc32c:"
	ieee    = "crc32:"
	nvme    = "crc64nvme:"
	md5sum  = "md5:"
)

// GitSHA1 is the checksum that git keeps of a file: the sha1 of "blob <size>\0" and the content.
func GitSHA1(id string) (Checksum, error) {
	id = strings.ToLower(id)
	if !isHex(id, 40) {
		return "", fmt.Errorf("git object %q: want 40 hexadecimal digits", id)
	}
	return Checksum(gitSHA1 + id), nil
}

// CRC32C is the checksum that Cloud Storage keeps of an object: crc32 of Castagnoli, big-endian.
func CRC32C(sum [4]byte) Checksum { return Checksum(crc32c + hex.EncodeToString(sum[:])) }

// CRC32 is one that S3 may keep of an object: crc32 of IEEE, big-endian.
func CRC32(sum [4]byte) Checksum { return Checksum(ieee + hex.EncodeToString(sum[:])) }

// CRC64NVME is the checksum that S3 keeps of an object unless the uploader chose another, big-endian.
func CRC64NVME(sum [8]byte) Checksum { return Checksum(nvme + hex.EncodeToString(sum[:])) }

// MD5 is the checksum that Azure keeps of a blob whose uploader sent it.
func MD5(sum [16]byte) Checksum { return Checksum(md5sum + hex.EncodeToString(sum[:])) }

// Hash is what to write the size bytes of content into; nil for "". Its state can be saved, as that of
// crypto/sha256 can. The sha1 of git tells damage from health; against a forger it is worth what sha1 is,
// and the others nothing.
func (c Checksum) Hash(size int64) (hash.Hash, error) {
	if c == "" {
		return nil, nil
	}
	if sum, ok := strings.CutPrefix(string(c), crc32c); ok && isHex(sum, 8) {
		return crc32.New(crc32.MakeTable(crc32.Castagnoli)), nil
	}
	if sum, ok := strings.CutPrefix(string(c), ieee); ok && isHex(sum, 8) {
		return crc32.NewIEEE(), nil
	}
	if sum, ok := strings.CutPrefix(string(c), nvme); ok && isHex(sum, 16) {
		return crc64nvme.New(), nil
	}
	if sum, ok := strings.CutPrefix(string(c), md5sum); ok && isHex(sum, 32) {
		return md5.New(), nil
	}
	id, ok := strings.CutPrefix(string(c), gitSHA1)
	if !ok || !isHex(id, 40) {
		return nil, fmt.Errorf("checksum %q: want git-sha1: and 40 hexadecimal digits, md5: and 32, crc64nvme: and 16, or crc32c: or crc32: and 8", string(c))
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", size)
	return h, nil
}

// Matches says whether h, made by Hash and given all of the content, came to c.
func (c Checksum) Matches(h hash.Hash) bool {
	_, want, _ := strings.Cut(string(c), ":")
	return want == hex.EncodeToString(h.Sum(nil))
}
