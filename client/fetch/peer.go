package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/repo/layout"
)

var (
	errNoRanges = errors.New("it gives whole files only")
	errGone     = errors.New("given up as a peer")
)

// peer is one of the goroutines of a spread that bring blocks, one at a time:
// each has its mirror, and one more has those that come after.
type peer struct {
	*spread
	mine *source // nil: whichever comes after the peers

	buf   []byte  // of the block under way, as far as it has come
	giver *source // that it came from
	held  *claim  // keeps others from that block while its mirror has a pause
}

// work brings blocks until all are there or its mirrors are given up.
func (p *peer) work(ctx context.Context, stop context.CancelFunc) error {
	for {
		c, err := p.next(ctx)
		switch {
		case errors.Is(err, errGone):
			return nil
		case err != nil:
			p.end(err, stop)
			return nil // what came is kept, so the others end in peace
		case c == nil:
			stop() // whoever is late
			return nil
		}
		err = p.transfer(ctx, c)
		if local, ok := errors.AsType[*localError](err); ok {
			return local.error
		}
		p.settle(ctx, c, err)
	}
}

// next waits for a mirror that has time and for something that it should bring.
// nil: nothing is missing.
func (p *peer) next(ctx context.Context) (*claim, error) {
	for {
		p.mu.Lock()
		if p.board.left == 0 {
			p.mu.Unlock()
			return nil, nil
		}
		now := time.Now()
		src, wait, err := p.pick(now)
		if err != nil {
			p.mu.Unlock()
			return nil, err
		}
		if src != nil {
			if c := p.claim(src, now); c != nil {
				src.busy = true
				p.mu.Unlock()
				return c, nil
			}
		}
		wake := p.wake
		p.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-wake:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if cause := over(ctx); cause != nil {
			return nil, cause
		}
	}
}

// pick finds the mirror to ask, or how long to wait for one.
func (p *peer) pick(now time.Time) (*source, time.Duration, error) {
	if src := p.mine; src != nil {
		if src.dead || src.whole {
			p.changed()
			return nil, 0, errGone
		}
		if wait := src.ready.Sub(now); wait > 0 {
			return nil, wait, nil
		}
		return src, idleSecond, nil
	}
	return p.srcs.after(p.peers, now)
}

// claim finds work for src. What of a block came from it before is built on.
func (p *peer) claim(src *source, now time.Time) *claim {
	want := int64(-1)
	if p.held != nil {
		p.board.drop(p.held)
		if p.giver == src {
			want = p.held.next
		}
	}
	var c *claim
	if src.whole {
		c = p.board.claim(&claim{src: src, end: p.board.count, since: now, last: now})
	} else {
		c = p.board.take(src, want, p.srcs.alone(src, p.peers), now)
	}
	if p.held != nil && (c == nil || c.next != want || src.whole) {
		p.buf = p.buf[:0]
	}
	p.held, p.giver = nil, src
	if c != nil {
		c.got = len(p.buf)
	}
	return c
}

// settle gives back what is left of a claim and notes how its mirror did.
func (p *peer) settle(ctx context.Context, c *claim, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.src.busy = false
	if d := time.Since(c.since).Seconds(); c.read > 0 && d > 0 {
		if r := float64(c.read) / d; c.src.rate == 0 {
			c.src.rate = r
		} else {
			c.src.rate = (c.src.rate + r) / 2
		}
	}
	switch {
	case err == nil || over(ctx) != nil:
	case errors.Is(err, errNoRanges):
		c.src.whole, c.src.err = true, err
	default:
		zerolog.Ctx(ctx).Debug().Str("url", redact(c.src.url)).Int64("block", c.next).Err(err).Msg("transfer ended early")
		p.srcs.failed(c.src, err)
	}
	if len(p.buf) > 0 && !c.src.dead && !c.src.whole {
		c.end = min(c.end, c.next+1)
		p.held = c
	} else {
		p.buf = p.buf[:0]
		p.board.drop(c)
	}
	p.changed()
}

// transfer asks for the blocks of a claim and delivers them. nil: they came, or
// others brought them.
func (p *peer) transfer(ctx context.Context, c *claim) error {
	p.mu.Lock()
	first, end := c.next, c.end
	p.mu.Unlock()
	from, to := first*layout.BlockSize+int64(len(p.buf)), min(end*layout.BlockSize, p.Length)
	header := http.Header{}
	header.Set("Accept-Encoding", "identity")
	part := from > 0 || to < p.Length
	if part {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	}
	t, err := p.f.open(ctx, c.src.url, header)
	if err != nil {
		return err
	}
	defer t.Close()
	var news int64
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		c.src.bytes += t.read
		c.src.took += time.Since(t.started) - t.waited
		p.res.Bytes += t.read
		if t.useful(news) {
			p.srcs.progressed(c.src)
		}
	}()
	if err := captive(t.Response, c.src.url); err != nil {
		return err
	}
	partial, err := checkHead(t.Response, from, to, p.Length, part)
	if err != nil {
		return err
	}
	if part && !partial {
		return errNoRanges
	}
	news, err = p.receive(c, t, to)
	return err
}

// receive reads blocks until the claim is done. news are the bytes that were
// never there before.
func (p *peer) receive(c *claim, t *transfer, to int64) (news int64, err error) {
	if p.buf == nil {
		p.buf = make([]byte, 0, layout.BlockSize)
	}
	for {
		i, size := c.next, p.board.size(c.next)
		for len(p.buf) < size {
			n, rerr := t.Read(p.buf[len(p.buf):size])
			p.buf = p.buf[:len(p.buf)+n]
			p.mu.Lock()
			c.got, c.read, c.last = len(p.buf), c.read+int64(n), time.Now()
			there := p.board.have.has(i)
			if !there {
				news += c.src.furthest(i, c.got)
			}
			late := there && !c.src.whole // another was faster
			p.mu.Unlock()
			if late {
				p.buf = p.buf[:0]
				return news, nil
			}
			if rerr != nil && len(p.buf) < size {
				return news, ended(rerr)
			}
		}
		data := p.buf
		p.buf = p.buf[:0]
		if err := p.check(i, data); err != nil {
			if !c.src.whole || !p.there(i) {
				return news, err
			}
		} else if first, err := p.deliver(i, data); err != nil {
			return news, err
		} else if first {
			p.mu.Lock()
			if !slices.Contains(p.from, c.src) {
				p.from = append(p.from, c.src)
			}
			p.mu.Unlock()
		}
		p.mu.Lock()
		delete(c.src.reached, i)
		c.next, c.got = i+1, 0
		done := c.next >= c.end || p.board.left == 0
		p.mu.Unlock()
		if done {
			return news, tooLong(t, (i+1)*layout.BlockSize >= to)
		}
	}
}

func (p *peer) there(i int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.board.have.has(i)
}

// tooLong looks whether a body of no known length goes on beyond its end.
func tooLong(t *transfer, atEnd bool) error {
	if !atEnd || t.ContentLength >= 0 {
		return nil
	}
	var more [1]byte
	if n, _ := t.Read(more[:]); n > 0 {
		return fmt.Errorf("%w: longer than what was asked for", ErrCorrupt)
	}
	return nil
}

// after finds the mirror to ask beyond the peers: while none of them is at work
// or could be, the first of the others that is ready; those that give whole
// files only come last. nil: wait so long.
func (s *sources) after(peers int, now time.Time) (*source, time.Duration, error) {
	var soonest time.Time
	for class := range 3 {
		for i, src := range s.list {
			of := 0
			if src.whole {
				of = 2
			} else if i >= peers {
				of = 1
			}
			if src.dead || of != class {
				continue
			}
			if soonest.IsZero() || src.ready.Before(soonest) {
				soonest = src.ready
			}
			if !src.busy && src.ready.After(now) {
				continue
			}
			if class == 0 {
				return nil, time.Hour, nil // whoever is at work there says when it is over
			}
			return src, idleSecond, nil
		}
	}
	if soonest.IsZero() {
		return nil, 0, s.failure()
	}
	return nil, max(soonest.Sub(now), time.Millisecond), nil
}

// alone reports whether no peer but src can still be asked.
func (s *sources) alone(src *source, peers int) bool {
	for _, other := range s.list[:min(peers, len(s.list))] {
		if other != src && !other.dead && !other.whole {
			return false
		}
	}
	return true
}

// furthest notes that a source has sent so much of a block, and returns by how
// much that is more than ever before: the same bytes can be sent for ever.
func (s *source) furthest(block int64, n int) int64 {
	if s.reached == nil {
		s.reached = map[int64]int{}
	}
	more := n - s.reached[block]
	if more <= 0 {
		return 0
	}
	s.reached[block] = n
	return int64(more)
}
