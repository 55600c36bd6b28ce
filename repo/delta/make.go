package delta

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Make writes a delta that makes target out of base. Both are in memory, and an
// index of the base beside them, of at most 192 MiB. It stops with ErrTooLarge
// as soon as the delta has more than limit bytes.
func Make(ctx context.Context, w io.Writer, base, target []byte, limit int64) error {
	if len(base) > MaxFile || len(target) > MaxFile {
		return fmt.Errorf("%w: a delta is made from and to files of at most %d bytes", ErrTooLarge, int64(MaxFile))
	}
	out, err := newWriter(&limited{w, limit}, base, target)
	if err != nil {
		return err
	}
	defer out.enc.Close()
	if err := align(ctx, base, target, out.segment); err != nil {
		return err
	}
	return out.finish()
}

// writer turns segments into pieces of the format and compresses them.
type writer struct {
	base, target []byte
	enc          *zstd.Encoder
	end          int // of the base range used last

	// The piece being filled.
	ops     []byte
	count   int
	adds    []byte
	inserts []byte
}

func newWriter(w io.Writer, base, target []byte) (*writer, error) {
	enc, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(window),
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false)) // the whole result is hashed
	if err != nil {
		return nil, err
	}
	out := &writer{base: base, target: target, enc: enc}
	if _, err := enc.Write([]byte(magic)); err != nil {
		return nil, err
	}
	return out, nil
}

// minCopy is how many bytes must be equal for them to be copied rather than
// taken over with nothing added to each: applying it is quicker so.
const minCopy = 1 << 10

// segment takes the next bytes of the target: the first similar ones resemble
// the base from at on, the rest do not.
func (w *writer) segment(from, to, similar, at int) error {
	for target, base := w.target[from:from+similar], w.base[at:]; len(target) > 0; {
		kind, n := opCopy, sameRun(target, base)
		if n < minCopy && n < len(target) {
			kind, n = opAdd, untilSame(target, base, minCopy)
		}
		if err := w.op(kind, n, at, target[:n]); err != nil {
			return err
		}
		target, base, at = target[n:], base[n:], at+n
	}
	return w.op(opInsert, to-from-similar, 0, w.target[from+similar:to])
}

// untilSame is how many bytes go before the first run equal ones in a and b.
func untilSame(a, b []byte, run int) int {
	equal := 0
	for i := range a {
		if a[i] != b[i] {
			equal = 0
		} else if equal++; equal == run {
			return i + 1 - run
		}
	}
	return len(a)
}

// op adds one instruction, in as many parts as pieces have room for.
func (w *writer) op(kind, n, at int, data []byte) error {
	for n > 0 {
		room := maxPayload - len(w.adds) - len(w.inserts)
		if w.count == maxOps || room == 0 && kind != opCopy {
			if err := w.flush(); err != nil {
				return err
			}
			continue
		}
		k := n
		if kind != opCopy {
			k = min(n, room)
		}
		w.ops = binary.AppendUvarint(w.ops, uint64(k)<<2|uint64(kind))
		w.count++
		switch kind {
		case opInsert:
			w.inserts = append(w.inserts, data[:k]...)
			data = data[k:]
		case opAdd:
			base := w.base[at:]
			for i, b := range data[:k] {
				w.adds = append(w.adds, b-base[i])
			}
			data = data[k:]
			fallthrough
		case opCopy:
			w.ops = binary.AppendVarint(w.ops, int64(at-w.end))
			at += k
			w.end = at
		}
		n -= k
	}
	return nil
}

// flush writes the piece. Each of its parts begins a block of its own, since
// they have little in common.
func (w *writer) flush() error {
	head := binary.AppendUvarint(nil, uint64(w.count))
	for _, part := range [][]byte{append(head, w.ops...), w.adds, w.inserts} {
		if len(part) == 0 {
			continue
		}
		if _, err := w.enc.Write(part); err != nil {
			return err
		}
		if err := w.enc.Flush(); err != nil {
			return err
		}
	}
	w.ops, w.count, w.adds, w.inserts = w.ops[:0], 0, w.adds[:0], w.inserts[:0]
	return nil
}

func (w *writer) finish() error {
	if w.count > 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if _, err := w.enc.Write([]byte{0}); err != nil { // no more pieces
		return err
	}
	return w.enc.Close()
}

// limited refuses to write more than left bytes.
type limited struct {
	w    io.Writer
	left int64
}

func (l *limited) Write(p []byte) (int, error) {
	if int64(len(p)) > l.left {
		return 0, ErrTooLarge
	}
	n, err := l.w.Write(p)
	l.left -= int64(n)
	return n, err
}
