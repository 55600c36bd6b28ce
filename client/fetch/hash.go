package fetch

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strings"
)

// hashes are the running hashes of a file beside those that were signed.
type hashes struct {
	algs []string // sorted
	want map[string][]byte
	sums map[string]hash.Hash
}

// newHashes refuses what it cannot check: an unknown algorithm, no algorithm.
func newHashes(signed map[string]string) (*hashes, error) {
	h := &hashes{want: map[string][]byte{}, sums: map[string]hash.Hash{}}
	h.algs = slices.Sorted(maps.Keys(signed))
	for _, alg := range h.algs {
		var sum hash.Hash
		switch alg {
		case "sha256":
			sum = sha256.New()
		case "sha512":
			sum = sha512.New()
		default:
			return nil, fmt.Errorf("%w: hash algorithm %q is not known", ErrCorrupt, alg)
		}
		want, err := hex.DecodeString(signed[alg])
		if err != nil || len(want) != sum.Size() || strings.ToLower(signed[alg]) != signed[alg] {
			return nil, fmt.Errorf("%w: the signed %s is not a hash", ErrCorrupt, alg)
		}
		h.want[alg], h.sums[alg] = want, sum
	}
	if len(h.algs) == 0 {
		return nil, fmt.Errorf("%w: no hash is signed", ErrCorrupt)
	}
	return h, nil
}

func (h *hashes) write(p []byte) {
	for _, alg := range h.algs {
		_, _ = h.sums[alg].Write(p) // never fails: hash.Hash
	}
}

// check compares what was written with what was signed.
func (h *hashes) check() error {
	for _, alg := range h.algs {
		if got := h.sums[alg].Sum(nil); subtle.ConstantTimeCompare(got, h.want[alg]) != 1 {
			return fmt.Errorf("%w: its %s is %x and not the signed %x", ErrCorrupt, alg, got, h.want[alg])
		}
	}
	return nil
}

// state freezes the hashes, so that another process can go on with them.
func (h *hashes) state() map[string][]byte {
	out := map[string][]byte{}
	for _, alg := range h.algs {
		if m, ok := h.sums[alg].(encoding.BinaryMarshaler); ok {
			out[alg], _ = m.MarshalBinary() // never fails for these hashes
		}
	}
	return out
}

// resume is the inverse of state. ok is false if anything does not fit; the
// hashes are of no use then.
func (h *hashes) resume(state map[string][]byte) (ok bool) {
	for _, alg := range h.algs {
		u, is := h.sums[alg].(encoding.BinaryUnmarshaler)
		if !is || u.UnmarshalBinary(state[alg]) != nil {
			return false
		}
	}
	return len(state) == len(h.algs)
}
