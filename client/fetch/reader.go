package fetch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const blockHashLen = sha256.Size

// reader is the first stage of a round: the file's chunks in order, whichever
// mirror they come from. With a block list each is verified here, so that the
// one who sent it is known.
type reader struct {
	*download
	free      <-chan []byte
	unwritten chan<- struct{} // takes one for each buffer that is not written yet
	out       chan<- chunk

	off  int64   // where the next chunk begins
	buf  []byte  // the next chunk, as far as it has come; nil: no buffer yet
	prev *source // that the bytes in buf came from

	furthest int64         // the greatest pos that a transfer has reached
	took     time.Duration // what reading buf took
	diskEnd  bool          // there is nothing more to be had from the disk
}

func (r *reader) run(ctx context.Context) error {
	for r.off < r.Length {
		if err := r.fromDisk(ctx); err != nil {
			return err
		}
		r.furthest = max(r.furthest, r.off)
		if r.off == r.Length {
			break
		}
		src, err := r.srcs.next(ctx)
		if err != nil {
			return err
		}
		if src != r.prev && r.Blocks != nil {
			r.buf = r.buf[:0] // a block of two mirrors could be blamed on neither
		}
		if r.single && r.pos() > 0 && !slices.Contains(r.from, src) {
			r.srcs.prefer(src.url)
			return errRestart
		}
		r.prev = src
		err = r.transfer(ctx, src)
		if err == nil {
			continue
		}
		if cause := over(ctx); cause != nil {
			return cause
		}
		if errors.Is(err, errRestart) {
			r.srcs.prefer(src.url)
			return err
		}
		zerolog.Ctx(ctx).Debug().Str("url", redact(src.url)).Int64("at", r.pos()).Err(err).Msg("transfer ended early")
		r.srcs.failed(src, err)
	}
	return nil
}

// pos is the offset of the next byte wanted.
func (r *reader) pos() int64 { return r.off + int64(len(r.buf)) }

// size is the length of the chunk at off.
func (r *reader) size() int { return int(min(layout.BlockSize, r.Length-r.off)) }

// buffer makes sure that there is one.
func (r *reader) buffer(ctx context.Context) error {
	if r.buf != nil {
		return nil
	}
	select {
	case r.unwritten <- struct{}{}:
	case <-ctx.Done():
		return over(ctx)
	}
	select {
	case r.buf = <-r.free:
	case <-ctx.Done():
		return over(ctx)
	}
	if r.buf == nil {
		r.buf = make([]byte, 0, min(layout.BlockSize, r.Length))
	}
	return nil
}

// emit hands the whole chunk on.
func (r *reader) emit(onDisk bool) {
	r.out <- chunk{off: r.off, data: r.buf, onDisk: onDisk}
	r.off += int64(len(r.buf))
	r.buf, r.took = nil, 0
}

// verify checks the whole chunk against the block list, if there is one.
func (r *reader) verify() error {
	if r.Blocks == nil {
		return nil
	}
	return r.check(r.off/layout.BlockSize, r.buf)
}

// A block list is there to leave a bad mirror before it wastes time. Once a
// mirror gave this much, on a line so fast that hashing twice is what takes the
// time, only a sample of its blocks is verified as they arrive. The whole hash
// covers them all, and if it is wrong, a strict round finds the bad ones.
const (
	earned   = 64                   // blocks
	fastLine = 6 * time.Millisecond // for a block: 175 MB/s, beyond what a gigabit line carries
	sample   = 8
)

// postpone reports whether the whole chunk, which src sent, need not be
// verified now, and notes whose it is.
func (r *reader) postpone(src *source) bool {
	i := r.off / layout.BlockSize
	if r.Blocks == nil || r.strict || src.proven < earned || r.took > fastLine || rand.IntN(sample) == 0 {
		return false
	}
	if r.unverified == nil {
		r.unverified = map[int64]*source{}
	}
	r.unverified[i] = src
	return true
}

// fromDisk takes over what lies on the disk beyond the last checkpoint of an
// earlier try. Without a block list that is what was written in order, for the
// whole hash to judge. With one it is the blocks that are right, up to the first
// that is not; in a strict round, those of the round before.
func (r *reader) fromDisk(ctx context.Context) error {
	if len(r.buf) > 0 || r.diskEnd {
		return nil
	}
	for r.off < r.Length {
		if r.Blocks == nil && r.off >= r.loose {
			return nil
		}
		if err := r.buffer(ctx); err != nil {
			return err
		}
		b := r.buf[:r.size()]
		if n, _ := r.part.file.ReadAt(b, r.off); n < len(b) {
			r.diskEnd = true
			return nil
		}
		r.buf = b
		if wrong := r.verify(); wrong != nil { // not an error: the block is fetched anew
			r.buf = r.buf[:0]
			if src := r.unverified[r.off/layout.BlockSize]; src != nil {
				r.srcs.failed(src, wrong)
			}
			r.diskEnd = !r.strict
			return nil
		}
		if !r.strict {
			r.res.Resumed += int64(len(b))
		}
		r.emit(true)
	}
	return nil
}

// transfer asks one mirror for the rest of the file and reads as far as it
// gets. nil: the file is complete, or the mirror ended a range early.
func (r *reader) transfer(ctx context.Context, src *source) error {
	header := http.Header{}
	header.Set("Accept-Encoding", "identity")
	if pos := r.pos(); pos > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", pos))
		if src.etag != "" {
			header.Set("If-Range", src.etag)
		}
	}
	t, err := r.f.open(ctx, src.url, header)
	if err != nil {
		return err
	}
	defer t.Close()
	defer func() {
		src.bytes += t.read
		src.took += time.Since(t.started) - t.waited
		// Only what was never there before counts: the same bytes can be sent for ever.
		if t.useful(r.pos() - r.furthest) {
			r.srcs.progressed(src)
		}
		r.furthest = max(r.furthest, r.pos())
	}()
	if err := r.accept(src, t); err != nil {
		return err
	}
	return r.body(ctx, src, t)
}

// accept checks an answer's head and brings its body to the byte wanted.
func (r *reader) accept(src *source, t *transfer) error {
	if err := captive(t.Response, src.url); err != nil {
		return err
	}
	pos := r.pos()
	partial, err := checkHead(t.Response, pos, r.Length, r.Length, pos > 0)
	if err != nil {
		return err
	}
	src.etag = strongETag(t.Header)
	if partial || pos == 0 {
		return nil
	}
	// No ranges there, or another object than before.
	if r.Blocks == nil {
		return errRestart
	}
	return r.skip(t, pos)
}

// skip reads over the n bytes that are there already, verified by blocks.
func (r *reader) skip(t *transfer, n int64) error {
	if err := r.buffer(t.ctx); err != nil {
		return err
	}
	waste := r.buf[len(r.buf):cap(r.buf)]
	if len(waste) == 0 {
		waste = make([]byte, 4<<10)
	}
	for n > 0 {
		m, err := t.Read(waste[:min(int64(len(waste)), n)])
		n -= int64(m)
		r.res.Bytes += int64(m)
		if err != nil && n > 0 {
			return ended(err)
		}
	}
	return nil
}

// body reads chunks until the file is complete or the transfer ends.
func (r *reader) body(ctx context.Context, src *source, t *transfer) error {
	for r.off < r.Length {
		if err := r.buffer(ctx); err != nil {
			return err
		}
		start := time.Now()
		n, err := t.Read(r.buf[len(r.buf):r.size()])
		r.took += time.Since(start)
		r.buf = r.buf[:len(r.buf)+n]
		r.res.Bytes += int64(n)
		if n > 0 {
			if !slices.Contains(r.from, src) {
				r.from = append(r.from, src)
			}
			r.tell(r.pos(), false)
		}
		if len(r.buf) == r.size() {
			if verr := r.whole(src, t, err); verr != nil {
				r.buf = r.buf[:0]
				return verr
			}
			r.emit(false)
			if r.strict { // the next block may be there already
				if at := r.off; r.fromDisk(ctx) != nil || r.off != at {
					return nil //nolint:nilerr // not the mirror's fault: run meets it again at once
				}
			}
		}
		if err != nil && r.off < r.Length {
			return ended(err)
		}
	}
	return nil
}

// whole looks at a complete chunk before it is handed on: is it as signed, and
// if it is the last one, does the mirror want to go on?
func (r *reader) whole(src *source, t *transfer, ended error) error {
	if !r.postpone(src) {
		if err := r.verify(); err != nil {
			return err
		}
		src.proven++
	}
	if r.off+int64(len(r.buf)) == r.Length && ended == nil && t.ContentLength < 0 {
		var more [1]byte
		if n, _ := t.Read(more[:]); n > 0 {
			return fmt.Errorf("%w: longer than the signed %d bytes", ErrCorrupt, r.Length)
		}
	}
	return nil
}

// ended is the error of a body that is over too early.
func ended(err error) error {
	if err == io.EOF {
		return fmt.Errorf("%w: the transfer was cut", tuf.ErrOffline)
	}
	return err
}

// strongETag returns the ETag if it stands for these very bytes.
func strongETag(h http.Header) string {
	if tag := h.Get("ETag"); len(tag) >= 2 && tag[0] == '"' && len(tag) <= 256 {
		return tag
	}
	return ""
}

// discard reports whether an error makes what was read worthless.
func discard(err error) bool { return errors.Is(err, errRestart) || errors.Is(err, errStale) }
