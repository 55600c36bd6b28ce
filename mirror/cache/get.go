package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/rs/zerolog"
)

const (
	// hashBuffer is how much of a file is read at once to be hashed, in bytes.
	hashBuffer = 256 << 10

	// maxHashing is how many Gets hash at once: more would be no faster.
	maxHashing = 4
)

var buffers = sync.Pool{New: func() any { b := make([]byte, hashBuffer); return &b }}

// Handle is an object held open: it is not evicted before Close. File is the
// caller's own, with its own position.
type Handle struct {
	File *os.File
	Size int64
	c    *Cache
	e    *entry
	once sync.Once
}

// Close lets the object go.
func (h *Handle) Close() error {
	h.once.Do(func() {
		h.c.mu.Lock()
		defer h.c.mu.Unlock()
		h.e.refs--
	})
	return h.File.Close()
}

// Get opens the object with that hash and size, and reports false if it is
// not there, or if ctx is done before that is known. After an unclean stop
// the object is hashed first. A damaged one is discarded.
func (c *Cache) Get(ctx context.Context, sum string, size int64) (*Handle, bool) {
	e := c.hold(ctx, sum, size)
	if e == nil {
		return nil, false
	}
	c.mu.Lock()
	if !e.gone {
		c.lru.MoveToFront(e.elem)
	}
	now := c.cfg.Now()
	touch := now.Sub(e.touched) > touchEvery
	if touch {
		e.touched = now
	}
	c.mu.Unlock()

	f, err := c.open(e)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		e.refs--
		_ = c.suspect(zerolog.Ctx(ctx), e, err) // which has said it all
		return nil, false
	}
	if touch { // a failure costs only the order of eviction after a restart
		_ = c.root.Chtimes(objectFile(sum), now, now)
	}
	return &Handle{File: f, Size: size, c: c, e: e}, true
}

// hold finds the entry and adds a reference to it, once it is known to be sound.
func (c *Cache) hold(ctx context.Context, sum string, size int64) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		e := c.entries[sum]
		if e == nil || e.size != size {
			return nil
		}
		if !e.unsure {
			e.refs++
			return e
		}
		e.refs++ // nobody evicts it meanwhile
		err := c.settle(ctx, e)
		e.refs--
		if err != nil {
			return nil
		}
	}
}

// settle hashes an object that nobody has hashed since an unclean stop, or
// waits for the one who does. The caller holds mu, which is released meanwhile.
// It fails if ctx is done, or if the object cannot be read at the moment.
func (c *Cache) settle(ctx context.Context, e *entry) error {
	if busy := e.checking; busy != nil {
		c.mu.Unlock()
		defer c.mu.Lock()
		select {
		case <-busy:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	done := make(chan struct{})
	e.checking = done
	c.mu.Unlock()
	err := c.inTurn(ctx, e)
	c.mu.Lock()
	e.checking = nil
	close(done)
	switch {
	case err == nil:
		c.sure(e)
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return c.suspect(zerolog.Ctx(ctx), e, err)
	}
	return nil
}

func (c *Cache) inTurn(ctx context.Context, e *entry) error {
	select {
	case c.hashing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.hashing }()
	return c.check(ctx, e, nil)
}

// check hashes an object's file. pace, unless it is nil, is told of each piece.
func (c *Cache) check(ctx context.Context, e *entry, pace func(n int) error) error {
	f, err := c.open(e)
	if err != nil {
		return err
	}
	defer f.Close()
	return hashFile(ctx, f, e.sum, pace)
}

// hashFile reads all of f. The error wraps ErrMismatch if it is not the content
// with that hash.
func hashFile(ctx context.Context, f io.Reader, sum string, pace func(n int) error) error {
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	h := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(*pooled)
		h.Write((*pooled)[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if pace != nil {
			if err := pace(n); err != nil {
				return err
			}
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return fmt.Errorf("sha256 is %s: %w", got, ErrMismatch)
	}
	return nil
}

// open opens an object's file, which has to look as it did.
func (c *Cache) open(e *entry) (*os.File, error) {
	f, err := c.root.Open(objectFile(e.sum))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != e.size) {
		err = fmt.Errorf("file of %d bytes where there were %d: %w", info.Size(), e.size, ErrMismatch)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// suspect discards the object if err says that it is damaged, and returns nil
// then. Else, as when too many files are open, it returns err. The caller
// holds mu.
func (c *Cache) suspect(log *zerolog.Logger, e *entry, err error) error {
	if isDamage(err) {
		c.discard(log, e, err)
		return nil
	}
	log.Error().Err(err).Str("sha256", e.sum).Msg("cannot read cached object")
	return err
}

func isDamage(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrMismatch) ||
		slices.ContainsFunc(unreadable, func(e error) bool { return errors.Is(err, e) })
}
