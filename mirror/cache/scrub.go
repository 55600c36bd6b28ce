package cache

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	// noteEvery is how often the scrub writes down how far it is.
	noteEvery = time.Minute

	// scrubRetry is the pause after a round in which there was nothing to read.
	scrubRetry = time.Second
)

// scrubState is what cas/scrub holds. Rounds go through the objects in the order
// of their hashes, so that after a restart the next one is the one that was
// read the longest ago. Losing it costs time only.
type scrubState struct {
	After string    `json:"after"` // objects up to this one have been read in this round; empty: none
	Began time.Time `json:"began"` // the round
	Whole bool      `json:"whole"` // all objects have been read in it
}

// Scrub reads all objects, again and again but not more often than every, at
// that many bytes a second, until ctx is done, and discards damaged ones. It
// is no use in the sense of the LRU order. With 0 bytes it does nothing.
func (c *Cache) Scrub(ctx context.Context, bytesPerSecond int64, every time.Duration) {
	if bytesPerSecond <= 0 {
		return
	}
	limit := rate.NewLimiter(rate.Limit(bytesPerSecond), hashBuffer)
	st := c.readScrub()
	for ctx.Err() == nil {
		if now := c.cfg.Now(); st.Began.IsZero() || st.Began.After(now) {
			st = scrubState{Began: now}
		}
		if !st.Whole {
			c.round(ctx, limit, &st)
			c.writeScrub(ctx, st)
		}
		if st.Whole {
			pause(ctx, max(st.Began.Add(every).Sub(c.cfg.Now()), scrubRetry))
			if ctx.Err() == nil {
				st = scrubState{Began: c.cfg.Now()}
			}
		}
	}
}

// round reads what has not been read in this round. Objects that come meanwhile
// have just been verified.
func (c *Cache) round(ctx context.Context, limit *rate.Limiter, st *scrubState) {
	c.mu.Lock()
	sums := make([]string, 0, len(c.entries))
	for sum := range c.entries {
		if sum > st.After {
			sums = append(sums, sum)
		}
	}
	c.mu.Unlock()
	slices.Sort(sums)
	noted := c.cfg.Now()
	for _, sum := range sums {
		c.scrubOne(ctx, limit, sum)
		if ctx.Err() != nil {
			return
		}
		st.After = sum
		if now := c.cfg.Now(); now.Sub(noted) > noteEvery {
			noted = now
			c.writeScrub(ctx, *st)
		}
	}
	st.Whole = true
}

// scrubOne reads one object, and holds nothing meanwhile: it may be evicted.
func (c *Cache) scrubOne(ctx context.Context, limit *rate.Limiter, sum string) {
	c.mu.Lock()
	e := c.entries[sum]
	c.mu.Unlock()
	if e == nil {
		return
	}
	err := c.check(ctx, e, func(n int) error {
		c.mu.Lock()
		c.scrubbed += int64(n)
		c.mu.Unlock()
		if limit.WaitN(ctx, n) != nil { // ctx is done, or will be before that
			<-ctx.Done()
		}
		return ctx.Err()
	})
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case e.gone:
	case err == nil:
		c.sure(e)
	default:
		_ = c.suspect(zerolog.Ctx(ctx), e, err) // which has said it all
	}
}

func (c *Cache) readScrub() scrubState {
	f, err := c.root.Open(scrubFile)
	if err != nil {
		return scrubState{}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxProgress))
	if err != nil {
		return scrubState{}
	}
	var st scrubState
	if json.Unmarshal(data, &st) != nil || st.After != "" && !layout.IsSHA256(st.After) {
		return scrubState{}
	}
	return st
}

func (c *Cache) writeScrub(ctx context.Context, st scrubState) {
	data, err := json.Marshal(st)
	if err == nil {
		err = writeFile(c.root, scrubFile, false, func(w *bufio.Writer) { _, _ = w.Write(data) })
	}
	if err != nil {
		zerolog.Ctx(ctx).Debug().Err(err).Msg("cannot note how far the scrub is")
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
