package cache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	// cleanHead begins cas/clean. What follows are the hashes of the objects
	// that had not been looked at since an earlier unclean stop, one a line, and
	// cleanFoot.
	cleanHead = "closed 1"
	cleanFoot = "end"

	maxUnsure = 1 << 22 // lines read
)

// doubt takes note of the objects that have to be hashed before they are used:
// all of them, unless the last process closed the cache. The caller holds mu.
func (c *Cache) doubt(ctx context.Context) error {
	unsure, clean := c.readClean()
	if clean {
		for _, sum := range unsure {
			if e := c.entries[sum]; e != nil && !e.unsure {
				e.unsure = true
				c.unsure++
			}
		}
	} else {
		for _, e := range c.entries {
			e.unsure = true
		}
		if c.unsure = len(c.entries); c.unsure > 0 {
			zerolog.Ctx(ctx).Warn().Int("objects", c.unsure).Msg("the last run did not end cleanly: objects are hashed again before their first use")
		}
	}
	if err := c.root.Remove(cleanFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(c.root, "cas")
}

// readClean reports whether the last process closed the cache, and which
// objects it was not sure of.
func (c *Cache) readClean() (unsure []string, clean bool) {
	f, err := c.root.Open(cleanFile)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	if !lines.Scan() || lines.Text() != cleanHead {
		return nil, false
	}
	for lines.Scan() {
		switch sum := lines.Text(); {
		case sum == cleanFoot:
			return unsure, true
		case len(unsure) >= maxUnsure, !layout.IsSHA256(sum):
			return nil, false
		default:
			unsure = append(unsure, sum)
		}
	}
	return nil, false
}

// markClean is the end of a run in which all that was written was written to
// its end.
func (c *Cache) markClean() error {
	c.mu.Lock()
	var unsure []string
	for sum, e := range c.entries {
		if e.unsure {
			unsure = append(unsure, sum)
		}
	}
	writing := len(c.writers)
	c.mu.Unlock()
	if writing > 0 {
		return nil
	}
	slices.Sort(unsure)
	err := writeFile(c.root, cleanFile, true, func(w *bufio.Writer) {
		fmt.Fprintln(w, cleanHead)
		for _, sum := range unsure {
			fmt.Fprintln(w, sum)
		}
		fmt.Fprintln(w, cleanFoot)
	})
	if err != nil {
		return err
	}
	return syncDir(c.root, "cas")
}

// writeFile replaces a small file at once. With sync it is the old or the new
// one after a power cut too; the caller syncs the directory if it has to be the
// new one. What fill's writes fail with is told at the end.
func writeFile(root *os.Root, name string, sync bool, fill func(w *bufio.Writer)) error {
	tmp := name + ".new"
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	fill(w)
	err = w.Flush()
	if sync {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(tmp, name)
	}
	if err != nil {
		root.Remove(tmp)
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
