package fill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	// bufSize is how much is read at once: enough for the disk and the hash.
	bufSize = 256 << 10

	// lineSize is how much is read at once where the line is limited, so that
	// it flows evenly.
	lineSize = 32 << 10

	// minProgress is what a try has to bring to count as a success that was
	// cut, rather than as a failure. Without it, an upstream that drips a byte
	// a connection would never be given up.
	minProgress = 64 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufSize); return &b }}

var (
	errWrong     = errors.New("it has something else") // whatever came before, this source is wrong
	errDisk      = errors.New("write to the cache")
	errBlockList = errors.New("block list contradicts hash")
	errResting   = errors.New("all of them rest after failures")
)

// transfer brings one object into a writer, from whichever source has it.
//
// Whatever has arrived is kept when a source fails, and the next one goes on
// from there. A unit is what is verified at once: a block, or without a block
// list the whole. If a unit turns out wrong and several sources had a part in
// it, nobody knows whose fault that was: it is fetched again, without mixing.
type transfer struct {
	f      *Filler
	fl     *fill
	w      *cache.Writer
	blocks bool

	parts  map[*source]bool // who sent what w holds of the present unit; nil: an earlier fill
	apart  bool             // the present unit has to come from one source
	misses int              // tries in a row that brought nothing
	moved  time.Time        // when bytes came last
}

func (t *transfer) run(ctx context.Context) error {
	f := t.f
	t.parts, t.moved = map[*source]bool{}, time.Now()
	if t.w.Written() > 0 {
		t.parts[nil] = true
	}
	if t.w.Written() == t.w.Size() { // an earlier fill was stopped right before its end
		if err := t.verify(); !errors.Is(err, cache.ErrMismatch) {
			return err
		}
		if err := t.restart(); err != nil {
			return err
		}
	}
	queue := f.order(t.fl) // who is asked next
	sources := len(queue)  // at first: that one drops out leaves the others no fewer tries
	last := errResting
	for len(queue) > 0 {
		if t.misses > 0 && t.misses%len(queue) == 0 {
			if err := pause(ctx, f.cfg.Backoff, t.misses/len(queue)); err != nil {
				return err
			}
		}
		src := queue[0]
		queue = append(queue[1:], src) // the others first
		if t.apart && !t.parts[src] {
			if err := t.restart(); err != nil {
				return err
			}
		}
		if err := t.queueUp(ctx, src); err != nil {
			return err
		}
		before := t.w.Written()
		err := t.try(ctx, src)
		if err == nil {
			err = t.verify()
		}
		got := t.w.Written() - before
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			f.note(src, nil, got)
			return nil
		case errors.Is(err, errDisk), errors.Is(err, errBlockList):
			return err
		}
		f.note(src, err, got)
		last = fmt.Errorf("%s: %w", src, err)
		zerolog.Ctx(ctx).Warn().Err(err).Str("object", t.fl.obj.Name).Stringer("upstream", src).Msg("transfer failed")
		wrong := errors.Is(err, cache.ErrMismatch)
		if wrong {
			banned := t.blame(src)
			if err := t.restart(); err != nil {
				return err
			}
			if banned {
				queue = queue[:len(queue)-1]
			}
		} else if errors.Is(err, errWrong) { // and nothing of it was taken
			f.ban(src, t.fl.key)
			queue = queue[:len(queue)-1]
		}
		if got >= minProgress && !wrong {
			t.misses, t.moved = 0, time.Now()
			continue
		}
		t.misses++
		if up := f.usable(queue); len(up) > 0 {
			queue = up
		} else if t.w.Released() == 0 { // all rest, and nobody has begun to read
			break
		}
		if t.givenUp(sources) {
			break
		}
	}
	return fmt.Errorf("%w: %w", ErrUpstream, last)
}

// queueUp waits for a turn on the line, if the fill was begun without one and
// its sibling has failed.
func (t *transfer) queueUp(ctx context.Context, src *source) error {
	t.f.mu.Lock()
	if src.sibling || !t.fl.nearby {
		t.f.mu.Unlock()
		return nil
	}
	t.f.queue.end(t.fl)
	t.fl.nearby, t.fl.turn = false, make(chan struct{})
	t.f.queue.add(t.fl)
	turn := t.fl.turn
	t.f.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// givenUp reports whether to stop trying: after Tries of all sources, but not
// before Patience has gone by if readers are in the middle of it.
func (t *transfer) givenUp(sources int) bool {
	if t.misses < t.f.cfg.Tries*sources {
		return false
	}
	return t.w.Released() == 0 || time.Since(t.moved) > t.f.cfg.Patience
}

// unit numbers what is verified together with the byte at pos.
func (t *transfer) unit(pos int64) int64 {
	if !t.blocks {
		return 0
	}
	return pos / layout.BlockSize
}

// restart drops what there is of the present unit.
func (t *transfer) restart() error {
	clear(t.parts)
	drop := t.w.Rewind
	if !t.blocks {
		if drop = t.w.Reset; t.w.Released() > 0 {
			t.f.begin(t.fl) // before the file is another one
		}
	}
	if err := drop(); err != nil {
		return fmt.Errorf("%w: %w", errDisk, err)
	}
	return nil
}

// blame finds out whose fault a wrong unit was. If it was src's alone, src is
// banned; else the unit has to come from one source.
func (t *transfer) blame(src *source) (banned bool) {
	banned = len(t.parts) == 1 && t.parts[src]
	if banned {
		t.f.ban(src, t.fl.key)
	}
	t.apart = !banned
	return banned
}

// verify checks the whole, once all bytes are there.
func (t *transfer) verify() error {
	err := t.w.Verify()
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, cache.ErrMismatch):
		return fmt.Errorf("%w: %w", errDisk, err)
	case t.blocks: // each of which was right
		return errBlockList
	}
	return err
}

// try reads from one source until the object is whole, the source fails, or it
// turns out to have something else.
func (t *transfer) try(ctx context.Context, src *source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f, fl, w := t.f, t.fl, t.w
	f.mu.Lock()
	src.opens++
	fl.from, fl.direct = src.String(), !src.sibling
	f.mu.Unlock()
	body, size, err := src.OpenTarget(ctx, fl.obj.Name, w.Written())
	if err != nil {
		return err
	}
	defer body.Close()
	if size >= 0 && size != w.Size() {
		return fmt.Errorf("%w: %d bytes where %d were signed", errWrong, size, w.Size())
	}
	line := f.cfg.Line
	if src.sibling {
		line = nil
	}
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	buf := *pooled
	if line != nil {
		buf = buf[:lineSize]
	}
	for {
		if err := t.yield(ctx); err != nil {
			return err
		}
		n, err := body.Read(buf)
		src.bytes.Add(int64(n))
		fl.rate.add(n)
		if n > 0 {
			if err := t.write(src, buf[:min(int64(n), w.Size()-w.Written())]); err != nil {
				return err
			}
		}
		switch {
		case w.Written() == w.Size(): // whatever else comes, the hash will tell
			if err == nil && size >= 0 {
				_, _ = body.Read(buf[:1]) // the end, after which the connection can be used again
			}
			return nil
		case err == io.EOF:
			return fmt.Errorf("cut after %d of %d bytes: %w", w.Written(), w.Size(), io.ErrUnexpectedEOF)
		case err != nil:
			return fmt.Errorf("after %d of %d bytes: %w", w.Written(), w.Size(), err)
		}
		if line != nil {
			if err := line.WaitN(ctx, n); err != nil {
				return err
			}
		}
	}
}

// write appends what src sent, and lets readers have what is verified.
func (t *transfer) write(src *source, p []byte) error {
	for len(p) > 0 {
		t.parts[src] = true
		before := t.w.Written()
		unit := t.unit(before)
		n := len(p)
		if t.blocks { // so that it is known who sent which block
			n = min(n, int((unit+1)*layout.BlockSize-before))
		}
		switch _, err := t.w.Write(p[:n]); {
		case errors.Is(err, cache.ErrMismatch):
			return err
		case err != nil:
			return fmt.Errorf("%w: %w", errDisk, err)
		}
		if t.unit(before+int64(n)) > unit {
			clear(t.parts)
			t.apart, t.misses = false, 0
		}
		t.fl.flow.publish(t.w.Released())
		p = p[n:]
	}
	return nil
}

// yield lets what clients wait for go first, if nobody waits for this fill.
func (t *transfer) yield(ctx context.Context) error {
	for {
		t.f.mu.Lock()
		changed, must := t.f.queue.mustYield(t.fl)
		t.f.mu.Unlock()
		if !must {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pause waits for base, doubled with each round, half of it at random.
func pause(ctx context.Context, base time.Duration, round int) error {
	d := base << min(round-1, 4)
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
