// Package cache keeps verified objects on disk, named by their SHA-256.
//
//	<dir>/cas/sha256/ab/<hex>  whole, verified, immutable
//	<dir>/tmp/<hex>.*          being written; removed when the cache is opened
//
// An object comes into cas only after its length and hash were checked, by
// fsync, rename and fsync of the directory, so whatever is there was right when
// it was written, also after a power cut. The least recently used objects make
// room for new ones; one that somebody holds open stays.
package cache

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	casDir = "cas/sha256"
	tmpDir = "tmp"

	// touchEvery bounds how often a use of an object is written to its mtime,
	// which carries the order of use across restarts.
	touchEvery = time.Minute
)

// ErrNoSpace is wrapped by errors of an object that cannot be kept: the cache
// or the disk is full of what is in use, or the object is larger than the
// cache. What is there goes on being served.
var ErrNoSpace = errors.New("no space in the cache")

// ErrMismatch is wrapped by errors of bytes that are not the ones announced:
// too many, too few, or of another hash.
var ErrMismatch = errors.New("content does not match what was signed")

// Config says where and how much. The zero value of all but Dir is useful.
type Config struct {
	Dir      string                // made if missing
	MaxBytes int64                 // of all objects; 0: no limit but the disk's
	MinFree  int64                 // bytes of the file system that stay free
	Free     func() (int64, error) // free bytes of the file system; nil asks the system
	Now      func() time.Time      // nil: time.Now
}

// Cache is a directory of objects. One process at a time may use one; the
// caller sees to that. All methods are safe for concurrent use.
type Cache struct {
	cfg  Config
	root *os.Root

	mu      sync.Mutex // guards all below
	entries map[string]*entry
	lru     *list.List // of *entry; front: most recently used
	used    int64      // bytes of entries
	pending int64      // bytes reserved by writers
	written int64      // bytes of pending that lie on the disk already
	evicted int64      // objects, since Open
}

// entry is an object in cas. Its fields are guarded by Cache.mu, but for sum
// and size, which never change.
type entry struct {
	sum     string
	size    int64
	refs    int // open handles
	touched time.Time
	elem    *list.Element
	gone    bool // no longer in entries
}

// Stats is a snapshot of the cache's numbers.
type Stats struct {
	Objects  int   `json:"objects"`
	Bytes    int64 `json:"bytes"`
	Reserved int64 `json:"reserved_bytes"` // promised to objects being written
	Max      int64 `json:"max_bytes"`      // 0: no limit
	Evicted  int64 `json:"evicted"`        // objects since the start
}

// Open opens the cache, reads the names and sizes of what is there, and removes
// what an earlier process left half-written.
func Open(ctx context.Context, cfg Config) (*Cache, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Free == nil {
		cfg.Free = func() (int64, error) { return freeBytes(cfg.Dir) }
	}
	root, err := prepare(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", cfg.Dir, err)
	}
	c := &Cache{cfg: cfg, root: root, entries: map[string]*entry{}, lru: list.New()}
	if err := c.scan(ctx); err != nil {
		root.Close()
		return nil, fmt.Errorf("open cache %s: %w", cfg.Dir, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.cfg.MaxBytes > 0 && c.used > c.cfg.MaxBytes && c.evictOne(ctx) {
	}
	return c, nil
}

// prepare makes the directories, durably, and empties tmp.
func prepare(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	err = func() error {
		if err := root.RemoveAll(tmpDir); err != nil {
			return err
		}
		if err := root.Mkdir(tmpDir, 0o755); err != nil {
			return err
		}
		if err := root.MkdirAll(casDir, 0o755); err != nil {
			return err
		}
		for i := range 256 {
			err := root.Mkdir(fmt.Sprintf("%s/%02x", casDir, i), 0o755)
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		for _, d := range []string{casDir, "cas", "."} {
			if err := syncDir(root, d); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

// scan fills the entries from what lies on the disk, oldest use first.
func (c *Cache) scan(ctx context.Context) error {
	var found []*entry
	for i := range 256 {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := fmt.Sprintf("%s/%02x", casDir, i)
		files, err := fs.ReadDir(c.root.FS(), dir)
		if err != nil {
			return err
		}
		for _, f := range files {
			info, err := f.Info()
			if err != nil || !info.Mode().IsRegular() || !layout.IsSHA256(f.Name()) || objectFile(f.Name()) != dir+"/"+f.Name() {
				zerolog.Ctx(ctx).Warn().Str("file", dir+"/"+f.Name()).Msg("not an object, left alone in the cache's directory")
				continue
			}
			found = append(found, &entry{sum: f.Name(), size: info.Size(), touched: info.ModTime()})
		}
	}
	slices.SortFunc(found, func(a, b *entry) int { return a.touched.Compare(b.touched) })
	for _, e := range found {
		c.insert(e)
	}
	return nil
}

func objectFile(sum string) string { return casDir + "/" + sum[:2] + "/" + sum }

// insert adds e as the most recently used. The caller holds mu or is Open.
func (c *Cache) insert(e *entry) {
	c.entries[e.sum] = e
	e.elem = c.lru.PushFront(e)
	c.used += e.size
}

// drop forgets e and removes its file. The caller holds mu.
func (c *Cache) drop(ctx context.Context, e *entry) {
	if e.gone {
		return
	}
	e.gone = true
	delete(c.entries, e.sum)
	c.lru.Remove(e.elem)
	c.used -= e.size
	if err := c.root.Remove(objectFile(e.sum)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		zerolog.Ctx(ctx).Warn().Err(err).Str("sha256", e.sum).Msg("cannot remove object from the cache")
	}
}

// evictOne removes the least recently used object that nobody holds. The
// caller holds mu.
func (c *Cache) evictOne(ctx context.Context) bool {
	for el := c.lru.Back(); el != nil; el = el.Prev() {
		if e := el.Value.(*entry); e.refs == 0 {
			zerolog.Ctx(ctx).Debug().Str("sha256", e.sum).Int64("bytes", e.size).Msg("evicted")
			c.drop(ctx, e)
			c.evicted++
			return true
		}
	}
	return false
}

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
// not there. A file whose size is no longer what it was is discarded.
func (c *Cache) Get(ctx context.Context, sum string, size int64) (*Handle, bool) {
	c.mu.Lock()
	e := c.entries[sum]
	if e == nil || e.size != size {
		c.mu.Unlock()
		return nil, false
	}
	e.refs++
	c.lru.MoveToFront(e.elem)
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
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrMismatch) {
			zerolog.Ctx(ctx).Warn().Err(err).Str("sha256", sum).Msg("damaged object discarded from the cache")
			c.drop(ctx, e)
		} else {
			zerolog.Ctx(ctx).Error().Err(err).Str("sha256", sum).Msg("cannot open cached object")
		}
		return nil, false
	}
	if touch { // a failure costs only the order of eviction after a restart
		_ = c.root.Chtimes(objectFile(sum), now, now)
	}
	return &Handle{File: f, Size: size, c: c, e: e}, true
}

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

// Has reports whether the object is there, without a sign of use.
func (c *Cache) Has(sum string, size int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[sum]
	return e != nil && e.size == size
}

// Stats returns the numbers of now.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{Objects: len(c.entries), Bytes: c.used, Reserved: c.pending, Max: c.cfg.MaxBytes, Evicted: c.evicted}
}

// Close releases the directory. Handles and writers in use go on working on
// their open files, but nothing more can be committed.
func (c *Cache) Close() error { return c.root.Close() }

// syncDir makes the names in a directory durable. Windows has no such call and
// does not need it.
func syncDir(root *os.Root, name string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := root.Open(filepath.FromSlash(strings.TrimSuffix(name, "/")))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
