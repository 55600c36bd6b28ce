package repo

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"

	"github.com/patchkeep/patchkeep/repo/layout"
)

// blockHasher takes the whole hash and the block list of what is written to it.
type blockHasher struct {
	length int64
	whole  hash.Hash
	block  hash.Hash
	filled int // bytes of the current block
	list   []byte
}

func newBlockHasher() *blockHasher {
	return &blockHasher{whole: sha256.New(), block: sha256.New()}
}

// Write implements io.Writer; it does not fail.
func (h *blockHasher) Write(p []byte) (int, error) {
	n := len(p)
	h.length += int64(n)
	h.whole.Write(p)
	for len(p) > 0 {
		part := p[:min(len(p), layout.BlockSize-h.filled)]
		h.block.Write(part)
		h.filled += len(part)
		p = p[len(part):]
		if h.filled == layout.BlockSize {
			h.endBlock()
		}
	}
	return n, nil
}

func (h *blockHasher) endBlock() {
	h.list = h.block.Sum(h.list)
	h.block.Reset()
	h.filled = 0
}

// Sum returns the SHA-256 of all, and the concatenated ones of the blocks. It
// ends the last block.
func (h *blockHasher) Sum() (whole [32]byte, list []byte) {
	if h.filled > 0 {
		h.endBlock()
	}
	return [32]byte(h.whole.Sum(nil)), h.list
}

func mustHex(s string) []byte {
	raw, err := hex.DecodeString(s)
	if err != nil {
		panic("repo: not hex: " + s)
	}
	return raw
}
