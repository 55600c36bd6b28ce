package delta

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	pieceBuffer  = 256 << 10 // of what is copied at once
	maxOpHeader  = 2 * binary.MaxVarintLen64
	decoderSlack = 1 << 20 // of a block beyond the window
)

// Apply writes the file of length bytes that a delta makes out of base, and
// returns how many bytes of it the base gave. A delta that does not make exactly
// so many is ErrBad. It does not know the hash of either file.
func Apply(ctx context.Context, w io.Writer, base io.ReaderAt, baseLength int64, delta io.Reader, length int64) (fromBase int64, err error) {
	dec, err := zstd.NewReader(delta, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(window+decoderSlack))
	if err != nil {
		return 0, bad(err)
	}
	defer dec.Close()
	a := &applier{
		ctx: ctx, in: bufio.NewReaderSize(dec, 64<<10), base: base, baseLength: baseLength,
		out: bufio.NewWriterSize(w, pieceBuffer), left: length, buf: make([]byte, pieceBuffer),
	}
	if err := a.run(); err != nil {
		return 0, err
	}
	return a.fromBase, a.out.Flush()
}

func bad(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrBad, err)
}

// applier is one call of Apply.
type applier struct {
	ctx        context.Context //nolint:containedctx // lives as long as the call
	in         *bufio.Reader
	base       io.ReaderAt
	baseLength int64
	out        *bufio.Writer
	left       int64 // of the result
	fromBase   int64
	end        int64 // of the base's range used before

	ops     []op // of the piece
	payload []byte
	buf     []byte
}

type op struct {
	kind   int
	length int64
	at     int64 // in the base
}

func (a *applier) run() error {
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(a.in, head); err != nil {
		return bad(err)
	}
	if string(head) != magic {
		return fmt.Errorf("%w: it does not begin like one", ErrBad)
	}
	for {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		last, err := a.read()
		if err != nil {
			return err
		}
		if last {
			break
		}
		if err := a.write(); err != nil {
			return err
		}
	}
	if a.left > 0 {
		return fmt.Errorf("%w: %d bytes are missing at the end", ErrBad, a.left)
	}
	if _, err := a.in.ReadByte(); err == nil {
		return fmt.Errorf("%w: something follows its end", ErrBad)
	} else if !errors.Is(err, io.EOF) {
		return bad(err)
	}
	return nil
}

// read reads a piece. Nothing of it is used before all of it was checked.
func (a *applier) read() (last bool, err error) {
	count, err := binary.ReadUvarint(a.in)
	if err != nil {
		return false, bad(err)
	}
	if count == 0 {
		return true, nil
	}
	if count > maxOps {
		return false, fmt.Errorf("%w: %d instructions in a piece", ErrBad, count)
	}
	a.ops = a.ops[:0]
	left, adds, inserts := a.left, int64(0), int64(0)
	for range count {
		head, err := binary.ReadUvarint(a.in)
		if err != nil {
			return false, bad(err)
		}
		o := op{kind: int(head & 3), length: int64(head >> 2)}
		if o.kind >= opKinds || o.length == 0 || o.length > left {
			return false, fmt.Errorf("%w: an instruction that is none", ErrBad)
		}
		left -= o.length
		if o.kind == opInsert {
			inserts += o.length
		} else {
			seek, err := binary.ReadVarint(a.in)
			if err != nil {
				return false, bad(err)
			}
			if seek < -a.end || seek > a.baseLength-a.end || o.length > a.baseLength-a.end-seek {
				return false, fmt.Errorf("%w: it reads outside of the base", ErrBad)
			}
			o.at = a.end + seek
			a.end = o.at + o.length
			if o.kind == opAdd {
				adds += o.length
			}
		}
		a.ops = append(a.ops, o)
	}
	if adds+inserts > maxPayload {
		return false, fmt.Errorf("%w: a piece of %d bytes", ErrBad, adds+inserts)
	}
	if n := int(adds + inserts); cap(a.payload) < n {
		a.payload = make([]byte, n)
	} else {
		a.payload = a.payload[:n]
	}
	if _, err := io.ReadFull(a.in, a.payload); err != nil {
		return false, bad(err)
	}
	return false, nil
}

// write carries the piece out.
func (a *applier) write() error {
	inserts := a.payload
	for _, o := range a.ops {
		if o.kind == opAdd {
			inserts = inserts[o.length:]
		}
	}
	adds := a.payload[:len(a.payload)-len(inserts)]
	for _, o := range a.ops {
		a.left -= o.length
		if o.kind == opInsert {
			if _, err := a.out.Write(inserts[:o.length]); err != nil {
				return err
			}
			inserts = inserts[o.length:]
			continue
		}
		a.fromBase += o.length
		for n := int64(0); n < o.length; n += int64(len(a.buf)) {
			if err := a.ctx.Err(); err != nil {
				return err
			}
			p := a.buf[:min(int64(len(a.buf)), o.length-n)]
			if m, err := a.base.ReadAt(p, o.at+n); m < len(p) {
				return fmt.Errorf("read base: %w", err)
			}
			if o.kind == opAdd {
				for i, b := range adds[:len(p)] {
					p[i] += b
				}
				adds = adds[len(p):]
			}
			if _, err := a.out.Write(p); err != nil {
				return err
			}
		}
	}
	return nil
}
