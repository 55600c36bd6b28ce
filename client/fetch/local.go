package fetch

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
)

// Make makes a file out of what is on this machine, with the same guarantees as
// File: write gives its bytes, and only if they have the length and the hashes of
// r, and are synced, the file gets its name. Otherwise Dest is as it was, and
// nothing is left but what File keeps of an earlier try. It asks no mirror.
func (f *Fetcher) Make(ctx context.Context, r Request, write func(ctx context.Context, w io.Writer) error) (Result, error) {
	start := time.Now()
	d := &download{f: f, Request: r}
	err := d.make(ctx, write)
	d.res.Elapsed = time.Since(start)
	if err != nil {
		return d.res, fmt.Errorf("make file %s: %w", r.Dest, noSpace(err))
	}
	return d.res, nil
}

func (d *download) make(ctx context.Context, write func(context.Context, io.Writer) error) error {
	h, err := newHashes(d.Hashes)
	if err != nil {
		return err
	}
	p, err := openPart(d.Dest)
	if err != nil {
		return err
	}
	p.base += ".made" // beside what File keeps
	d.part = p
	defer p.close()
	if err := p.open(); err != nil {
		return err
	}
	if err := d.makeIn(ctx, h, write); err != nil {
		p.remove()
		return err
	}
	return nil
}

func (d *download) makeIn(ctx context.Context, h *hashes, write func(context.Context, io.Writer) error) error {
	if err := d.part.reset(false); err != nil { // what a killed process left
		return err
	}
	if err := d.checkSpace(); err != nil {
		return err
	}
	if err := write(ctx, &made{d, h, 0}); err != nil {
		return err
	}
	return d.finish(h)
}

// made hashes a file on its way to the disk.
type made struct {
	d    *download
	h    *hashes
	done int64
}

func (m *made) Write(p []byte) (int, error) {
	if int64(len(p)) > m.d.Length-m.done {
		return 0, fmt.Errorf("%w: it has more than the signed %d bytes", ErrCorrupt, m.d.Length)
	}
	n, err := m.d.part.file.WriteAt(p, m.done)
	m.h.write(p[:n])
	m.done += int64(n)
	return n, err
}

// Kept is how many bytes an earlier File of r has left to go on with.
func Kept(r Request) int64 {
	p, err := openPart(r.Dest)
	if err != nil {
		return 0
	}
	defer p.close()
	f, err := p.dir.Open(p.note())
	if err != nil {
		return 0
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxProgressFile))
	if err != nil {
		return 0
	}
	pr, _ := parseProgress(data, &r)
	kept := pr.Verified
	for i := range layout.BlockCount(r.Length) {
		if pr.Blocks != nil && pr.Blocks.has(i) && i*layout.BlockSize >= pr.Verified {
			kept += min(layout.BlockSize, r.Length-i*layout.BlockSize)
		}
	}
	return kept
}

// Forget removes what File or Make may have left of an unfinished dest, unless
// somebody is at it.
func Forget(dest string) {
	p, err := openPart(dest)
	if err != nil {
		return
	}
	for _, base := range []string{p.base, p.base + ".made"} {
		part := &part{dir: p.dir, name: p.name, base: base}
		if _, err := p.dir.Lstat(part.data()); err == nil && part.open() == nil {
			part.remove()
			part.file.Close()
		}
	}
	p.dir.Close()
}

// maxBeside is what a name beside another one may have, in bytes, so that
// partial files fit beside it too.
const maxBeside = maxName - len(".made.part.json.new")

// Beside is a place for a file that goes with dest for a while: its name and the
// ending, or a hash if that is too long.
func Beside(dest, ending string) string {
	dir, name := filepath.Split(dest)
	if len(name)+len(ending) > maxBeside {
		name = hashedName(name)
	}
	return dir + name + ending
}
