package cache

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	partSuffix     = ".part"
	progressSuffix = ".progress"
	maxProgress    = 4 << 10 // bytes of a progress file
)

// Part is an object that has come in part, and waits for a Create to go on.
type Part struct {
	SHA256  string
	Size    int64 // of the whole, in bytes
	Written int64 // bytes that there are, at most
}

// part is a suspended Part. Its fields are guarded by Cache.mu.
type part struct {
	sum     string
	size    int64
	have    int64 // bytes of the file
	synced  int64 // bytes that are on the disk for sure
	trusted int64 // bytes that were written for sure; what follows may be anything
	at      time.Time
}

func (p *part) base() string { return partBase(p.sum, p.size) }

// partBase is the name of a part's files, but for the suffix.
func partBase(sum string, size int64) string {
	return tmpDir + "/" + sum + "-" + strconv.FormatInt(size, 10)
}

// parsePart is the inverse of partBase, without the directory.
func parsePart(name string) (sum string, size int64, ok bool) {
	sum, n, _ := strings.Cut(name, "-")
	size, err := strconv.ParseInt(n, 10, 64)
	ok = err == nil && layout.IsSHA256(sum) && size > 0 && partBase(sum, size) == tmpDir+"/"+name
	return sum, size, ok
}

// progress is what a .progress file holds. It is written after the bytes that
// it speaks of were synced. Beyond them a file can be believed as long as the
// machine has not stopped: then only the process was, between two writes.
type progress struct {
	Synced int64  `json:"synced"` // bytes from the start
	Boot   string `json:"boot,omitempty"`
}

// parseProgress reads a progress file of an object of that size. One that makes
// no sense says nothing.
func parseProgress(data []byte, size int64) progress {
	var p progress
	if json.Unmarshal(data, &p) != nil || p.Synced < 0 || p.Synced > size {
		return progress{}
	}
	return p
}

// trust is how many of have bytes in the file were written by somebody.
func (p progress) trust(have int64, boot string) int64 {
	if p.Boot != "" && p.Boot == boot {
		return have
	}
	return min(p.Synced, have)
}

// bootID is another one each time the machine starts; empty where there is no
// such thing.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(data) > 100 {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// writeProgress may say sync false if nothing is promised that was not before.
func (c *Cache) writeProgress(base string, p progress, sync bool) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return writeFile(c.root, base+progressSuffix, sync, func(w *bufio.Writer) { _, _ = w.Write(data) })
}

func (c *Cache) readProgress(base string, size int64) progress {
	f, err := c.root.Open(base + progressSuffix)
	if err != nil {
		return progress{}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxProgress))
	if err != nil {
		return progress{}
	}
	return parseProgress(data, size)
}

// scanParts finds the parts of earlier processes, and removes all else from
// tmp. The caller holds mu.
func (c *Cache) scanParts(ctx context.Context) error {
	files, err := fs.ReadDir(c.root.FS(), tmpDir)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, f := range files {
		if p := c.findPart(f); p != nil {
			c.parts = append(c.parts, p)
			c.partBytes += p.have
			known[p.base()] = true
		}
	}
	slices.SortFunc(c.parts, func(a, b *part) int { return cmp.Or(a.at.Compare(b.at), strings.Compare(a.sum, b.sum)) })
	for _, f := range files {
		name := tmpDir + "/" + f.Name()
		base, isPart := strings.CutSuffix(name, partSuffix)
		base, isProgress := strings.CutSuffix(base, progressSuffix)
		if isPart != isProgress && known[base] {
			continue
		}
		if err := c.root.RemoveAll(name); err != nil {
			zerolog.Ctx(ctx).Warn().Err(err).Str("file", name).Msg("cannot remove what was left of an earlier run")
		}
	}
	return nil
}

// findPart returns nil if f is not a part that can be gone on with.
func (c *Cache) findPart(f fs.DirEntry) *part {
	name, ok := strings.CutSuffix(f.Name(), partSuffix)
	if !ok {
		return nil
	}
	sum, size, ok := parsePart(name)
	info, err := f.Info()
	if !ok || err != nil || !info.Mode().IsRegular() || info.Size() == 0 || info.Size() > size {
		return nil
	}
	p := &part{sum: sum, size: size, have: info.Size(), at: info.ModTime()}
	pr := c.readProgress(p.base(), size)
	p.synced, p.trusted = min(pr.Synced, p.have), pr.trust(p.have, c.boot)
	return p
}

// removePart removes a suspended part and reports whether its bytes are gone.
// The caller holds mu.
func (c *Cache) removePart(log *zerolog.Logger, p *part) bool {
	if err := c.removeFiles(p.base()); err != nil {
		log.Error().Err(err).Str("sha256", p.sum).Msg("cannot remove suspended part")
		return false
	}
	c.takePart(p.base())
	return true
}

// takePart takes a part from the list, and returns nil if there is none. The
// caller holds mu.
func (c *Cache) takePart(base string) *part {
	for i, p := range c.parts {
		if p.base() == base {
			c.parts = slices.Delete(c.parts, i, i+1)
			c.partBytes -= p.have
			return p
		}
	}
	return nil
}

// addPart is the inverse of takePart. The caller holds mu.
func (c *Cache) addPart(p *part) {
	c.parts = append(c.parts, p)
	c.partBytes += p.have
}

// removeFiles removes a part's files, the progress first: without the bytes it
// would speak of others.
func (c *Cache) removeFiles(base string) error {
	for _, suffix := range []string{progressSuffix, partSuffix} {
		if err := c.root.Remove(base + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove part: %w", err)
		}
	}
	return nil
}

// Parts lists the suspended parts, the oldest first.
func (c *Cache) Parts() []Part {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Part, 0, len(c.parts))
	for _, p := range c.parts {
		out = append(out, Part{p.sum, p.size, p.have})
	}
	return out
}

// DropParts removes the suspended parts that keep does not want to be kept,
// because nobody will ask for them any more.
func (c *Cache) DropParts(keep func(Part) bool) {
	log := zerolog.Nop()
	for _, p := range c.Parts() {
		if keep(p) {
			continue
		}
		c.mu.Lock()
		for _, q := range c.parts { // unless somebody has gone on with it by now
			if q.sum == p.SHA256 && q.size == p.Size {
				c.removePart(&log, q)
				break
			}
		}
		c.mu.Unlock()
	}
}
