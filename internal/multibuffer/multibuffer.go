// Package multibuffer hashes two files with SHA-256 on one core at once. The instructions for SHA-256 take their time
// before the next round of the same file can begin, and do half as much again when they are given the rounds of
// another one meanwhile (Intel: "Processing Multiple Buffers in Parallel"). The hashes are those of crypto/sha256, whose
// state is read and put back: all that is done here is the blocks in the middle.
package multibuffer

import (
	"crypto/fips140"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
	"io"
	"runtime"
	"slices"
	"sync"
)

const (
	lanes   = 2        // files that one core hashes at once
	quantum = 64 << 10 // bytes of each at a time: they are still in the cache of the core when they are hashed
)

// Pool shares cores among those who hash: the next one begins when the others have as many files as they can have
// at once. It holds nothing and runs nothing while nobody hashes. Its methods may be called at the same time.
type Pool struct {
	mu      sync.Mutex
	waiting []*lane
	cores   int // at work
	busy    int // lanes that wait or that a core is at
}

// most is how many lanes a core has here.
func most() int {
	if together && !fips140.Enabled() {
		return lanes
	}
	return 1
}

// lane is one call of Hash.
type lane struct {
	from     io.ReaderAt
	off, end int64
	sum      hash.Hash
	also     io.Writer
	buf      []byte
	state    []byte // of sum, as it marshals it
	err      error
	done     chan struct{}
}

// Hash writes the bytes of from between off and end to sum, which crypto/sha256 made and which has as many bytes of it
// as lie before off, and to also where that is not nil. After an error, io.ErrUnexpectedEOF where from is shorter, some
// of them are written.
func (p *Pool) Hash(from io.ReaderAt, off, end int64, sum hash.Hash, also io.Writer) error {
	if off >= end {
		return nil
	}
	l := &lane{from: from, off: off, end: end, sum: sum, also: also, done: make(chan struct{})}
	p.mu.Lock()
	p.waiting = append(p.waiting, l)
	if p.busy++; p.cores < runtime.GOMAXPROCS(0) && p.busy > p.cores*most() {
		p.cores++
		go p.work()
	}
	p.mu.Unlock()
	<-l.done
	return l.err
}

// buffers are what a core reads its lanes into.
type buffers [lanes][quantum]byte

var spare = sync.Pool{New: func() any { return new(buffers) }}

// work hashes as many files as it may at once, another as soon as one of them has ended, until
// the others can do without it.
func (p *Pool) work() {
	into := spare.Get().(*buffers)
	defer spare.Put(into)
	now := make([]*lane, 0, lanes)
	for ended := 0; ; {
		p.mu.Lock()
		p.busy -= ended
		if p.cores > (p.busy+most()-1)/most() { // the others have room for what it has
			p.waiting = append(now, p.waiting...)
			p.cores--
			p.mu.Unlock()
			return
		}
		n := min(most()-len(now), len(p.waiting))
		now = append(now, p.waiting[:n]...)
		p.waiting = slices.Delete(p.waiting, 0, n)
		p.mu.Unlock()
		step(now, into)
		n = len(now)
		now = slices.DeleteFunc(now, func(l *lane) bool {
			if l.err == nil && l.off < l.end {
				return false
			}
			close(l.done)
			return true
		})
		if ended = n - len(now); ended > 0 {
			runtime.Gosched() // who waited for it may have more, and all processors may be at work here
		}
	}
}

// step takes each lane a quantum further.
func step(now []*lane, into *buffers) {
	var side [lanes]*lane // to be hashed together: whole quanta, from where a block begins
	n := 0
	for i, l := range now {
		if l.read(into[i][:]); l.err != nil {
			continue
		}
		if len(now) == lanes && len(l.buf) == quantum && l.load() {
			side[n] = l
			n++
		} else {
			l.sum.Write(l.buf)
		}
	}
	switch n {
	case 1:
		side[0].sum.Write(side[0].buf)
	case lanes:
		both(&side)
	}
}

// read has the next bytes in buf: no more than to where the next block is the first in it.
func (l *lane) read(buf []byte) {
	l.buf = buf[:min(quantum-l.off%sha256.BlockSize, l.end-l.off)]
	n, err := l.from.ReadAt(l.buf, l.off)
	switch {
	case n == len(l.buf):
		err = nil
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	l.off += int64(n)
	if l.err = err; err == nil && l.also != nil {
		_, l.err = l.also.Write(l.buf)
	}
}

// state is the eight words of a hash in the order of the two operands of SHA256RNDS2: F E B A, H G D C.
type state [8]uint32

var order = [8]int{5, 4, 1, 0, 7, 6, 3, 2}

// What crypto/sha256 marshals a hash to: the magic, the eight words, what of a block has come, and the bytes so far. It
// is what it has been since Go 1.10, and states that older programs saved are to be read by newer ones.
const (
	magic   = "sha\x03"
	words   = len(magic)
	partial = words + 4*8
	count   = partial + sha256.BlockSize
	size    = count + 8
)

// load reads the state of the hash. It reports false where that is not between two blocks, or unknown.
func (l *lane) load() bool {
	m, ok := l.sum.(encoding.BinaryAppender)
	if !ok {
		return false
	}
	b, err := m.AppendBinary(l.state[:0])
	l.state = b
	return err == nil && len(b) == size && string(b[:words]) == magic &&
		binary.BigEndian.Uint64(b[count:])%sha256.BlockSize == 0
}

// both hashes the quanta of two lanes, whose states are loaded.
func both(side *[lanes]*lane) {
	var states [lanes]state
	var messages [lanes]*byte
	for i, l := range side {
		for j, at := range order {
			states[i][j] = binary.BigEndian.Uint32(l.state[words+4*at:])
		}
		messages[i] = &l.buf[0]
	}
	blocks(&states, &messages, quantum/sha256.BlockSize, &constants)
	for i, l := range side {
		for j, at := range order {
			binary.BigEndian.PutUint32(l.state[words+4*at:], states[i][j])
		}
		n := l.state[count:size]
		binary.BigEndian.PutUint64(n, binary.BigEndian.Uint64(n)+quantum)
		l.err = l.sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(l.state)
	}
}

// constants are the first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
var constants = [64]uint32{
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}
