package repo

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"sync/atomic"

	"github.com/patchkeep/patchkeep/repo/layout"
)

// Hashing goes on beside reading and uploading: two hashes take longer than
// either. asideBuffers of asideBuffer bytes are on their way to it at most.
const (
	asideBuffer  = 256 << 10
	asideBuffers = 8
)

// blockHasher takes the whole hash and the block list of what is written to it,
// each in a goroutine of its own, which Sum ends. It is not safe for concurrent
// use.
type blockHasher struct {
	length int64
	buf    *aside      // being filled
	free   chan *aside // done with by both
	whole  chan *aside
	blocks chan *aside
	done   sync.WaitGroup

	// Written by the goroutines, and read once they have ended.
	sum  [sha256.Size]byte
	list []byte
}

// aside is a piece of the content for both hashes.
type aside struct {
	data  []byte
	users atomic.Int32 // that have yet to read it
}

func newBlockHasher() *blockHasher {
	h := &blockHasher{
		free: make(chan *aside, asideBuffers), whole: make(chan *aside, asideBuffers), blocks: make(chan *aside, asideBuffers),
	}
	for range asideBuffers {
		h.free <- &aside{}
	}
	h.done.Go(func() {
		sum := sha256.New()
		for a := range h.whole {
			sum.Write(a.data)
			h.release(a)
		}
		h.sum = [sha256.Size]byte(sum.Sum(nil))
	})
	h.done.Go(func() {
		block, filled := sha256.New(), 0
		end := func() {
			h.list = block.Sum(h.list)
			block.Reset()
			filled = 0
		}
		for a := range h.blocks {
			for p := a.data; len(p) > 0; {
				n := min(len(p), layout.BlockSize-filled)
				block.Write(p[:n])
				p, filled = p[n:], filled+n
				if filled == layout.BlockSize {
					end()
				}
			}
			h.release(a)
		}
		if filled > 0 {
			end()
		}
	})
	return h
}

func (h *blockHasher) release(a *aside) {
	if a.users.Add(-1) == 0 {
		a.data = a.data[:0]
		h.free <- a
	}
}

// Write implements io.Writer; it does not fail.
func (h *blockHasher) Write(p []byte) (int, error) {
	n := len(p)
	h.length += int64(n)
	for len(p) > 0 {
		if h.buf == nil {
			if h.buf = <-h.free; h.buf.data == nil {
				h.buf.data = make([]byte, 0, asideBuffer) // a small file needs few
			}
		}
		k := min(len(p), asideBuffer-len(h.buf.data))
		h.buf.data = append(h.buf.data, p[:k]...)
		p = p[k:]
		if len(h.buf.data) == asideBuffer {
			h.flush()
		}
	}
	return n, nil
}

func (h *blockHasher) flush() {
	if h.buf != nil {
		h.buf.users.Store(2)
		h.whole <- h.buf
		h.blocks <- h.buf
		h.buf = nil
	}
}

// Sum returns the SHA-256 of all, and the concatenated ones of the blocks. It
// is called once, also when what was written is not wanted any more.
func (h *blockHasher) Sum() (whole [sha256.Size]byte, list []byte) {
	h.flush()
	close(h.whole)
	close(h.blocks)
	h.done.Wait()
	return h.sum, h.list
}

func mustHex(s string) []byte {
	raw, err := hex.DecodeString(s)
	if err != nil {
		panic("repo: not hex: " + s)
	}
	return raw
}
