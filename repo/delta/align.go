package delta

import (
	"context"
	"encoding/binary"
	"math/bits"
)

const (
	keyLen     = 16      // bytes that an index entry stands for
	maxEntries = 1 << 24 // of the index
	maxChain   = 16      // entries of one hash that are looked at
	maxCompare = 1 << 10 // bytes that a candidate is compared over
	maxBack    = 8 << 10 // bytes that a stretch is extended backwards
	better     = 8       // bytes by which a candidate must beat the alignment in use
)

// index finds places in the base by the bytes there. It knows every stride-th.
type index struct {
	base   []byte
	stride int
	shift  uint
	head   []uint32 // by hash: 1 + number of the newest entry; 0: none
	prev   []uint32 // by entry: the one before with the same hash
}

func newIndex(ctx context.Context, base []byte) (*index, error) {
	x := &index{base: base, stride: 1}
	for len(base)/x.stride > maxEntries {
		x.stride *= 2
	}
	n := max(0, len(base)-keyLen+1)
	entries := (n + x.stride - 1) / x.stride
	size := bits.Len(uint(max(entries, 1)))
	x.shift = uint(64 - size)
	x.head = make([]uint32, 1<<size)
	x.prev = make([]uint32, entries)
	// From the end, so that the first place comes first.
	last := ^uint32(0)
	for e := entries - 1; e >= 0; e-- {
		if e&0xfffff == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		h := x.hash(base[e*x.stride:])
		if h == last { // a run of one byte: its beginning will do
			x.prev[e] = x.prev[e+1]
		} else {
			x.prev[e] = x.head[h]
		}
		x.head[h] = uint32(e) + 1
		last = h
	}
	return x, nil
}

func (x *index) hash(p []byte) uint32 {
	a, b := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
	return uint32((a*0x9e3779b97f4a7c15 ^ bits.RotateLeft64(b*0xc2b2ae3d27d4eb4f, 31)) * 0x165667b19e3779f9 >> x.shift)
}

// find returns the place in the base that goes on longest like p, and how long.
func (x *index) find(p []byte) (at, n int) {
	if len(p) < keyLen {
		return 0, 0
	}
	p = p[:min(len(p), maxCompare)]
	e := x.head[x.hash(p)]
	for range maxChain {
		if e == 0 {
			break
		}
		pos := int(e-1) * x.stride
		if k := sameRun(p, x.base[pos:]); k > n {
			at, n = pos, k
			if n == len(p) {
				break
			}
		}
		e = x.prev[e-1]
	}
	return at, n
}

// align goes through the target and looks for stretches that resemble the base:
// a place in the base is kept to, over bytes that differ, until another one is
// clearly better. segment is told what to do with the next bytes.
func align(ctx context.Context, base, target []byte, segment func(from, to, similar, at int) error) error {
	x, err := newIndex(ctx, base)
	if err != nil {
		return err
	}
	from, at := 0, 0 // the segment under way, and its place in the base
	checked := 0
	for scan := 0; scan < len(target); {
		if scan-checked > 1<<20 {
			if checked = scan; ctx.Err() != nil {
				return ctx.Err()
			}
		}
		here := at + scan - from // where the alignment in use goes on
		if here < len(base) {
			if same := sameRun(target[scan:], base[here:]); same >= keyLen {
				scan += same
				continue
			}
		}
		pos, n := x.find(target[scan:])
		if n < keyLen || n <= equal(target[scan:scan+n], base[min(here, len(base)):])+better {
			scan++
			continue
		}
		forward := extend(target[from:scan], base[at:])
		back := extendBack(target[max(from, scan-maxBack):scan], base[:pos])
		if over := forward + back - (scan - from); over > 0 {
			cut := cutOverlap(target[scan-back:from+forward], base[at+forward-over:], base[pos-back:])
			forward += cut - over
			back -= cut
		}
		if err := segment(from, scan-back, forward, at); err != nil {
			return err
		}
		from, at = scan-back, pos-back
		scan += n
	}
	return segment(from, len(target), extend(target[from:], base[at:]), at)
}

// sameRun is how many bytes a and b have in common at their beginning.
func sameRun(a, b []byte) int {
	n := min(len(a), len(b))
	a, b = a[:n], b[:n]
	i := 0
	for ; i+8 <= n; i += 8 {
		if d := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); d != 0 {
			return i + bits.TrailingZeros64(d)/8
		}
	}
	for ; i < n && a[i] == b[i]; i++ {
	}
	return i
}

// equal counts the places where a and b have the same byte.
func equal(a, b []byte) (n int) {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			n++
		}
	}
	return n
}

// extend is how far b is like a from the beginning on, for most bytes.
func extend(a, b []byte) int {
	score, best, length := 0, 0, 0
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, i+1
		}
	}
	return length
}

// extendBack is the same from the ends on.
func extendBack(a, b []byte) int {
	score, best, length := 0, 0, 0
	for i := 1; i <= min(len(a), len(b)); i++ {
		if a[len(a)-i] == b[len(b)-i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, i
		}
	}
	return length
}

// cutOverlap is where to stop taking a's bytes from b and begin to take them
// from c.
func cutOverlap(a, b, c []byte) int {
	score, best, cut := 0, 0, 0
	for i := range a {
		if a[i] == b[i] {
			score++
		}
		if a[i] == c[i] {
			score--
		}
		if score > best {
			best, cut = score, i+1
		}
	}
	return cut
}
