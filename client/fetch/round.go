package fetch

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	ring = 6 // chunks in flight: what a download holds in memory, in layout.BlockSize

	// A checkpoint syncs what is there and writes down how far that is. It runs
	// beside the download, one at a time.
	checkpointBytes = 64 << 20
	checkpointEvery = 5 * time.Second
)

// chunk is up to layout.BlockSize bytes of the file on their way from the
// network to the disk.
type chunk struct {
	off    int64
	data   []byte
	onDisk bool              // read from there, so not to be written
	states map[string][]byte // hash states after it, if a checkpoint is due
}

// round goes through the file once: read → hash → write, each a goroutine, so
// that on two cores the network, the hashing and the disk overlap. The channels
// hold a whole ring each, so only the reader ever waits, for a free buffer.
func (d *download) round(ctx context.Context) error {
	h, err := newHashes(d.Hashes)
	if err != nil {
		return err
	}
	start := d.part.load(&d.Request, h)
	d.res.Resumed = start

	g, gctx := errgroup.WithContext(ctx)
	if start > 0 {
		want := h.state()
		g.Go(func() error { return d.audit(gctx, start, want) })
	}
	free := make(chan []byte, ring)
	for range int(min(ring, max(1, layout.BlockCount(d.Length-start)))) {
		free <- nil // made on first use: a small file needs few
	}
	toHash, toDisk := make(chan chunk, ring), make(chan chunk, ring)
	due := make(chan chunk, 1) // for the checkpoint
	var saving atomic.Bool     // a checkpoint is on its way

	// An error of the reader does not cancel the rest: what came is kept.
	var readErr error
	g.Go(func() error {
		defer close(toHash)
		rd := &reader{download: d, free: free, out: toHash, off: start}
		readErr = rd.run(gctx)
		return nil
	})
	g.Go(func() error {
		defer close(toDisk)
		saved, last := start, time.Now()
		for c := range toHash {
			h.write(c.data)
			if end := c.off + int64(len(c.data)); end-saved >= checkpointBytes || time.Since(last) >= checkpointEvery {
				if saving.CompareAndSwap(false, true) {
					c.states = h.state()
					saved, last = end, time.Now()
				}
			}
			toDisk <- c
		}
		return nil
	})
	written := start
	g.Go(func() error {
		defer close(due)
		for c := range toDisk {
			if err := d.write(c); err != nil {
				return err
			}
			written = c.off + int64(len(c.data))
			if c.states != nil {
				due <- chunk{off: written, states: c.states}
			}
			free <- c.data[:0]
		}
		return nil
	})
	g.Go(func() error {
		for c := range due {
			if err := d.part.save(&d.Request, c.off, c.states); err != nil {
				return err
			}
			saving.Store(false)
		}
		return nil
	})
	err = g.Wait()
	if err == nil && readErr == nil {
		return d.finish(h)
	}
	if err != nil {
		return err
	}
	if written > start && !discard(readErr) {
		if err := d.part.save(&d.Request, written, h.state()); err != nil {
			return err
		}
	}
	return readErr
}

// writePiece is how much is written at once. Larger pieces make the kernel look
// for large fresh pages, which costs twice the time of filling them.
const writePiece = 256 << 10

func (d *download) write(c chunk) error {
	if c.onDisk {
		return nil
	}
	off := c.off
	for p := range slices.Chunk(c.data, writePiece) {
		n, err := d.part.file.WriteAt(p, off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// audit reads the prefix that this round builds on again, beside the download,
// and compares: the disk, or somebody, may have changed it since. So a resumed
// file is vouched for by the whole hash like any other, and nobody waits.
func (d *download) audit(ctx context.Context, n int64, want map[string][]byte) error {
	h, err := newHashes(d.Hashes)
	if err != nil {
		return err
	}
	if err := hashPrefix(ctx, d.part.file, n, h); err != nil {
		if cause := over(ctx); cause != nil {
			return cause
		}
		return errStale
	}
	if !maps.EqualFunc(h.state(), want, func(a, b []byte) bool { return string(a) == string(b) }) {
		return errStale
	}
	return nil
}
