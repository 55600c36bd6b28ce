package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Request is a file to fetch, as signed metadata describes it.
type Request struct {
	URLs []string // of the object, the best first
	// Peers is how many of the first URLs are as good as each other: with a block
	// list, blocks are taken from all of them at once (at most 4), most from the
	// fastest. The others are asked while none of them answers. 0 and 1: one
	// mirror at a time.
	Peers  int
	Length int64             // exact, in bytes
	Hashes map[string]string // algorithm → lower hex, at least one of sha256 and sha512; all are checked
	// Blocks is the verified block list: the SHA-256 of each layout.BlockSize
	// bytes, one after the other. nil: there is none.
	Blocks []byte
	// Bases are local files that may hold blocks of this one, the likeliest first.
	// With a block list, blocks that they share are not fetched; without, one is
	// used that is the whole file.
	Bases []Base
	// Dest is where the file goes, in a directory that exists. The partial file
	// and what is known of it lie beside it, as <Dest>.part and <Dest>.part.json.
	Dest string
	// Progress is told how much of the file is there, at most ten times a
	// second and at the end, by one goroutine.
	Progress func(done, total int64)
}

// Base is a file on this machine that may share bytes with a target.
type Base struct {
	Path   string
	SHA256 string // lower-case hex, as it was when it was verified; "" if not known
}

// Result says how a file came.
type Result struct {
	Bytes   int64         // read from the network, also what was thrown away
	Resumed int64         // taken over from an earlier try
	Copied  int64         // taken over from Bases
	Sources []Source      // how each mirror did
	Reused  bool          // Dest was right already
	Delta   bool          // made out of a base and a delta
	Elapsed time.Duration // in all
}

// Source says how one mirror did during a download.
type Source struct {
	URL   string        // as it was given, without user and query
	Bytes int64         // of its answers' bodies
	Took  time.Duration // that they took to come, waits for the limiter not counted
	Gave  bool          // bytes of the file as it is now
	Err   error         // its last failure, nil if it had none
}

// From lists the URLs of the sources that gave bytes of the file.
func (r *Result) From() []string {
	var urls []string
	for _, s := range r.Sources {
		if s.Gave {
			urls = append(urls, s.URL)
		}
	}
	return urls
}

// File fetches a file: verified, synced to the disk, renamed into place, or an
// error and Dest as it was. What an earlier try left is gone on with, after a
// crash or a reboot too.
func (f *Fetcher) File(ctx context.Context, r Request) (Result, error) {
	start := time.Now()
	d := &download{f: f, Request: r}
	err := d.run(ctx)
	d.res.Elapsed = time.Since(start)
	if d.srcs != nil {
		d.res.Sources = d.srcs.told(d.from)
	}
	if err != nil {
		return d.res, fmt.Errorf("fetch file %s: %w", r.Dest, noSpace(err))
	}
	return d.res, nil
}

// download is one call of File.
type download struct {
	Request
	f    *Fetcher
	part *part
	srcs *sources
	res  Result

	from   []*source // that gave bytes of this round
	single bool      // one mirror gives the whole file: the mixture was wrong
	strict bool      // each block is verified before it is used, those on the disk too

	loose int64 // so far the partial file is used, though only part of it is synced

	unverified map[int64]*source // by number: blocks that were not verified as they came

	told     time.Time // when Progress was called last …
	toldDone int64     // … and with what
}

var (
	errRestart  = errors.New("begin again")                           // this round cannot go on
	errStale    = errors.New("the partial file has changed")          // begin again, and forget it
	errMismatch = fmt.Errorf("the whole file is not: %w", ErrCorrupt) // replaced by what differs
)

func (d *download) run(ctx context.Context) error {
	if d.Length < 0 {
		return fmt.Errorf("%w: the signed length is negative", ErrCorrupt)
	}
	if _, err := newHashes(d.Hashes); err != nil {
		return err
	}
	if d.Blocks != nil && int64(len(d.Blocks)) != layout.BlockCount(d.Length)*blockHashLen {
		return fmt.Errorf("%w: a block list of %d bytes does not fit a file of %d", ErrCorrupt, len(d.Blocks), d.Length)
	}
	p, err := openPart(d.Dest)
	if err != nil {
		return err
	}
	d.part = p
	defer p.close()
	if ok, err := d.reuse(ctx); ok || err != nil {
		return err
	}
	if err := p.open(); err != nil {
		return err
	}
	if err := d.checkSpace(); err != nil {
		return err
	}
	d.srcs = d.f.opt.sources(d.URLs)
	if done, err := d.copyWhole(ctx); done || err != nil {
		return err
	}
	return d.rounds(ctx)
}

// reuse reports whether Dest is the file already. Then nothing is fetched.
func (d *download) reuse(ctx context.Context) (bool, error) {
	info, err := d.part.dir.Lstat(d.part.name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.IsDir() {
		return false, errors.New("it is a directory")
	}
	if !info.Mode().IsRegular() || info.Size() != d.Length {
		return false, nil
	}
	f, err := d.part.dir.Open(d.part.name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h, err := newHashes(d.Hashes)
	if err != nil {
		return false, err
	}
	if err := hashPrefix(ctx, f, d.Length, h); err != nil {
		if cause := over(ctx); cause != nil {
			return false, cause
		}
		return false, nil // cannot be read: fetch it
	}
	if h.check() != nil {
		return false, nil
	}
	d.res.Reused = true
	d.part.remove()
	d.tell(d.Length, true)
	return true, nil
}

// hashPrefix hashes the first n bytes.
func hashPrefix(ctx context.Context, r io.ReaderAt, n int64, h *hashes) error {
	buf := make([]byte, layout.BlockSize)
	for off := int64(0); off < n; {
		if cause := over(ctx); cause != nil {
			return cause
		}
		b := buf[:min(int64(len(buf)), n-off)]
		if m, err := r.ReadAt(b, off); m < len(b) {
			return fmt.Errorf("read partial file: %w", err)
		}
		h.write(b)
		off += int64(len(b))
	}
	return nil
}

// spareSpace is left free for the rest of the system.
const spareSpace = 16 << 20

func (d *download) checkSpace() error {
	info, err := d.part.file.Stat()
	if err != nil {
		return err
	}
	return d.checkSpaceFor(max(0, d.Length-info.Size()))
}

// checkSpaceFor looks whether so many bytes more fit on the disk. What is there
// of the file is given up only if it may be what fills the disk.
func (d *download) checkSpaceFor(need int64) error {
	free, ok := freeSpace(d.part.dir.Name())
	if !ok || need <= 0 {
		return nil // not known here; a write will tell
	}
	if free >= spareSpace && need <= free-spareSpace {
		return nil
	}
	if info, err := d.part.file.Stat(); err != nil || free < spareSpace || info.Size() == 0 {
		d.part.remove()
	}
	return fmt.Errorf("%w: %d MiB needed, %d MiB free, of which %d stay free",
		ErrNoSpace, (need>>20)+1, free>>20, spareSpace>>20)
}

// rounds tries until the file is there. A round goes through the file once; the
// next one begins at 0 with what was learnt.
func (d *download) rounds(ctx context.Context) error {
	log := zerolog.Ctx(ctx)
	for left := 2 + len(d.URLs)*(1+d.f.opt.Attempts); ; left-- {
		d.from = nil
		err := d.round(ctx)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errMismatch):
			if werr := d.blame(err); werr != nil {
				d.part.remove()
				return werr
			}
		case errors.Is(err, errStale), errors.Is(err, errRestart):
		case errors.Is(err, ErrNoSpace): // found before a byte was written
			return err
		case errors.Is(err, ErrCorrupt) && d.Blocks == nil, isNoSpace(err):
			d.part.remove()
			return err
		default:
			return err
		}
		if left == 0 {
			d.part.remove()
			return fmt.Errorf("%w: no mirror gives the whole file", tuf.ErrOffline)
		}
		log.Warn().Str("file", d.Dest).AnErr("why", err).Msg("download begins again")
		if err := d.part.reset(d.Blocks != nil); err != nil {
			return err
		}
	}
}

// blame decides what follows from a whole file with wrong hashes: an error if
// another round is pointless.
func (d *download) blame(err error) error {
	switch {
	case d.Blocks != nil && !d.strict:
		d.strict = true // finds the bad blocks, and who sent them
	case d.Blocks != nil:
		return fmt.Errorf("%w; each block is as signed, so the block list and the hash contradict each other", err)
	case d.res.Resumed > 0: // it may have been the part on disk
	case len(d.from) == 1:
		d.srcs.failed(d.from[0], err)
	default:
		d.single = true
	}
	return nil
}

// tell reports progress.
func (d *download) tell(done int64, always bool) {
	if d.Progress == nil {
		return
	}
	now := time.Now()
	if always && (d.told.IsZero() || d.toldDone != done) || now.Sub(d.told) >= 100*time.Millisecond {
		d.told, d.toldDone = now, done
		d.Progress(done, d.Length)
	}
}

// finish gives the verified file its name.
func (d *download) finish(h *hashes) error {
	if err := h.check(); err != nil {
		return errors.Join(errMismatch, err)
	}
	if err := d.part.publish(d.Length); err != nil {
		return err
	}
	d.tell(d.Length, true)
	return nil
}

// noSpace makes the system's error for a full disk ours.
func noSpace(err error) error {
	if isNoSpace(err) && !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

var _ io.ReaderAt = (*os.File)(nil)
