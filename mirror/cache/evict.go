package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"

	"github.com/rs/zerolog"
)

// SetPinned says which objects are never evicted, by hash, instead of those
// that it said before. The suspended parts of them go after all others.
func (c *Cache) SetPinned(sums map[string]bool) {
	pinned := maps.Clone(sums)
	maps.DeleteFunc(pinned, func(_ string, on bool) bool { return !on })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pinned = pinned
}

// Shrink evicts so many bytes, or a little more, of what is neither pinned nor
// in use. It reports false if nothing could go.
func (c *Cache) Shrink(ctx context.Context, bytes int64) bool {
	return c.shrink(zerolog.Ctx(ctx), bytes)
}

func (c *Cache) shrink(log *zerolog.Logger, bytes int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	gone := int64(0)
	for gone < max(bytes, 1) {
		n := c.evictOne(log)
		if n == 0 {
			break
		}
		gone += n
	}
	return gone > 0
}

// reserve promises size bytes, of which have lie on the disk already. The
// promise is given back by Writer.release. The caller holds mu.
func (c *Cache) reserve(log *zerolog.Logger, size, have int64) error {
	if c.cfg.MaxBytes > 0 {
		if size > c.cfg.MaxBytes {
			return fmt.Errorf("%w: object of %d bytes, cache of %d", ErrNoSpace, size, c.cfg.MaxBytes)
		}
		for c.used+c.partBytes+c.pending+size > c.cfg.MaxBytes {
			if c.evictOne(log) == 0 {
				return fmt.Errorf("%w: all %d bytes of it are in use", ErrNoSpace, c.cfg.MaxBytes)
			}
		}
	}
	for {
		free, err := c.cfg.Free()
		if err != nil {
			return fmt.Errorf("ask for free disk space: %w", err)
		}
		promised := c.pending
		for _, w := range c.writers {
			promised -= w.onDisk()
		}
		if free-max(promised, 0)-(size-have) >= c.cfg.MinFree {
			c.pending += size
			return nil
		}
		if c.evictOne(log) == 0 {
			return fmt.Errorf("%w: %d bytes of disk are free, of which %d stay free", ErrNoSpace, free, c.cfg.MinFree)
		}
	}
}

// evictOne removes the oldest suspended part, or else the least recently used
// object, and returns its size in bytes; 0 if nothing can go. Empty objects
// stay. The caller holds mu.
func (c *Cache) evictOne(log *zerolog.Logger) int64 {
	for _, wanted := range []bool{false, true} {
		for _, p := range c.parts {
			if c.pinned[p.sum] != wanted {
				continue
			}
			log.Debug().Str("sha256", p.sum).Int64("bytes", p.have).Msg("suspended part evicted")
			if !c.removePart(log, p) {
				return 0
			}
			return p.have
		}
	}
	for el := c.lru.Back(); el != nil; el = el.Prev() {
		e := el.Value.(*entry)
		if e.refs > 0 || e.size == 0 || c.pinned[e.sum] {
			continue
		}
		// What cannot be removed goes on being served: the disk may have become
		// read-only.
		if err := c.root.Remove(objectFile(e.sum)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Error().Err(err).Str("sha256", e.sum).Msg("cannot evict object from the cache")
			return 0
		}
		log.Debug().Str("sha256", e.sum).Int64("bytes", e.size).Msg("evicted")
		c.forget(e)
		c.evicted++
		return e.size
	}
	return 0
}
