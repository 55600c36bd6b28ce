package cache

import (
	"bytes"
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

	"github.com/patchkeep/patchkeep/repo/layout"
)

// lastPart is what readers wait for until the whole is verified, in bytes, of
// an object without a block list. Smaller objects are verified first.
const lastPart = 256 << 10

// Object is what was signed. Blocks is the content of its block list, the
// SHA-256 of each block of layout.BlockSize, nil if it has none.
type Object struct {
	SHA256 string
	Size   int64
	Blocks []byte
}

// Writer is an object on its way into the cache. It is for one goroutine, but
// for Written, Released and Open. The owner ends it with Commit, Suspend or
// Abort; the others after one of them are harmless.
type Writer struct {
	c        *Cache
	f        *os.File
	name     string // below the cache's root
	obj      Object
	n        atomic.Int64
	released atomic.Int64
	done     bool

	hash  hash.Hash // of what is written
	mark  hash.Hash // the same up to the block that is being written; nil without Blocks
	block hash.Hash // of that block
}

var tmpSerial atomic.Int64

// Create begins an object and reserves its space, evicting what was not used
// for the longest time. The error wraps ErrNoSpace if that does not suffice.
func (c *Cache) Create(ctx context.Context, obj Object) (*Writer, error) {
	if want := layout.BlockCount(obj.Size) * sha256.Size; obj.Blocks != nil && int64(len(obj.Blocks)) != want {
		return nil, fmt.Errorf("cache object %s: block list of %d bytes where there are %d", obj.SHA256, len(obj.Blocks), want)
	}
	if err := c.reserve(ctx, obj.Size); err != nil {
		return nil, fmt.Errorf("cache object %s: %w", obj.SHA256, err)
	}
	w := &Writer{
		c: c, obj: obj, hash: sha256.New(),
		name: tmpDir + "/" + obj.SHA256 + "." + strconv.FormatInt(tmpSerial.Add(1), 10),
	}
	if obj.Blocks != nil {
		w.mark, w.block = sha256.New(), sha256.New()
	}
	if err := w.create(); err != nil {
		w.release()
		return nil, fmt.Errorf("cache object %s: %w", obj.SHA256, noSpace(err))
	}
	return w, nil
}

func (w *Writer) create() (err error) {
	w.f, err = w.c.root.OpenFile(w.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	return err
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
func (w *Writer) Size() int64 { return w.obj.Size }

// Released is the number of bytes, from the start, that readers may see: with
// Blocks those of whole verified blocks, but never the last one before Verify
// has succeeded; without, all but the last 256 KiB before that. It shrinks
// only by Reset. Any goroutine may ask.
func (w *Writer) Released() int64 { return w.released.Load() }

// Open returns a read handle of one's own, which stays good whatever becomes of
// the Writer. After Commit it is fs.ErrNotExist: the object is in the cache.
func (w *Writer) Open() (*os.File, error) { return w.c.root.Open(w.name) }

// Write appends. More bytes than announced are an error that wraps ErrMismatch,
// and so is a block that does not verify, whose bytes are dropped; a full disk
// is one that wraps ErrNoSpace.
func (w *Writer) Write(p []byte) (int, error) {
	if w.n.Load()+int64(len(p)) > w.obj.Size {
		return 0, fmt.Errorf("more than %d bytes: %w", w.obj.Size, ErrMismatch)
	}
	done := 0
	for done < len(p) {
		part := p[done:]
		if w.obj.Blocks != nil {
			part = part[:min(int64(len(part)), layout.BlockSize-w.n.Load()%layout.BlockSize)]
		}
		n, err := w.f.Write(part)
		w.hash.Write(part[:n])
		w.account(int64(n))
		done += n
		if err != nil {
			return done, noSpace(err)
		}
		if w.obj.Blocks == nil {
			w.released.Store(max(0, min(w.n.Load(), w.obj.Size-lastPart)))
		} else if err := w.checkBlock(part); err != nil {
			return done, err
		}
	}
	return done, nil
}

// checkBlock takes note of p, which was written, and verifies the block if it
// ends with it.
func (w *Writer) checkBlock(p []byte) error {
	w.block.Write(p)
	end := w.n.Load()
	if end%layout.BlockSize != 0 && end != w.obj.Size {
		return nil
	}
	i := (end - 1) / layout.BlockSize
	var sum [sha256.Size]byte
	if !bytes.Equal(w.block.Sum(sum[:0]), w.obj.Blocks[i*sha256.Size:(i+1)*sha256.Size]) {
		if err := w.rewind(i * layout.BlockSize); err != nil {
			return err
		}
		return fmt.Errorf("block %d: %w", i, ErrMismatch)
	}
	w.block.Reset()
	w.mark = clone(w.hash)
	if end < w.obj.Size {
		w.released.Store(end)
	}
	return nil
}

// Rewind drops what there is of a block that is not whole. Without Blocks there
// is no such thing.
func (w *Writer) Rewind() error {
	if w.obj.Blocks == nil {
		return nil
	}
	return w.rewind(w.n.Load() / layout.BlockSize * layout.BlockSize)
}

func (w *Writer) rewind(start int64) error {
	if err := w.f.Truncate(start); err != nil {
		return err
	}
	if _, err := w.f.Seek(start, io.SeekStart); err != nil {
		return err
	}
	w.hash = clone(w.mark)
	w.block.Reset()
	w.account(start - w.n.Load())
	return nil
}

func clone(h hash.Hash) hash.Hash {
	c, err := h.(hash.Cloner).Clone()
	if err != nil {
		panic(err) // sha256 can be cloned
	}
	return c
}

func (w *Writer) account(n int64) {
	w.n.Add(n)
	w.c.mu.Lock()
	w.c.written += n
	w.c.mu.Unlock()
}

// Reset throws away what was written, to begin again in a new file: who has the
// old one open keeps its bytes.
func (w *Writer) Reset() error {
	w.f.Close()
	if err := w.c.root.Remove(w.name); err != nil {
		return err
	}
	if err := w.create(); err != nil {
		return err
	}
	w.hash.Reset()
	if w.obj.Blocks != nil {
		w.mark.Reset()
		w.block.Reset()
	}
	w.released.Store(0)
	w.account(-w.n.Load())
	return nil
}

// Verify checks length and hash, and releases the whole. The error wraps
// ErrMismatch.
func (w *Writer) Verify() error {
	if n := w.n.Load(); n != w.obj.Size {
		return fmt.Errorf("%d bytes instead of %d: %w", n, w.obj.Size, ErrMismatch)
	}
	if got := hex.EncodeToString(w.hash.Sum(nil)); got != w.obj.SHA256 {
		return fmt.Errorf("sha256 is %s instead of %s: %w", got, w.obj.SHA256, ErrMismatch)
	}
	w.released.Store(w.obj.Size)
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
	if old := c.entries[w.obj.SHA256]; old != nil {
		c.drop(ctx, old)
	}
	err := c.root.Rename(w.name, objectFile(w.obj.SHA256))
	var e *entry
	if err == nil {
		e = &entry{sum: w.obj.SHA256, size: w.obj.Size, refs: 1, touched: now}
		c.insert(e)
		w.releaseLocked()
	}
	c.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("commit object %s: %w", w.obj.SHA256, noSpace(err))
	}
	h := &Handle{File: w.f, Size: w.obj.Size, c: c, e: e}
	if err := syncDir(c.root, casDir+"/"+w.obj.SHA256[:2]); err != nil {
		h.Close()
		return nil, fmt.Errorf("commit object %s: %w", w.obj.SHA256, err)
	}
	if _, err := h.File.Seek(0, io.SeekStart); err != nil {
		h.Close()
		return nil, fmt.Errorf("commit object %s: %w", w.obj.SHA256, err)
	}
	return h, nil
}

// Suspend ends the writing.
func (w *Writer) Suspend() { w.Abort() }

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
		w.c.pending -= w.obj.Size
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
