// Package model is the vocabulary of the cache: what a model is, where it comes from and how far it
// has come. Plain values; nothing here touches a disk or a network.
package model

import (
	"fmt"
	"net/url"
	"path"
	"strings"
	"time"
	"unicode"

	"github.com/gpu-agent/gpu-agent/internal/lazyregexp"
)

// Digest is a lower-case hexadecimal sha256 of content; "" where the origin names none.
type Digest string

// ParseDigest accepts 64 hexadecimal digits in either case, with or without a leading "sha256:".
func ParseDigest(s string) (Digest, error) {
	d := strings.ToLower(strings.TrimPrefix(s, "sha256:"))
	if !isHex(d, 64) {
		return "", fmt.Errorf("digest %q: want 64 hexadecimal digits of a sha256", s)
	}
	return Digest(d), nil
}

// isHex reports whether s is n hexadecimal digits, none of them in upper case.
func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

// Ref names where a model comes from, such as "s3://bucket/prefix" or
// "https://host/model.safetensors#sha256=…". It never carries credentials.
type Ref struct {
	Scheme string // "https", "http", "s3", "oci", "hf", "ms", "file", "gs", "az"
	Host   string // host[:port], the registry, the bucket or the organization; "" for file
	Path   string // with its leading slash; "" allowed
	Query  string // without "?"
	Digest Digest // of the one file, from the fragment; "" where none was given
}

// ParseRef parses a reference. It rejects credentials in the URL, which would end up in logs.
func ParseRef(s string) (Ref, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" {
		return Ref{}, fmt.Errorf("source %q: want a URL such as https://host/file or s3://bucket/prefix", redact(s))
	}
	if u.User != nil {
		return Ref{}, fmt.Errorf("source %s: credentials in the URL are not accepted: name a credentials file instead", redact(s))
	}
	switch {
	case u.Scheme == "file" && (u.Host != "" || !strings.HasPrefix(u.Path, "/")):
		return Ref{}, fmt.Errorf("source %s: want file:///absolute/path, with three slashes", redact(s))
	case u.Scheme != "file" && u.Host == "":
		return Ref{}, fmt.Errorf("source %s: no host or bucket after %s://", redact(s), u.Scheme)
	}
	r := Ref{Scheme: u.Scheme, Host: u.Host, Path: u.EscapedPath(), Query: u.RawQuery}
	if u.Fragment == "" {
		return r, nil
	}
	hex, ok := strings.CutPrefix(u.Fragment, "sha256=")
	if !ok {
		return Ref{}, fmt.Errorf("source %s: fragment %q: want #sha256=<64 hexadecimal digits>", r, u.Fragment)
	}
	if r.Digest, err = ParseDigest(hex); err != nil {
		return Ref{}, fmt.Errorf("source %s: %w", r, err)
	}
	return r, nil
}

// redact cuts everything that may hold a secret from a URL that could not be accepted.
func redact(s string) string {
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		s = s[:i]
	}
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		if i := strings.LastIndex(rest, "@"); i >= 0 {
			return scheme + "://" + rest[i+1:]
		}
	}
	return s
}

// String is the reference without its query, which may hold a signature, and without its digest.
func (r Ref) String() string { return r.Scheme + "://" + r.Host + r.Path }

// URL is the whole address, query included: for the source that opens it, never for a log.
func (r Ref) URL() string {
	if r.Query == "" {
		return r.String()
	}
	return r.String() + "?" + r.Query
}

// OfHub reports whether r names a repository of a hub: a revision follows an @, and the query is a Filter.
func (r Ref) OfHub() bool { return r.Scheme == "hf" || r.Scheme == "ms" }

// Fixed reports whether what r names cannot change: a digest, a commit.
func (r Ref) Fixed() bool {
	at := r.Path[strings.LastIndexByte(r.Path, '@')+1:]
	return r.Digest != "" || r.Scheme == "oci" && strings.Contains(r.Path, "@") || r.OfHub() && isHex(at, 40)
}

var nameForm = lazyregexp.New(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// CheckName reports why a model's name is not usable as a directory, a label and a metric value.
func CheckName(name string) error {
	if !nameForm().MatchString(name) {
		return fmt.Errorf("model name %q: want 1 to 63 of a-z 0-9 . _ -, with a letter or digit first and last", name)
	}
	return nil
}

// Revision12 is a revision as short as labels and directories have it: at most 12 letters, digits, "-",
// "_" and "." of it, a letter or digit first and last, without the "sha256:" of a digest; "unknown" where
// nothing is left.
func Revision12(revision string) string {
	s := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("-_.", r):
			return r
		}
		return -1
	}, strings.TrimPrefix(revision, "sha256:"))
	s = strings.TrimLeft(s, "-_.")
	if s = strings.TrimRight(s[:min(len(s), 12)], "-_."); s == "" {
		return "unknown"
	}
	return s
}

// Spec is one model that this node should hold.
type Spec struct {
	Name   string
	Source Ref
	Pinned bool // never evicted
	// Refresh is about how often the origin is looked at again, where what Source names can move; 0 is never.
	Refresh time.Duration
	// Priority orders pulls, the highest first, and evictions, the lowest first.
	Priority int
	OnDemand bool // only while a pod on this node asks for it
	// Unfit is why the model is not for this node, for people; "" where it is. Unsure is why that cannot be
	// said yet: what is here of it stays, and nothing is fetched.
	Unfit, Unsure string
}

// File is one file of a model.
type File struct {
	Path   string // slash-separated and relative; see CheckPath
	Size   int64  // bytes
	Digest Digest // "" where the origin names none: then it is recorded on first download
	// FirstUse says that Digest is of what came first, as the origin named no checksum of any kind.
	FirstUse bool `json:",omitempty"`
	// Check is verified beside the sha256, for origins that name another checksum; "" where there is none.
	Check Checksum `json:",omitempty"`
	// Version pins the content while it is read: an ETag, an object version. Opaque to all but its source.
	Version string
	// Key is where the source finds the file. Opaque to all but its source; never a secret.
	Key string
	// Archive says that the file is one of files, which are the model's in its place.
	Archive Archive `json:",omitempty"`
}

// Archive is what becomes of a tar archive's members; "" of a file that is none. It may be compressed by gzip
// or zstd.
type Archive string

// The archives. Those of one model are unpacked in the order of their paths.
const (
	Directory Archive = "directory" // its members are files of the model
	Image     Archive = "image"     // a layer of a container image, over those before: its /models is the model
)

// CheckPath reports why a file path from outside must not be used: it is absolute, climbs out with
// "..", is not clean, or holds what a file name cannot or should not.
func CheckPath(p string) error {
	switch {
	case p == "" || p == ".":
		return fmt.Errorf("file path is empty")
	case len(p) > 1024:
		return fmt.Errorf("file path of %d bytes is longer than 1024", len(p))
	case strings.HasPrefix(p, "/"):
		return fmt.Errorf("file path %q is absolute", p)
	case path.Clean(p) != p || strings.HasPrefix(p, "../") || p == "..":
		return fmt.Errorf("file path %q leaves the model's directory or is not clean", p)
	case strings.Contains(p, `\`):
		return fmt.Errorf("file path %q holds a backslash", p)
	}
	for _, r := range p {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return fmt.Errorf("file path %q holds a control character or is not UTF-8", p)
		}
	}
	for part := range strings.SplitSeq(p, "/") {
		if len(part) > 255 {
			return fmt.Errorf("file path %q: a name is longer than 255 bytes", p)
		}
	}
	return nil
}

// Manifest is what a reference stood for when it was resolved.
type Manifest struct {
	Revision string // what the origin calls this content, or a hash over the files
	Files    []File // sorted by Path, no two alike
	Hub      Hub    `json:",omitzero"` // zero for what is not from a hub
}

// Hub is under which name clients of the Hugging Face hub ask for a model. The commit is the manifest's
// Revision.
type Hub struct {
	Repo     string `json:"repo"`     // organization/name, or a name alone
	Revision string `json:"revision"` // branch, tag or commit that was asked for
}

// Size is the sum of the files' sizes in bytes.
func (m Manifest) Size() int64 {
	var n int64
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// State is how far a model has come.
type State string

// The states. Only in Ready is the model visible to pods.
const (
	Pending  State = "Pending"  // waiting for its turn or for room
	Pulling  State = "Pulling"  // bytes are coming in
	Ready    State = "Ready"    // complete, verified, visible
	Failed   State = "Failed"   // see Reason; tried again when that can help
	Removing State = "Removing" // its directory is going away
	Skipped  State = "Skipped"  // in the config, and not for this node or not now: see Message
)

// Status is one model on this node.
type Status struct {
	Name     string    `json:"name"`
	Source   string    `json:"source"`
	State    State     `json:"state"`
	Reason   string    `json:"reason,omitempty"`  // bounded code: NotFound, Forbidden, WrongDigest, NoSpace, …
	Message  string    `json:"message,omitempty"` // for people, without secrets
	Revision string    `json:"revision,omitempty"`
	Path     string    `json:"path,omitempty"` // of the visible directory, only when Ready
	Disk     string    `json:"disk,omitempty"` // of cache.disks, or root; "" where there is one
	Size     int64     `json:"size"`           // bytes, 0 until resolved
	Done     int64     `json:"done"`           // bytes on disk
	Files    int       `json:"files"`
	FirstUse int       `json:"firstUse,omitempty"` // files, when Ready, of which the origin names no checksum: they are as they first came
	Pinned   bool      `json:"pinned"`
	Wanted   bool      `json:"wanted"` // by the config, not only by a command
	LastUse  time.Time `json:"lastUse,omitzero"`
	RetryAt  time.Time `json:"retryAt,omitzero"`
	Final    bool      `json:"final,omitempty"` // Reason is nothing that trying again can help

	// Asked is the number of the newest Pull of this model, 0 where there was none since the agent
	// started. Answered is the Pull whose outcome is shown: ready where Reason is "", else failed with it.
	// While Answered is less than Asked, the newest Pull has not come to an end.
	Asked    int64 `json:"asked,omitempty"`
	Answered int64 `json:"answered,omitempty"`

	// Update is the look at the origin, and what comes of it, while the state is Ready: what is visible
	// stays so until the new revision is complete. nil while nothing newer is looked for. Reason then
	// says why the last look came to nothing.
	Update *Update `json:"update,omitempty"`

	Origin   string     `json:"origin,omitempty"`  // the revision that the origin named last
	NextLook time.Time  `json:"nextLook,omitzero"` // about when the schedule asks it again; zero: never
	Held     string     `json:"held,omitempty"`    // the revision at which a rollback keeps the model
	Old      []Revision `json:"old,omitempty"`     // earlier revisions that are here still, the newest first

	// Resident is how many of its bytes are in the node's page cache, as of some seconds or minutes ago; nil where
	// nobody looks. Warmth is what reading ahead has come to, for people.
	Resident *int64 `json:"resident,omitempty"`
	Warmth   string `json:"warmth,omitempty"`

	Priority int      `json:"priority,omitempty"`
	Pods     []string `json:"pods,omitempty"`   // namespace/name of those on this node that use it or ask for it, sorted
	Called   bool     `json:"called,omitempty"` // by one of them
	Unfit    string   `json:"unfit,omitempty"`  // why it is not for this node, though it may be here
}

// Revision is an earlier revision of a model that is here still, complete and verified.
type Revision struct {
	Revision string    `json:"revision"`
	Path     string    `json:"path"`
	Size     int64     `json:"size"` // bytes, of which it may share some with others
	Files    int       `json:"files"`
	Retired  time.Time `json:"retired"`          // when another took its place
	LastUse  time.Time `json:"lastUse,omitzero"` // last open since then that was seen
	Pinned   bool      `json:"pinned,omitempty"`
	InUse    string    `json:"inUse,omitempty"` // why it is kept, for people; "": until its room is needed
}

// Use is a pod on this node that runs with a model.
type Use struct {
	Model    string
	Repo     string // of a hub, in place of Model: all models that come from it
	Revision string // the one that it names, whole or as Revision12 has it; "": whichever is current when it looks
	// Since is when it began to run. What was current from then on it may have open.
	Since time.Time
	By    string // namespace/name, for people
	// Pull is that it asks for the model to be here, and does not only use what is: from Source, where that is not
	// zero and nobody else has said where the model comes from.
	Pull   bool
	Source Ref
}

// Rollback is what going back to an earlier revision has changed.
type Rollback struct {
	From string `json:"from,omitempty"` // revision; "" where none was current
	To   string `json:"to"`
}

// Update is a revision that is to replace a visible one.
type Update struct {
	Revision string `json:"revision,omitempty"` // "" until the origin has said what it has
	Size     int64  `json:"size"`               // bytes, 0 until then
	Done     int64  `json:"done"`               // bytes on disk
	// Reason and Message are what it waits for now, or else why its last try failed; "" where neither is so. A Message
	// alone is why nothing comes while it is tried again.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"` // for people
}

// Waits reports whether nothing failed: the update goes on when a pause of cache.bandwidth is over, or one that the
// origin asked for.
func (u Update) Waits() bool { return u.Reason == "Paused" || u.Reason == "Throttled" }

// Explanation is why a model is on a node, is not, or is not yet.
type Explanation struct {
	Status
	Wished          bool     `json:"wished"` // by a command
	PinnedByConfig  bool     `json:"pinnedByConfig"`
	PinnedByCommand bool     `json:"pinnedByCommand"`
	Needed          int64    `json:"needed"`            // bytes that are still to come, 0 where that is not known
	Admitted        bool     `json:"admitted"`          // room for them is reserved
	Free            int64    `json:"free"`              // bytes that nobody has taken or reserved
	Evictable       int64    `json:"evictable"`         // bytes that other models would give up for this one
	Victims         []string `json:"victims,omitempty"` // those models, in the order in which they would go
	Limit           int64    `json:"limit"`             // bytes
	KeptFree        int64    `json:"keptFree"`          // bytes of the filesystem that stay free
	KeptFreeWhy     string   `json:"keptFreeWhy"`       // for people
	Refused         []string `json:"refused,omitempty"` // what pods ask for of it and do not get, and why, for people
}

// Inventory is what the cache holds at one moment. Immutable.
type Inventory struct {
	Time     time.Time `json:"time"`
	Root     string    `json:"root"`
	Models   []Status  `json:"models"`   // sorted by name
	Limit    int64     `json:"limit"`    // bytes that the cache may take
	Used     int64     `json:"used"`     // bytes on disk, partial files included
	Reserved int64     `json:"reserved"` // bytes promised to downloads and not yet written

	// Disks are those that it is on, the root first, where there are several; then Limit, Used and Reserved are of all.
	Disks []Disk `json:"disks,omitempty"`

	Problems []Problem `json:"problems,omitempty"` // of the cache as a whole; sorted by reason
	Refused  []string  `json:"refused,omitempty"`  // what pods ask for and do not get, and why, for people; sorted

	// Counters since the agent started.
	Fetched   int64            `json:"fetched"`            // bytes from origins
	ReadAhead int64            `json:"readAhead"`          // bytes read into the page cache for pods to come
	Evicted   int64            `json:"evicted"`            // models
	Failures  map[string]int64 `json:"failures,omitempty"` // by Reason
	Scrub     Scrub            `json:"scrub"`
}

// Disk is a part of the cache that stands for itself.
type Disk struct {
	Name     string `json:"name"` // root is that of cache.root
	Root     string `json:"root"`
	Error    string `json:"error,omitempty"` // why it is not open; then there are no sizes
	Limit    int64  `json:"limit,omitempty"` // bytes, as of an Inventory
	Used     int64  `json:"used,omitempty"`
	Reserved int64  `json:"reserved,omitempty"`
	Scrub    Scrub  `json:"scrub,omitzero"`
}

// Scrub is the reading again of all content, to find what the disk has lost.
type Scrub struct {
	Bytes   int64     `json:"bytes"`          // read since the agent started
	Damaged int64     `json:"damaged"`        // files found damaged since then
	Ended   time.Time `json:"ended,omitzero"` // of the last pass that came to its end; zero: none yet
}

// Problem is something that keeps the cache from its work until it has passed.
type Problem struct {
	Reason  string `json:"reason"` // bounded code, such as PodsUnknown
	Message string `json:"message"`
}

// Model returns the status of the named model, or nil.
func (inv *Inventory) Model(name string) *Status {
	if inv == nil {
		return nil
	}
	for i := range inv.Models {
		if inv.Models[i].Name == name {
			return &inv.Models[i]
		}
	}
	return nil
}
