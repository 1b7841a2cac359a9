package model

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// SumsName is the file in which an origin lists its files with their digests, as sha256sum(1) writes it.
const SumsName = "SHA256SUMS"

// MaxSums bounds what is read of a SHA256SUMS file, in bytes: room for 100,000 files with paths of 100.
const MaxSums = 16 << 20

// NewManifest sorts files and names their revision: a hash over each path, size and digest, or checksum
// or version where the origin gives no digest. It takes ownership of files. It refuses paths that CheckPath refuses,
// doubles, and a file whose path is another's directory, which object stores allow and disks do not.
func NewManifest(files []File) (Manifest, error) {
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	seen := make(map[string]bool, len(files))
	for _, f := range files {
		if err := CheckPath(f.Path); err != nil {
			return Manifest{}, badPath(err)
		}
		if seen[f.Path] {
			return Manifest{}, badPath(fmt.Errorf("file path %q is there twice", f.Path))
		}
		seen[f.Path] = true
	}
	sum := sha256.New()
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if seen[dir] {
				return Manifest{}, badPath(fmt.Errorf("%q is a file and also the directory of %q", dir, f.Path))
			}
		}
		content := string(f.Digest)
		if content == "" {
			content = string(f.Check)
		}
		if content == "" {
			content = f.Version
		}
		fmt.Fprintf(sum, "%q %d %q\n", f.Path, f.Size, content)
	}
	return Manifest{Revision: hex.EncodeToString(sum.Sum(nil)), Files: files}, nil
}

func badPath(err error) error {
	return &Error{Reason: "BadPath", Final: true, Text: "the origin lists a file that cannot be stored: rename it there", Err: err}
}

// ParseSums reads what sha256sum(1) writes: "<64 hexadecimal digits>  <path>" a line. Only Path and
// Digest of the files are set. A line for the SHA256SUMS file itself is left out: it cannot be right.
func ParseSums(r io.Reader) ([]File, error) {
	var files []File
	seen := map[string]bool{}
	in := bufio.NewScanner(r)
	for n := 1; in.Scan(); n++ {
		line := strings.TrimSuffix(in.Text(), "\r")
		if strings.TrimSpace(line) == "" {
			continue
		}
		hexa, name, ok := strings.Cut(line, " ")
		if !ok || name == "" || (name[0] != ' ' && name[0] != '*') {
			return nil, fmt.Errorf("line %d: want <sha256>, two spaces, <path>", n)
		}
		digest, err := ParseDigest(hexa)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		name = strings.TrimPrefix(name[1:], "./") // find -exec sha256sum writes it
		if name == SumsName {
			continue
		}
		if err := CheckPath(name); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if seen[name] {
			return nil, fmt.Errorf("line %d: file path %q is there twice", n, name)
		}
		seen[name] = true
		files = append(files, File{Path: name, Digest: digest})
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("it lists no file")
	}
	return files, nil
}

// SetDigests gives files, in place, the digests of a SHA256SUMS file, whose own sha256 is to be want where that is
// not "". A file that it lists is to be among files; one that it does not list keeps what it has. An error is an *Error
// that is final; where names the SHA256SUMS file in it.
func SetDigests(files []File, text []byte, want Digest, where string) error {
	bad := func(reason string, err error) error {
		return &Error{Reason: reason, Final: true, Text: where, Err: err}
	}
	if len(text) > MaxSums {
		return bad("BadSums", errors.New("larger than 16 MiB"))
	}
	if sum := sha256.Sum256(text); want != "" && hex.EncodeToString(sum[:]) != string(want) {
		return bad("WrongDigest", fmt.Errorf("its sha256 is %x, the source says %s", sum, want))
	}
	listed, err := ParseSums(bytes.NewReader(text))
	if err != nil {
		return bad("BadSums", err)
	}
	at := make(map[string]int, len(files))
	for i, f := range files {
		at[f.Path] = i
	}
	for _, l := range listed {
		i, ok := at[l.Path]
		if !ok {
			return bad("NotFound", fmt.Errorf("it names %q, which is not there", l.Path))
		}
		files[i].Digest = l.Digest
	}
	return nil
}
