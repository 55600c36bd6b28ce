// Package cache keeps verified objects on disk, named by their SHA-256.
//
//	<dir>/cas/sha256/ab/<hex>         whole, verified, immutable
//	<dir>/cas/clean                   the last process closed the cache
//	<dir>/cas/scrub                   how far the scrub is
//	<dir>/tmp/<hex>-<size>.part       being written, or suspended
//	<dir>/tmp/<hex>-<size>.progress   how much of that is synced
//
// An object comes into cas only after its length and hash were checked, by
// fsync, rename and fsync of the directory, so whatever is there was right when
// it was written, also after a power cut. After an unclean stop it is hashed
// again before its first use all the same, and a slow scrub looks for what the
// disk has spoilt since. The least recently used objects make room for new
// ones; one that is pinned, or that somebody holds open, stays.
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
	casDir    = "cas/sha256"
	tmpDir    = "tmp"
	cleanFile = "cas/clean"
	scrubFile = "cas/scrub"

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
	MaxBytes int64                 // of all objects and parts of objects; 0: no limit but the disk's
	MinFree  int64                 // bytes of the file system that stay free
	Free     func() (int64, error) // free bytes of the file system; nil asks the system
	Now      func() time.Time      // nil: time.Now
}

// Cache is a directory of objects. One process at a time may use one; the
// caller sees to that. All methods are safe for concurrent use.
type Cache struct {
	cfg     Config
	root    *os.Root
	boot    string        // id of this run of the machine; empty: not known
	hashing chan struct{} // one element for each Get that hashes an object

	mu        sync.Mutex // guards all below
	entries   map[string]*entry
	lru       *list.List      // of *entry; front: most recently used
	fans      map[string]bool // directories of objects that are there, durably
	pinned    map[string]bool
	parts     []*part            // suspended, oldest first
	writers   map[string]*Writer // by file name
	used      int64              // bytes of entries
	partBytes int64              // bytes of parts
	pending   int64              // bytes reserved by writers
	unsure    int                // entries
	evicted   int64              // objects, since Open
	scrubbed  int64              // bytes, since Open
	damaged   int64              // objects, since Open
}

// entry is an object in cas. Its fields are guarded by Cache.mu, but for sum
// and size, which never change.
type entry struct {
	sum      string
	size     int64
	refs     int // open handles
	touched  time.Time
	elem     *list.Element
	gone     bool          // no longer in entries
	unsure   bool          // not hashed since an unclean stop
	checking chan struct{} // closed when the one who hashes it is done; nil: nobody does
}

// Stats is a snapshot of the cache's numbers.
type Stats struct {
	Objects   int   `json:"objects"`
	Bytes     int64 `json:"bytes"`
	Reserved  int64 `json:"reserved_bytes"` // promised to objects being written
	Max       int64 `json:"max_bytes"`      // 0: no limit
	Evicted   int64 `json:"evicted"`        // objects since the start
	Pinned    int64 `json:"pinned_bytes"`   // of Bytes
	Parts     int   `json:"parts"`          // suspended, and not among Objects
	PartBytes int64 `json:"part_bytes"`
	Scrubbed  int64 `json:"scrubbed_bytes"` // since the start
	Damaged   int64 `json:"damaged"`        // objects found damaged since the start
	Unsure    int   `json:"unsure"`         // objects that nobody has hashed since an unclean stop
	Free      int64 `json:"free_bytes"`     // of the file system; -1: not known
	MinFree   int64 `json:"min_free_bytes"` // that stay free
}

// Open opens the cache, reads the names and sizes of what is there, and removes
// what can be of no use any more.
func Open(ctx context.Context, cfg Config) (*Cache, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Free == nil {
		cfg.Free = func() (int64, error) { return freeBytes(cfg.Dir) }
	}
	root, err := prepare(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", cfg.Dir, noSpace(err))
	}
	c := &Cache{
		cfg: cfg, root: root, boot: bootID(), hashing: make(chan struct{}, maxHashing),
		entries: map[string]*entry{}, lru: list.New(), fans: map[string]bool{}, writers: map[string]*Writer{},
	}
	if err := c.load(ctx); err != nil {
		root.Close()
		return nil, fmt.Errorf("open cache %s: %w", cfg.Dir, err)
	}
	return c, nil
}

func (c *Cache) load(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.scan(ctx); err != nil {
		return err
	}
	if err := c.scanParts(ctx); err != nil {
		return err
	}
	if err := c.doubt(ctx); err != nil {
		return err
	}
	for c.cfg.MaxBytes > 0 && c.used+c.partBytes > c.cfg.MaxBytes && c.evictOne(zerolog.Ctx(ctx)) > 0 {
	}
	return nil
}

// prepare makes the directories, durably.
func prepare(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	err = func() error {
		if info, err := root.Lstat(tmpDir); err == nil && !info.IsDir() {
			if err := root.Remove(tmpDir); err != nil {
				return err
			}
		}
		if err := root.MkdirAll(tmpDir, 0o755); err != nil {
			return err
		}
		if err := root.MkdirAll(casDir, 0o755); err != nil {
			return err
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

// scan fills the entries from what lies on the disk, oldest use first. The
// caller holds mu.
func (c *Cache) scan(ctx context.Context) error {
	var found []*entry
	fans, err := fs.ReadDir(c.root.FS(), casDir)
	if err != nil {
		return err
	}
	for _, fan := range fans {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := casDir + "/" + fan.Name()
		if !fan.IsDir() {
			zerolog.Ctx(ctx).Warn().Str("file", dir).Msg("not an object, left alone in the cache's directory")
			continue
		}
		files, err := fs.ReadDir(c.root.FS(), dir)
		if err != nil {
			return err
		}
		c.fans[fan.Name()] = true
		for _, f := range files {
			info, err := f.Info()
			if err != nil || !info.Mode().IsRegular() || !isObject(dir, f.Name()) {
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

// makeFan makes the directory for objects of that hash, durably.
func (c *Cache) makeFan(sum string) error {
	c.mu.Lock()
	there := c.fans[sum[:2]]
	c.mu.Unlock()
	if there {
		return nil
	}
	if err := c.root.Mkdir(casDir+"/"+sum[:2], 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncDir(c.root, casDir); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fans[sum[:2]] = true
	return nil
}

// isObject reports whether a file of that name in that directory is an object.
func isObject(dir, name string) bool {
	return layout.IsSHA256(name) && objectFile(name) == dir+"/"+name
}

// insert adds e as the most recently used. The caller holds mu.
func (c *Cache) insert(e *entry) {
	c.entries[e.sum] = e
	e.elem = c.lru.PushFront(e)
	c.used += e.size
}

// forget is the inverse of insert; the file stays. The caller holds mu.
func (c *Cache) forget(e *entry) {
	e.gone = true
	c.sure(e)
	delete(c.entries, e.sum)
	c.lru.Remove(e.elem)
	c.used -= e.size
}

// sure takes note that nothing is wrong with e. The caller holds mu.
func (c *Cache) sure(e *entry) {
	if e.unsure {
		e.unsure = false
		c.unsure--
	}
}

// discard forgets a damaged object and removes its file. The caller holds mu.
func (c *Cache) discard(log *zerolog.Logger, e *entry, why error) {
	if e.gone {
		return
	}
	c.forget(e)
	c.damaged++
	log.Error().Err(why).Str("sha256", e.sum).Msg("damaged object discarded from the cache")
	if err := c.root.Remove(objectFile(e.sum)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error().Err(err).Str("sha256", e.sum).Msg("cannot remove damaged object")
	}
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
	free, err := c.cfg.Free()
	if err != nil {
		free = -1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	st := Stats{
		Objects: len(c.entries), Bytes: c.used, Reserved: c.pending, Max: c.cfg.MaxBytes, Evicted: c.evicted,
		Parts: len(c.parts), PartBytes: c.partBytes, Scrubbed: c.scrubbed, Damaged: c.damaged, Unsure: c.unsure, Free: free, MinFree: c.cfg.MinFree,
	}
	for sum := range c.pinned {
		if e := c.entries[sum]; e != nil {
			st.Pinned += e.size
		}
	}
	return st
}

// Close releases the directory, and notes that all was well if no writer is in
// use any more. Handles in use go on working; nothing more can be committed.
func (c *Cache) Close() error {
	err := c.markClean()
	if err := errors.Join(err, c.root.Close()); err != nil {
		return fmt.Errorf("close cache %s: %w", c.cfg.Dir, noSpace(err))
	}
	return nil
}

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

// noSpace makes a full disk or a spent quota an ErrNoSpace.
func noSpace(err error) error {
	if DiskFull(err) && !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// DiskFull reports whether err comes of a full disk or a spent quota.
func DiskFull(err error) bool {
	return slices.ContainsFunc(diskFull, func(e error) bool { return errors.Is(err, e) })
}
