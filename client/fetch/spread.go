package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	maxPeers   = 4       // mirrors asked at once: a block each is in memory
	smallFile  = 8 << 20 // for which one is enough
	idleSecond = 100 * time.Millisecond
)

// spread is a round in which every block comes on a way of its own: from the
// mirror that has time for it, from a base, from an earlier try. Each is
// verified before it is written to its place, and the whole hash follows behind
// the first one missing.
type spread struct {
	*download
	peers int

	mu    sync.Mutex // guards the rest, and of download: res, from, srcs and all sources
	board *board
	wake  chan struct{} // closed when something changes, and made anew
	lost  error         // why no more will come
}

// spreads reports whether blocks are to be taken from several places.
func (d *download) spreads(pr progress) bool {
	return d.Blocks != nil && (pr.Blocks != nil || len(d.Bases) > 0 || d.Length > smallFile && d.peers() > 1)
}

func (d *download) peers() int { return max(1, min(d.Peers, len(d.URLs), maxPeers)) }

func (d *download) spread(ctx context.Context, pr progress, h *hashes) error {
	s := &spread{download: d, peers: d.peers(), board: newBoard(d.Length), wake: make(chan struct{})}
	if err := s.adopt(ctx, pr); err != nil {
		return err
	}
	if err := s.checkSpaceFor(s.board.left * layout.BlockSize); err != nil {
		return err
	}
	start := pr.Verified
	if pr.Blocks == nil { // whoever goes on with it must know that it has gaps
		if err := s.part.save(&s.Request, s.progress(start, h)); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	if start > 0 {
		want := h.state()
		g.Go(func() error { return d.audit(gctx, start, want) })
	}
	work, stop := context.WithCancel(gctx)
	defer stop()
	bases := make(chan struct{}) // closed when mirrors need not wait for them
	g.Go(func() error { return s.copyBases(work, bases) })
	for i := range s.peers + 1 {
		p := &peer{spread: s}
		if i < min(s.peers, len(s.srcs.list)) {
			p.mine = s.srcs.list[i]
		}
		g.Go(func() error {
			select {
			case <-bases:
			case <-work.Done():
			}
			return p.work(work, stop)
		})
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		s.tellOn(work)
	}()
	hashed := start
	g.Go(func() error {
		defer stop() // all is there, or no more will come
		return s.hash(gctx, work, h, &hashed)
	})
	err := g.Wait()
	stop()
	<-told
	if err != nil {
		return err
	}
	if s.lost == nil {
		return d.finish(h)
	}
	if hashed > start || s.board.left < s.board.count {
		if err := d.part.save(&d.Request, s.progress(hashed, h)); err != nil {
			return err
		}
	}
	return s.lost
}

// adopt takes over the blocks of an earlier try: those that were synced as they
// are, for the whole hash to judge, and others if they are right.
func (s *spread) adopt(ctx context.Context, pr progress) error {
	info, err := s.part.file.Stat()
	if err != nil {
		return err
	}
	var buf []byte
	for i := range s.board.count {
		off, n := i*layout.BlockSize, s.board.size(i)
		if off+int64(n) > info.Size() {
			break
		}
		if off >= pr.Verified && (pr.Blocks == nil || !pr.Blocks.has(i)) {
			if cause := over(ctx); cause != nil {
				return cause
			}
			if buf == nil {
				buf = make([]byte, layout.BlockSize)
			}
			if _, err := s.part.file.ReadAt(buf[:n], off); err != nil || s.check(i, buf[:n]) != nil {
				continue
			}
		}
		s.board.set(i)
	}
	if !s.strict {
		s.res.Resumed = s.board.bytes()
	}
	return nil
}

// changed tells all who wait. s.mu is held.
func (s *spread) changed() {
	close(s.wake)
	s.wake = make(chan struct{})
}

// hash hashes block after block as soon as all before are there, and writes
// down from time to time what is. at is how far it came.
func (s *spread) hash(ctx, work context.Context, h *hashes, at *int64) error {
	saver, sctx := errgroup.WithContext(ctx)
	saver.SetLimit(1)
	buf := make([]byte, layout.BlockSize)
	saved, last := s.missing(), time.Now()
	tick := time.NewTicker(checkpointEvery / 5)
	defer tick.Stop()
	for *at < s.Length && sctx.Err() == nil {
		i := (*at + layout.BlockSize - 1) / layout.BlockSize
		s.mu.Lock()
		there, wake, left := s.board.have.has(i), s.wake, s.board.left
		s.mu.Unlock()
		if left > 0 && left < saved && ((saved-left)*layout.BlockSize >= checkpointBytes || time.Since(last) >= checkpointEvery) {
			pr := s.progress(*at, h)
			if saver.TryGo(func() error { return s.part.save(&s.Request, pr) }) {
				saved, last = left, time.Now()
			}
		}
		if !there {
			select {
			case <-wake:
			case <-tick.C:
			case <-sctx.Done():
			case <-work.Done():
				return saver.Wait()
			}
			continue
		}
		b := buf[:s.board.size(i)]
		if _, err := s.part.file.ReadAt(b, *at); err != nil {
			return errors.Join(errStale, saver.Wait())
		}
		h.write(b)
		*at += int64(len(b))
	}
	if err := saver.Wait(); err != nil {
		return err
	}
	return over(ctx)
}

// progress is what can be written down now. Only h's own goroutine calls it.
func (s *spread) progress(hashed int64, h *hashes) progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return progress{Verified: hashed, States: h.state(), Blocks: slices.Clone(s.board.have)}
}

func (s *spread) missing() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.board.left
}

// tellOn reports progress until the round is over.
func (s *spread) tellOn(ctx context.Context) {
	tick := time.NewTicker(idleSecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		done := s.board.bytes()
		s.mu.Unlock()
		if done > s.toldDone && done < s.Length { // what a mirror had begun may be lost
			s.tell(done, false)
		}
	}
}

// deliver writes a verified block to its place, once.
func (s *spread) deliver(i int64, data []byte) (news bool, err error) {
	s.mu.Lock()
	had := s.board.have.has(i)
	s.mu.Unlock()
	if had {
		return false, nil
	}
	// Two who are here at once write the same bytes.
	if err := s.write(data, i*layout.BlockSize); err != nil {
		return false, &localError{err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	news = s.board.set(i)
	if news {
		s.changed()
	}
	return news, nil
}

// localError is one of this machine, which no other mirror mends.
type localError struct{ error }

func (e *localError) Unwrap() error { return e.error }

// end says that no more will come, and why. What came is kept.
func (s *spread) end(err error, stop context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil && s.board.left > 0 {
		s.lost = err
	}
	stop()
}

// check compares a block with the block list.
func (d *download) check(i int64, data []byte) error {
	if !d.listed(i, data) {
		return fmt.Errorf("%w: block %d is not as signed", ErrCorrupt, i)
	}
	return nil
}
