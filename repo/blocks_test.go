package repo

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
)

func TestBlockHasher(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, size := range []int{0, 1, asideBuffer - 1, asideBuffer, layout.BlockSize, layout.BlockSize + 1, 5*layout.BlockSize + 77} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		var want []byte
		for block := range slices.Chunk(data, layout.BlockSize) {
			sum := sha256.Sum256(block)
			want = append(want, sum[:]...)
		}
		h := newBlockHasher()
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(2*asideBuffer))
			piece := bytes.Clone(rest[:n])
			if m, err := h.Write(piece); m != n || err != nil {
				t.Fatalf("Write = %d, %v", m, err)
			}
			clear(piece) // it belongs to the caller again
			rest = rest[n:]
		}
		whole, list := h.Sum()
		if whole != sha256.Sum256(data) || !bytes.Equal(list, want) || h.length != int64(size) {
			t.Errorf("%d bytes: other hashes", size)
		}
		if size > 0 && int64(len(list)) != 32*layout.BlockCount(int64(size)) {
			t.Errorf("%d bytes: a list of %d", size, len(list))
		}
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}
