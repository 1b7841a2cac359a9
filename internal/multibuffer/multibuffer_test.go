package multibuffer

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
)

// file is one to be hashed, of which some is hashed already.
type file struct {
	*lane
	content []byte
}

func newFile(seed, begin, length int) file {
	content := make([]byte, begin+length)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(content)
	l := &lane{
		from: bytes.NewReader(content), off: int64(begin), end: int64(len(content)),
		sum: sha256.New(), also: crc32.NewIEEE(), done: make(chan struct{}),
	}
	l.sum.Write(content[:begin])
	return file{l, content}
}

func (f file) check(t *testing.T) {
	t.Helper()
	if f.err != nil {
		t.Error(f.err)
	}
	if want := sha256.Sum256(f.content); !bytes.Equal(f.sum.Sum(nil), want[:]) {
		t.Errorf("sha256 of %d bytes is %x, want %x", len(f.content), f.sum.Sum(nil), want)
	}
}

var lengths = []int{quantum, 3*quantum + 7, 1, sha256.BlockSize, quantum - 1, 5 * quantum, 2*quantum + sha256.BlockSize, 4*quantum + 1}

func TestSideBySide(t *testing.T) {
	if !together {
		t.Log("this CPU hashes one file at a time: blocks is not tried")
	}
	for n := 1; n <= lanes; n++ {
		for _, begin := range []int{0, 1, sha256.BlockSize, quantum + 63} {
			for first := range lengths {
				t.Run(fmt.Sprintf("%d from %d, first %d", n, begin, lengths[first]), func(t *testing.T) {
					var files []file
					for i := range n {
						files = append(files, newFile(i, begin, lengths[(first+i)%len(lengths)]))
					}
					for more := true; more; {
						var now []*lane
						for _, f := range files {
							if f.off < f.end {
								now = append(now, f.lane)
							}
						}
						if more = len(now) > 0; more {
							step(now, new(buffers))
						}
					}
					for _, f := range files {
						f.check(t)
					}
				})
			}
		}
	}
}

func TestPool(t *testing.T) {
	var p Pool
	for range 3 {
		var group sync.WaitGroup
		for i := range 20 {
			f := newFile(i, i, lengths[i%len(lengths)])
			group.Go(func() {
				check := crc32.NewIEEE()
				f.err = p.Hash(f.from, f.off, f.end, f.sum, check)
				f.check(t)
				if want := crc32.ChecksumIEEE(f.content[f.off:]); check.Sum32() != want {
					t.Errorf("crc32 %x, want %x", check.Sum32(), want)
				}
			})
		}
		group.Wait()
		if err := p.Hash(nil, 5, 5, nil, nil); err != nil {
			t.Errorf("no bytes: %v", err)
		}
	}
}

// TestTheStateIsKnown fails where crypto/sha256 marshals in another way: all would be right then, and one by one.
func TestTheStateIsKnown(t *testing.T) {
	for _, c := range []struct {
		bytes int
		known bool
	}{{0, true}, {1, false}, {sha256.BlockSize, true}, {quantum, true}, {quantum + 63, false}} {
		l := newFile(1, c.bytes, 1).lane
		if known := l.load(); known != c.known {
			t.Errorf("of %d bytes: known %v, want %v", c.bytes, known, c.known)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// TestOneFails: whoever is beside a file that fails is hashed all the same.
func TestOneFails(t *testing.T) {
	short, refused, good, other := newFile(1, 0, 2*quantum), newFile(2, 0, 2*quantum), newFile(3, 0, 2*quantum), newFile(4, 0, 2*quantum)
	short.end++
	refused.also = full{}
	p := &Pool{waiting: []*lane{short.lane, good.lane, refused.lane, other.lane}, cores: 1, busy: 4}
	p.work()
	for _, f := range []file{short, good, refused, other} {
		<-f.done
	}
	if !errors.Is(short.err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is shorter: %v, want %v", short.err, io.ErrUnexpectedEOF)
	}
	if !errors.Is(refused.err, io.ErrShortWrite) {
		t.Errorf("a checksum that fails: %v, want %v", refused.err, io.ErrShortWrite)
	}
	good.check(t)
	other.check(t)
	if p.cores != 0 || len(p.waiting) != 0 {
		t.Errorf("%d at work and %d waiting, want none", p.cores, len(p.waiting))
	}
}

// odd is a hash whose state is not known.
type odd struct{ io.Writer }

func (odd) Sum([]byte) []byte { return nil }
func (odd) Reset()            {}
func (odd) Size() int         { return 0 }
func (odd) BlockSize() int    { return 1 }

func TestUnknownState(t *testing.T) {
	var got bytes.Buffer
	strange, beside := newFile(1, 0, 2*quantum), newFile(2, 0, 2*quantum)
	strange.sum = odd{&got}
	for range 2 {
		step([]*lane{strange.lane, beside.lane}, new(buffers))
	}
	if !bytes.Equal(got.Bytes(), strange.content) {
		t.Errorf("%d bytes were written, which are not the file's %d", got.Len(), len(strange.content))
	}
	beside.check(t)
}

func BenchmarkStep(b *testing.B) {
	for n := 1; n <= lanes; n++ {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var now []*lane
			for i := range n {
				f := newFile(i, 0, quantum)
				f.also = nil
				now = append(now, f.lane)
			}
			b.SetBytes(int64(n) * quantum)
			into := new(buffers)
			for b.Loop() {
				for _, l := range now {
					l.off = 0
				}
				step(now, into)
			}
		})
	}
}
