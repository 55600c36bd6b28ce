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
)

const (
	// bufSize is how much is read at once: enough for the disk and the hash.
	bufSize = 256 << 10

	// minProgress is what a try has to bring to count as a success that was
	// cut, rather than as a failure. Without it, an upstream that drips a byte
	// a connection would never be given up.
	minProgress = 64 << 10

	// restFor is how long a source that failed is asked after the others.
	restFor = 30 * time.Second
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufSize); return &b }}

var (
	errLength = errors.New("wrong length") // whatever came before, this source has something else
	errDisk   = errors.New("write to the cache")
)

// source is an upstream with what we know of it. The numbers are guarded by
// Filler.mu.
type source struct {
	Source
	bytes    int64 // received
	opens    int64 // transfers begun
	errors   int64
	lastErr  string
	failedAt time.Time // zero: worked the last time
}

// SourceStats are the numbers of one upstream.
type SourceStats struct {
	Name      string    `json:"name"`
	Transfers int64     `json:"transfers"` // requests for a target
	Bytes     int64     `json:"bytes"`
	Errors    int64     `json:"errors"`
	LastError string    `json:"last_error,omitempty"` // empty if the last transfer worked
	FailedAt  time.Time `json:"failed_at,omitzero"`
}

// Sources returns the numbers of the upstreams, in their order.
func (f *Filler) Sources() []SourceStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]SourceStats, 0, len(f.sources))
	for _, s := range f.sources {
		out = append(out, SourceStats{s.String(), s.opens, s.bytes, s.errors, s.lastErr, s.failedAt})
	}
	return out
}

// transfer brings the whole object into w and verifies it.
//
// Whatever has arrived is kept when a source fails, and the next one goes on
// from there. If the whole then has the wrong hash and more than one source
// had a part in it, nobody knows whose fault that was: it begins again,
// without mixing.
func (f *Filler) transfer(ctx context.Context, fl *fill, w *cache.Writer) error {
	var (
		queue  = f.order(fl.key)    // who is asked next
		parts  = map[*source]bool{} // who sent what w holds
		mixing = true
		misses int // tries in a row that brought nothing
		last   = errors.New("all of them have sent wrong bytes lately")
	)
	for len(queue) > 0 && misses < f.cfg.Tries*len(queue) {
		if misses > 0 && misses%len(queue) == 0 {
			if err := pause(ctx, f.cfg.Backoff, misses/len(queue)); err != nil {
				return err
			}
		}
		src := queue[0]
		if !mixing && !parts[src] {
			if err := w.Reset(); err != nil {
				return err
			}
			clear(parts)
		}
		before := w.Written()
		parts[src] = true
		err := f.try(ctx, fl, w, src)
		if err == nil {
			err = w.Verify()
		}
		switch {
		case err == nil:
			f.note(src, nil)
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errDisk):
			return err
		}
		f.note(src, err)
		last = fmt.Errorf("%s: %w", src, err)
		zerolog.Ctx(ctx).Warn().Err(err).Str("object", fl.obj.Name).Stringer("upstream", src).Msg("transfer failed")

		queue = append(queue[1:], src) // the others first
		switch {
		case errors.Is(err, cache.ErrMismatch):
			if len(parts) == 1 || errors.Is(err, errLength) { // certainly src's fault
				f.ban(src, fl.key)
				queue = queue[:len(queue)-1]
			} else {
				mixing = false
			}
			if err := w.Reset(); err != nil {
				return err
			}
			clear(parts)
		case w.Written()-before >= minProgress:
			misses = 0
		default:
			misses++
		}
	}
	return fmt.Errorf("%w: %w", ErrUpstream, last)
}

// try reads from one source until the object is whole, the source fails, or it
// turns out to have something else.
func (f *Filler) try(ctx context.Context, fl *fill, w *cache.Writer, src *source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	src.opens++
	fl.from = src.String()
	f.mu.Unlock()
	body, size, err := src.OpenTarget(ctx, fl.obj.Name, w.Written())
	if err != nil {
		return err
	}
	defer body.Close()
	if size >= 0 && size != w.Size() {
		return fmt.Errorf("%w: it has %d bytes where %d were signed: %w", errLength, size, w.Size(), cache.ErrMismatch)
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := body.Read(*buf)
		f.mu.Lock()
		src.bytes += int64(n)
		f.mu.Unlock()
		if n > 0 {
			switch _, err := w.Write((*buf)[:n]); {
			case errors.Is(err, cache.ErrMismatch):
				return fmt.Errorf("%w: %w", errLength, err)
			case err != nil:
				return fmt.Errorf("%w: %w", errDisk, err)
			}
		}
		switch {
		case err == io.EOF && w.Written() < w.Size():
			return fmt.Errorf("cut after %d of %d bytes: %w", w.Written(), w.Size(), io.ErrUnexpectedEOF)
		case err == io.EOF, err != nil && w.Written() == w.Size(): // all is there: the hash will tell
			return nil
		case err != nil:
			return fmt.Errorf("after %d of %d bytes: %w", w.Written(), w.Size(), err)
		}
	}
}

// order returns the sources to ask for an object: those not banned for it, as
// configured, but those that failed lately last.
func (f *Filler) order(k key) []*source {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.cfg.Now()
	var good, resting []*source
	for _, s := range f.sources {
		switch {
		case now.Before(f.bans[ban{s, k}]):
		case !s.failedAt.IsZero() && now.Sub(s.failedAt) < restFor:
			resting = append(resting, s)
		default:
			good = append(good, s)
		}
	}
	return append(good, resting...)
}

// note remembers how a try ended.
func (f *Filler) note(s *source, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		s.failedAt, s.lastErr = time.Time{}, ""
		return
	}
	s.failedAt, s.lastErr = f.cfg.Now(), err.Error()
	s.errors++
}

// ban keeps a source from being asked for an object for a while.
func (f *Filler) ban(s *source, k key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.cfg.Now()
	if len(f.bans) >= 1024 {
		for b, until := range f.bans {
			if !now.Before(until) {
				delete(f.bans, b)
			}
		}
	}
	if len(f.bans) < 1<<16 {
		f.bans[ban{s, k}] = now.Add(f.cfg.BanFor)
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
