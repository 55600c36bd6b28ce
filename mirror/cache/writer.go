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
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	// lastPart is what readers wait for until the whole is verified, in bytes, of
	// an object without a block list. Smaller objects are verified first.
	lastPart = 256 << 10

	// Progress is written after a second, then every markBytes and markEvery.
	firstMark = time.Second
	markEvery = 10 * time.Second
	markBytes = 32 << 20

	// makeRoom is what a writer evicts at most, in bytes, when the disk is full
	// against all promises: somebody else uses it too.
	makeRoom = 16 << 20
)

// Object is what was signed. Blocks is the content of its block list, the
// SHA-256 of each block of layout.BlockSize, nil if it has none.
type Object struct {
	SHA256 string
	Size   int64
	Blocks []byte
}

// Writer is an object on its way into the cache. It is for one goroutine, but
// for Written, Released, Size and Open. The owner ends it with Commit, Suspend
// or Abort; the others after one of them are harmless.
type Writer struct {
	c    *Cache
	log  *zerolog.Logger
	obj  Object
	base string // of its files, below the cache's root
	done bool

	n        atomic.Int64
	released atomic.Int64

	naming sync.Mutex // held while f is replaced
	f      *os.File
	found  int64 // bytes of a file that is being read again; guarded by Cache.mu

	hash  hash.Hash // of what is written
	mark  hash.Hash // the same up to the block that is being written; nil without Blocks
	block hash.Hash // of that block
	sum   [sha256.Size]byte

	// Syncing in the background:
	syncs   sync.WaitGroup // waited for before f is closed, replaced or renamed
	syncing atomic.Bool    // guards lost while it is true
	lost    error          // of a sync: nobody knows what is on the disk
	synced  int64          // where the last sync was begun
	noted   bool           // there is a progress file of this run of the machine
	when    time.Time      // when the next one is due
}

// Create begins an object, or goes on where an earlier Writer of it was
// suspended or an earlier process was stopped: then Written is not 0. What is
// taken over has been read and verified again. It reserves the object's space,
// evicting what was not used for the longest time. The error wraps ErrNoSpace
// if that does not suffice. An object can have one Writer at a time; for a
// second one the error wraps fs.ErrExist.
func (c *Cache) Create(ctx context.Context, obj Object) (*Writer, error) {
	w, err := c.create(ctx, obj)
	if err != nil {
		return nil, fmt.Errorf("cache object %s: %w", obj.SHA256, noSpace(err))
	}
	return w, nil
}

func (c *Cache) create(ctx context.Context, obj Object) (*Writer, error) {
	if !layout.IsSHA256(obj.SHA256) || obj.Size < 0 {
		return nil, fmt.Errorf("it cannot be one: %d bytes", obj.Size)
	}
	if want := layout.BlockCount(obj.Size) * sha256.Size; obj.Blocks != nil && int64(len(obj.Blocks)) != want {
		return nil, fmt.Errorf("block list of %d bytes where there are %d", len(obj.Blocks), want)
	}
	log := zerolog.Ctx(ctx).With().Str("sha256", obj.SHA256).Logger()
	w := &Writer{c: c, log: &log, obj: obj, base: partBase(obj.SHA256, obj.Size), when: time.Now().Add(firstMark)}
	w.clear()
	p, err := c.admit(w)
	if err != nil {
		return nil, err
	}
	if p != nil {
		err := w.resume(ctx, p)
		if err == nil {
			return w, nil
		}
		if ctx.Err() != nil { // the next one may have more patience
			w.f.Close()
			w.release(p)
			return nil, err
		}
		log.Warn().Err(err).Msg("cannot go on with a suspended part")
		w.f.Close()
		w.clear()
	}
	if err := w.open(); err != nil {
		w.release(nil)
		return nil, err
	}
	return w, nil
}

// admit reserves the space and takes over what there is.
func (c *Cache) admit(w *Writer) (*part, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writers[w.base] != nil {
		return nil, fmt.Errorf("it is being written: %w", fs.ErrExist)
	}
	p := c.takePart(w.base) // before space is made
	if p != nil {
		w.found = p.have
	}
	if err := c.reserve(w.log, w.obj.Size, w.found); err != nil {
		if p != nil {
			c.addPart(p)
		}
		return nil, err
	}
	c.writers[w.base] = w
	return p, nil
}

// clear begins the hashes anew.
func (w *Writer) clear() {
	w.hash = sha256.New()
	if w.obj.Blocks != nil {
		w.mark, w.block = sha256.New(), sha256.New()
	}
	w.released.Store(0)
	w.n.Store(0)
}

// open makes a new file, where there may be an old one that somebody reads.
func (w *Writer) open() error {
	if err := w.c.removeFiles(w.base); err != nil {
		return err
	}
	f, err := w.c.root.OpenFile(w.base+partSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if DiskFull(err) && w.c.shrink(w.log, makeRoom) {
		f, err = w.c.root.OpenFile(w.base+partSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	}
	if err != nil {
		return err
	}
	w.f = f
	return nil
}

// resume reads what there is again. With Blocks all blocks that verify are kept,
// else what is known to have been written; and of the rest no more than a part
// of a block.
func (w *Writer) resume(ctx context.Context, p *part) error {
	f, err := w.c.root.OpenFile(w.base+partSuffix, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	w.f = f
	end := p.trusted
	if w.obj.Blocks != nil {
		whole := p.have
		if whole < w.obj.Size {
			whole -= whole % layout.BlockSize
		}
		end = max(end, whole)
	}
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	for pos := w.n.Load(); pos < end; pos = w.n.Load() {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf := (*pooled)[:min(w.room(), end-pos, hashBuffer)]
		if _, err := io.ReadFull(f, buf); err != nil {
			return err
		}
		if err := w.absorb(buf); errors.Is(err, ErrMismatch) {
			break // and the rest goes with it
		} else if err != nil {
			return err
		}
	}
	n := w.n.Load()
	if err := f.Truncate(n); err != nil {
		return err
	}
	if _, err := f.Seek(n, io.SeekStart); err != nil {
		return err
	}
	w.synced = min(p.synced, n)
	w.c.mu.Lock()
	w.found = 0
	w.c.mu.Unlock()
	w.log.Debug().Int64("bytes", n).Int64("found", p.have).Msg("suspended part taken up")
	return nil
}

// onDisk is how many of the reserved bytes are on the disk already. The caller
// holds Cache.mu.
func (w *Writer) onDisk() int64 { return max(w.n.Load(), w.found) }

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
func (w *Writer) Open() (*os.File, error) {
	w.naming.Lock()
	defer w.naming.Unlock()
	return w.c.root.Open(w.base + partSuffix)
}

// room is how many bytes can come until something is verified: the rest of the
// block, or of the object.
func (w *Writer) room() int64 {
	n := w.n.Load()
	if w.obj.Blocks == nil {
		return w.obj.Size - n
	}
	return min(w.obj.Size-n, layout.BlockSize-n%layout.BlockSize)
}

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
		part = part[:min(int64(len(part)), w.room())]
		n, err := w.append(part)
		done += n
		if e := w.absorb(part[:n]); e != nil {
			return done, e
		}
		if err != nil {
			return done, noSpace(err)
		}
	}
	w.note()
	if pos := w.n.Load(); pos-w.synced >= markBytes || !time.Now().Before(w.when) {
		w.syncSoon(pos)
	}
	return done, nil
}

// append writes to the file. If the disk is full, it makes room once.
func (w *Writer) append(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if DiskFull(err) && w.c.shrink(w.log, min(w.obj.Size-w.n.Load(), makeRoom)) {
		var more int
		more, err = w.f.Write(p[n:])
		n += more
	}
	return n, err
}

// absorb takes note of p, which is in the file and goes beyond no block, and
// verifies the block if it ends with it.
func (w *Writer) absorb(p []byte) error {
	w.hash.Write(p)
	end := w.n.Add(int64(len(p)))
	if w.obj.Blocks == nil {
		w.released.Store(max(0, min(end, w.obj.Size-lastPart)))
		return nil
	}
	w.block.Write(p)
	if len(p) == 0 || end%layout.BlockSize != 0 && end != w.obj.Size {
		return nil
	}
	i := (end - 1) / layout.BlockSize
	if !bytes.Equal(w.block.Sum(w.sum[:0]), w.obj.Blocks[i*sha256.Size:(i+1)*sha256.Size]) {
		if err := w.rewind(i * layout.BlockSize); err != nil {
			return err
		}
		return fmt.Errorf("block %d: %w", i, ErrMismatch)
	}
	if end%layout.BlockSize == 0 {
		w.block.Reset()
		w.mark = clone(w.hash)
	}
	if end < w.obj.Size {
		w.released.Store(end)
	}
	return nil
}

// Rewind drops what there is of a block that is not whole. Without Blocks there
// is no such thing.
func (w *Writer) Rewind() error {
	if w.obj.Blocks == nil || w.n.Load() == w.obj.Size {
		return nil
	}
	return w.rewind(w.n.Load() / layout.BlockSize * layout.BlockSize)
}

// rewind goes back to the start of the block that is being written.
func (w *Writer) rewind(start int64) error {
	if err := w.f.Truncate(start); err != nil {
		return err
	}
	if _, err := w.f.Seek(start, io.SeekStart); err != nil {
		return err
	}
	w.hash = clone(w.mark)
	w.block.Reset()
	w.n.Store(start)
	return nil
}

func clone(h hash.Hash) hash.Hash {
	c, err := h.(hash.Cloner).Clone()
	if err != nil {
		panic(err) // sha256 can be cloned
	}
	return c
}

// note says once that the file is of this run of the machine, so that nothing is
// lost if only the process is killed. What is little is fetched again soon.
func (w *Writer) note() {
	if w.noted || w.n.Load() <= lastPart {
		return
	}
	w.noted = true
	w.tell(w.c.writeProgress(w.base, progress{w.synced, w.c.boot}, false))
}

func (w *Writer) tell(err error) {
	if err != nil {
		w.log.Debug().Err(err).Msg("no progress written: less can be gone on with")
	}
}

// syncSoon has what there is synced in the background, and progress written
// then. Only whole blocks count: others may be dropped and written again.
func (w *Writer) syncSoon(pos int64) {
	if w.obj.Blocks != nil {
		pos -= pos % layout.BlockSize
	}
	if pos <= w.synced || !w.syncing.CompareAndSwap(false, true) {
		return
	}
	w.synced, w.noted, w.when = pos, true, time.Now().Add(markEvery)
	w.syncs.Go(func() {
		defer w.syncing.Store(false)
		w.sync(pos)
	})
}

// sync makes what is written durable, and then the note of it.
func (w *Writer) sync(pos int64) {
	if err := w.f.Sync(); err != nil {
		// The system tells it once, and may have dropped what it could not write.
		w.lost = fmt.Errorf("sync %s: %w", w.base, noSpace(err))
	}
	if w.lost == nil {
		w.tell(w.c.writeProgress(w.base, progress{pos, w.c.boot}, true))
	}
}

// Reset throws away what was written, to begin again in a new file: who has the
// old one open keeps its bytes.
func (w *Writer) Reset() error {
	w.syncs.Wait()
	w.naming.Lock()
	defer w.naming.Unlock()
	w.f.Close()
	w.clear()
	w.lost, w.synced, w.noted, w.when = nil, 0, false, time.Now().Add(firstMark)
	if err := w.open(); err != nil {
		return fmt.Errorf("begin object %s again: %w", w.obj.SHA256, noSpace(err))
	}
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
func (w *Writer) Commit(context.Context) (*Handle, error) {
	if err := w.Verify(); err != nil {
		return nil, err
	}
	w.syncs.Wait()
	err := w.lost
	if err == nil {
		err = w.f.Sync()
	}
	if err == nil {
		_, err = w.f.Seek(0, io.SeekStart)
	}
	if err == nil {
		err = w.c.makeFan(w.obj.SHA256)
	}
	if err != nil {
		return nil, fmt.Errorf("commit object %s: %w", w.obj.SHA256, noSpace(err))
	}
	c, now, file := w.c, w.c.cfg.Now(), objectFile(w.obj.SHA256)
	_ = c.root.Chtimes(w.base+partSuffix, now, now) // only the order of eviction after a restart
	e := &entry{sum: w.obj.SHA256, size: w.obj.Size, refs: 1, touched: now}
	c.mu.Lock() // so that no other writer's or reader's view of this name changes in between
	if err = c.root.Rename(w.base+partSuffix, file); err == nil {
		if old := c.entries[e.sum]; old != nil {
			c.forget(old)
		}
		c.insert(e)
		c.root.Remove(w.base + progressSuffix) // or the next Open does
		w.releaseLocked(nil)
	}
	c.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("commit object %s: %w", w.obj.SHA256, noSpace(err))
	}
	h := &Handle{File: w.f, Size: w.obj.Size, c: c, e: e}
	if err := syncDir(c.root, casDir+"/"+w.obj.SHA256[:2]); err != nil {
		h.Close()
		return nil, fmt.Errorf("commit object %s: %w", w.obj.SHA256, noSpace(err))
	}
	return h, nil
}

// Suspend ends the writing and keeps what there is, durably, for a later Create.
func (w *Writer) Suspend() {
	if w.done {
		return
	}
	w.syncs.Wait()
	n := w.n.Load()
	if n > 0 && w.lost == nil {
		w.sync(n)
	}
	if n == 0 || w.lost != nil {
		w.Abort()
		return
	}
	w.f.Close()
	w.release(&part{sum: w.obj.SHA256, size: w.obj.Size, have: n, synced: n, trusted: n})
}

// Abort ends the writing, removes what was written and gives the space back.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.syncs.Wait()
	w.f.Close()
	if err := w.c.removeFiles(w.base); err != nil {
		w.log.Warn().Err(err).Msg("left in the cache's directory until the next start")
	}
	w.release(nil)
}

// release gives the reserved space back, and what there is to the parts.
func (w *Writer) release(p *part) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.releaseLocked(p)
}

func (w *Writer) releaseLocked(p *part) {
	if w.done {
		return
	}
	w.done = true
	w.c.pending -= w.obj.Size
	delete(w.c.writers, w.base)
	if p != nil {
		w.c.addPart(p)
	}
}
