package fetch

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/patchkeep/patchkeep/client/internal/boot"
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
// network to the disk and through the hash.
type chunk struct {
	off    int64
	data   []byte
	onDisk bool // read from there, so not to be written
}

// round goes through the file once, in order and from one mirror at a time, or
// each block on a way of its own.
func (d *download) round(ctx context.Context) error {
	h, err := newHashes(d.Hashes)
	if err != nil {
		return err
	}
	pr := d.part.load(&d.Request, h)
	if d.spreads(pr) {
		return d.spread(ctx, pr, h)
	}
	return d.stream(ctx, pr, h)
}

// stream is a round in order: read → write → hash, each a goroutine, so that on
// two cores the network, the disk and the hashing overlap. The channels hold a
// whole ring each, so only the reader ever waits, for a free buffer. It never
// has more than two blocks that are not written yet, which is what a killed
// process loses.
func (d *download) stream(ctx context.Context, pr progress, h *hashes) error {
	start := pr.Verified
	var err error
	d.loose = start
	if d.Blocks == nil {
		if d.loose, err = d.part.loose(&d.Request, pr); err != nil {
			return err
		}
	}
	d.res.Resumed = start
	note := func(verified int64, states map[string][]byte) error {
		pr := progress{Verified: verified, States: states}
		if d.Blocks == nil {
			pr.Boot, _ = boot.ID()
		}
		return d.part.save(&d.Request, pr)
	}

	g, gctx := errgroup.WithContext(ctx)
	if start > 0 {
		want := h.state()
		g.Go(func() error { return d.audit(gctx, start, want) })
	}
	free := make(chan []byte, ring)
	for range int(min(ring, max(1, layout.BlockCount(d.Length-start)))) {
		free <- nil // made on first use: a small file needs few
	}
	unwritten := make(chan struct{}, 2)
	toDisk, toHash := make(chan chunk, ring), make(chan chunk, ring)
	type checkpoint struct {
		at     int64
		states map[string][]byte
	}
	due := make(chan checkpoint, 1)
	var saving atomic.Bool // a checkpoint is on its way

	// An error of the reader does not cancel the rest: what came is kept.
	var readErr error
	g.Go(func() error {
		defer close(toDisk)
		rd := &reader{download: d, free: free, unwritten: unwritten, out: toDisk, off: start}
		readErr = rd.run(gctx)
		return nil
	})
	g.Go(func() error {
		defer close(toHash)
		for c := range toDisk {
			if !c.onDisk {
				if err := d.write(c.data, c.off); err != nil {
					return err
				}
			}
			<-unwritten
			toHash <- c
		}
		return nil
	})
	done := start
	g.Go(func() error {
		defer close(due)
		saved, last := start, time.Now()
		for c := range toHash {
			h.write(c.data)
			done = c.off + int64(len(c.data))
			if done-saved >= checkpointBytes || time.Since(last) >= checkpointEvery {
				if saving.CompareAndSwap(false, true) {
					due <- checkpoint{done, h.state()}
					saved, last = done, time.Now()
				}
			}
			free <- c.data[:0]
		}
		return nil
	})
	g.Go(func() error {
		for c := range due {
			if err := note(c.at, c.states); err != nil {
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
	if done > start && !discard(readErr) {
		if err := note(done, h.state()); err != nil {
			return err
		}
	}
	return readErr
}

// writePiece is how much is written at once. Larger pieces make the kernel look
// for large fresh pages, which costs twice the time of filling them.
const writePiece = 256 << 10

func (d *download) write(data []byte, off int64) error {
	for p := range slices.Chunk(data, writePiece) {
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
