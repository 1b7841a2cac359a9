package cache

import (
	"crypto/sha256"
	"encoding/hex"
	jsonv1 "encoding/json"
	"encoding/json/v2"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/gpu-agent/gpu-agent/internal/durable"
	"github.com/gpu-agent/gpu-agent/pkg/cache/archive"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

// record is what a visible model consists of: store/manifests/<name>.json, and of an old revision
// store/revisions/<name>@<rev12>.json. Every file has a digest.
type record struct {
	Name      string       `json:"name"`
	Source    string       `json:"source"` // for people: without query
	Ref       string       `json:"ref"`    // fingerprint of the whole reference, whose query may be a secret
	Revision  string       `json:"revision"`
	Hub       model.Hub    `json:"hub,omitzero"`
	Files     []model.File `json:"files"`
	Published time.Time    `json:"published"`
	Retired   time.Time    `json:"retired,omitzero"` // when another revision took its place; zero while it is current

	// Of a model with archives: what the origin named, and what the archives hold.
	Origin   []model.File       `json:"origin,omitempty"`
	Archives []archive.Unpacked `json:"archives,omitempty"`

	size  int64 // of Files, in bytes
	first int   // of Files, how many are FirstUse
}

// named is the files as the origin named them, digests that it did not name included.
func (r *record) named() []model.File {
	if len(r.Origin) > 0 {
		return r.Origin
	}
	return r.Files
}

func sizeOf(files []model.File) int64 { return model.Manifest{Files: files}.Size() }

func firstUses(files []model.File) (n int) {
	for _, f := range files {
		if f.FirstUse {
			n++
		}
	}
	return n
}

// plan is what a partial download is of: store/partial/<name>/plan.json.
type plan struct {
	Ref      string         `json:"ref"`
	Step     int64          `json:"step"` // bytes a range, as of the first byte
	Manifest model.Manifest `json:"manifest"`
}

// journal is how far one file of a partial download is known to be on the disk: NNNNN.json.
type journal struct {
	Done []byte `json:"done,omitempty"` // a bit per range, lowest first
	// Parts are the bytes from its start of each range that is not done, where there are any.
	Parts map[int]int64 `json:"parts,omitempty"`
	hashState
	// Sum is the digest of the whole file, set once it is complete and verified.
	Sum model.Digest `json:"sum,omitempty"`
	// Unpacked says that the file is an archive whose members are here in its place.
	Unpacked bool             `json:"unpacked,omitempty"`
	Members  []archive.Member `json:"members,omitempty"`
}

// hashState is how far a file is hashed; of none of it the zero hashState.
type hashState struct {
	Hashed int64  `json:"hashed,omitempty"` // bytes from the start that are in Hash
	Hash   []byte `json:"hash,omitempty"`   // state of the sha256
	Check  []byte `json:"check,omitempty"`  // state of the hash of the origin's own checksum
}

// memory is what is kept about a model beyond its content: store/state/<name>.json, mode 0600, because
// the reference's query may hold a signature.
type memory struct {
	Ref     model.Ref `json:"ref,omitzero"`
	Wished  bool      `json:"wished,omitempty"` // by Pull
	Pinned  bool      `json:"pinned,omitempty"` // by Pin
	LastUse time.Time `json:"lastUse,omitzero"`
	// Pins are the revisions that Pin keeps, as model.Revision12 has them, sorted. Uses are when a file of
	// an old one was last opened. Neither is changed in place.
	Pins []string             `json:"pins,omitempty"`
	Uses map[string]time.Time `json:"uses,omitempty"`
	Held hold                 `json:"held,omitzero"`
	// Looked is when the origin last said what it has, and Origin the revision that it named.
	Looked time.Time `json:"looked,omitzero"`
	Origin string    `json:"origin,omitempty"`
	Wrong  wrong     `json:"wrong,omitzero"`
}

// hold keeps a model at a revision, until somebody pulls it or it is to come from elsewhere.
type hold struct {
	Revision string `json:"revision"`
	Ref      string `json:"ref"` // fingerprint of the reference that is not followed
}

func (m memory) isZero() bool { return reflect.ValueOf(m).IsZero() }

// fingerprint tells references apart without giving away what is in them.
func fingerprint(r model.Ref) string {
	sum := sha256.Sum256([]byte(r.URL() + "#" + string(r.Digest)))
	return hex.EncodeToString(sum[:])
}

// Files are read and written as streams: that of a model of 100,000 files has tens of megabytes, and would be in memory
// several times over.

func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := decode(f, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// decode reads JSON to the end of r. As it used to, encoding/json would first have all of it in memory to see whether it
// is JSON to its end: after an error v may be anything.
func decode(r io.Reader, v any) error {
	return json.UnmarshalRead(r, v, jsonv1.DefaultOptionsV1(), jsonv1.ReportErrorsWithLegacySemantics(false))
}

// readRecord reads what writeJSON made of a record.
func readRecord(path string) (*record, error) {
	var r record
	if err := readJSON(path, &r); err != nil {
		return nil, err
	}
	r.size, r.first = sizeOf(r.Files), firstUses(r.Files)
	return &r, nil
}

func writeJSON(disk durable.Disk, path string, v any, perm fs.FileMode) error {
	return disk.WriteStream(path, perm, func(w io.Writer) error {
		if err := json.MarshalWrite(w, v, jsonv1.DefaultOptionsV1()); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		_, err := io.WriteString(w, "\n")
		return err
	})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// checkManifest makes an origin's answer safe to use: paths that stay inside, no two alike, sizes that
// are sizes. It sorts the files and puts the reference's digest on the one file that it is for.
func checkManifest(ref model.Ref, m model.Manifest) (model.Manifest, error) {
	bad := func(reason, format string, args ...any) (model.Manifest, error) {
		return m, &model.Error{Reason: reason, Text: ref.String() + ": " + fmt.Sprintf(format, args...), Final: true}
	}
	if len(m.Files) == 0 {
		return bad("Empty", "no files there: check the path")
	}
	if err := checkHub(m); err != nil {
		return bad("BadPath", "%v", err)
	}
	m.Files = slices.Clone(m.Files)
	slices.SortFunc(m.Files, func(a, b model.File) int { return strings.Compare(a.Path, b.Path) })
	taken := map[string]bool{}
	var total int64
	for i, f := range m.Files {
		if err := model.CheckPath(f.Path); err != nil {
			return bad("BadPath", "%v: the origin must not name such a file", err)
		}
		if taken[f.Path] {
			return bad("BadPath", "file %q is listed twice", f.Path)
		}
		taken[f.Path] = true
		if f.Size < 0 || f.Size > 1<<50 || total > 1<<50 {
			return bad("BadSize", "file %q has a size of %d bytes", f.Path, f.Size)
		}
		total += f.Size
		if f.Digest != "" {
			d, err := model.ParseDigest(string(f.Digest))
			if err != nil {
				return bad("BadDigest", "file %q: %v", f.Path, err)
			}
			m.Files[i].Digest = d
		}
		if _, err := f.Check.Hash(f.Size); err != nil {
			return bad("BadDigest", "file %q: %v", f.Path, err)
		}
		if a := f.Archive; a != "" && a != model.Directory && a != model.Image {
			return bad("BadArchive", "file %q is an archive of kind %q, which there is not", f.Path, a)
		}
	}
	for p := range taken {
		for i := strings.LastIndexByte(p, '/'); i > 0; i = strings.LastIndexByte(p[:i], '/') {
			if taken[p[:i]] {
				return bad("BadPath", "%q is both a file and a directory", p[:i])
			}
		}
	}
	if ref.Digest != "" {
		if len(m.Files) != 1 {
			return bad("BadDigest", "one sha256 is given for %d files", len(m.Files))
		}
		if d := m.Files[0].Digest; d != "" && d != ref.Digest {
			return bad("WrongDigest", "the origin has sha256 %s, the reference asks for %s", d, ref.Digest)
		}
		m.Files[0].Digest = ref.Digest
	}
	return m, nil
}
