package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
	"sync/atomic"
)

// Writer is an object on its way into the cache. It is for one goroutine, but
// for Written. The owner ends it with Commit or Abort; Abort after either is
// harmless.
type Writer struct {
	c    *Cache
	f    *os.File
	name string // below the cache's root
	sum  string
	size int64
	hash hash.Hash
	n    atomic.Int64
	done bool
}

var tmpSerial atomic.Int64

// Create begins an object of that hash and size and reserves its space,
// evicting what was not used for the longest time. The error wraps ErrNoSpace
// if that does not suffice.
func (c *Cache) Create(ctx context.Context, sum string, size int64) (*Writer, error) {
	if err := c.reserve(ctx, size); err != nil {
		return nil, fmt.Errorf("cache object %s: %w", sum, err)
	}
	w := &Writer{
		c: c, sum: sum, size: size, hash: sha256.New(),
		name: tmpDir + "/" + sum + "." + strconv.FormatInt(tmpSerial.Add(1), 10),
	}
	f, err := c.root.OpenFile(w.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		w.release()
		return nil, fmt.Errorf("cache object %s: %w", sum, noSpace(err))
	}
	w.f = f
	return w, nil
}

// reserve promises size bytes. The promise is given back by Writer.release.
func (c *Cache) reserve(ctx context.Context, size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.MaxBytes > 0 {
		if size > c.cfg.MaxBytes {
			return fmt.Errorf("%w: object of %d bytes, cache of %d", ErrNoSpace, size, c.cfg.MaxBytes)
		}
		for c.used+c.pending+size > c.cfg.MaxBytes {
			if !c.evictOne(ctx) {
				return fmt.Errorf("%w: all %d bytes of it are in use", ErrNoSpace, c.cfg.MaxBytes)
			}
		}
	}
	for {
		free, err := c.cfg.Free()
		if err != nil {
			return fmt.Errorf("ask for free disk space: %w", err)
		}
		if free-(c.pending-c.written)-size >= c.cfg.MinFree {
			c.pending += size
			return nil
		}
		if !c.evictOne(ctx) {
			return fmt.Errorf("%w: %d bytes of disk are free, of which %d stay free", ErrNoSpace, free, c.cfg.MinFree)
		}
	}
}

// Written is the number of bytes written so far. Any goroutine may ask.
func (w *Writer) Written() int64 { return w.n.Load() }

// Size is the number of bytes that the object will have.
func (w *Writer) Size() int64 { return w.size }

// Write appends. More bytes than announced are an error that wraps ErrMismatch,
// and a full disk one that wraps ErrNoSpace.
func (w *Writer) Write(p []byte) (int, error) {
	if w.n.Load()+int64(len(p)) > w.size {
		return 0, fmt.Errorf("more than %d bytes: %w", w.size, ErrMismatch)
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.account(int64(n))
	if err != nil {
		err = noSpace(err)
	}
	return n, err
}

func (w *Writer) account(n int64) {
	w.n.Add(n)
	w.c.mu.Lock()
	w.c.written += n
	w.c.mu.Unlock()
}

// Reset throws away what was written, to begin again.
func (w *Writer) Reset() error {
	if err := w.f.Truncate(0); err != nil {
		return err
	}
	if _, err := w.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w.hash.Reset()
	w.account(-w.n.Load())
	return nil
}

// Verify checks length and hash. The error wraps ErrMismatch.
func (w *Writer) Verify() error {
	if n := w.n.Load(); n != w.size {
		return fmt.Errorf("%d bytes instead of %d: %w", n, w.size, ErrMismatch)
	}
	if got := hex.EncodeToString(w.hash.Sum(nil)); got != w.sum {
		return fmt.Errorf("sha256 is %s instead of %s: %w", got, w.sum, ErrMismatch)
	}
	return nil
}

// Commit verifies the object, makes it durable, and returns it open.
func (w *Writer) Commit(ctx context.Context) (*Handle, error) {
	if err := w.Verify(); err != nil {
		return nil, err
	}
	if err := w.f.Sync(); err != nil {
		return nil, fmt.Errorf("sync %s: %w", w.name, noSpace(err))
	}
	c, now := w.c, w.c.cfg.Now()
	_ = c.root.Chtimes(w.name, now, now) // only the order of eviction after a restart
	c.mu.Lock()                          // so that no other writer's or reader's view of this name changes in between
	if old := c.entries[w.sum]; old != nil {
		c.drop(ctx, old)
	}
	err := c.root.Rename(w.name, objectFile(w.sum))
	var e *entry
	if err == nil {
		e = &entry{sum: w.sum, size: w.size, refs: 1, touched: now}
		c.insert(e)
		w.releaseLocked()
	}
	c.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("commit object %s: %w", w.sum, noSpace(err))
	}
	h := &Handle{File: w.f, Size: w.size, c: c, e: e}
	if err := syncDir(c.root, casDir+"/"+w.sum[:2]); err != nil {
		h.Close()
		return nil, fmt.Errorf("commit object %s: %w", w.sum, err)
	}
	if _, err := h.File.Seek(0, io.SeekStart); err != nil {
		h.Close()
		return nil, fmt.Errorf("commit object %s: %w", w.sum, err)
	}
	return h, nil
}

// Abort removes what was written and gives the space back.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.f.Close()
	_ = w.c.root.Remove(w.name) // if it stays, the next Open removes it
	w.release()
}

func (w *Writer) release() {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.releaseLocked()
}

func (w *Writer) releaseLocked() {
	if !w.done {
		w.done = true
		w.c.pending -= w.size
		w.c.written -= w.n.Load()
	}
}

// noSpace makes a full disk or a spent quota an ErrNoSpace.
func noSpace(err error) error {
	for _, e := range diskFull {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
	}
	return err
}
