package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"slices"
	"sort"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	maxBases     = 4
	maxBaseTimes = 2  // of the file's length are looked at in a base
	basePatience = 32 // blocks in a row that are of no use, before the mirrors are asked beside
)

// copyBases takes blocks from local files: each block of a base is hashed once
// and goes wherever the block list has its hash. What was hashed is what is
// written, whatever becomes of the base meanwhile. It closes ready as soon as
// the mirrors should not wait any longer.
func (s *spread) copyBases(ctx context.Context, ready chan<- struct{}) error {
	wait := true
	begin := func() {
		if wait {
			wait = false
			close(ready)
		}
	}
	defer begin()
	if len(s.Bases) == 0 || s.missing() == 0 {
		return nil
	}
	idx := s.index()
	buf := make([]byte, layout.BlockSize)
	for _, b := range s.Bases[:min(len(s.Bases), maxBases)] {
		useless := 0
		err := eachBlock(ctx, b.Path, maxBaseTimes*s.Length, buf, func(data []byte) error {
			n, err := s.takeCopies(idx, data)
			if n > 0 {
				useless = 0
			} else if useless++; useless >= basePatience {
				begin()
			}
			if err == nil && s.missing() == 0 {
				err = io.EOF
			}
			return err
		})
		if local, ok := errors.AsType[*localError](err); ok {
			return local.error
		}
		if err != nil && ctx.Err() == nil && err != io.EOF {
			zerolog.Ctx(ctx).Debug().Str("base", b.Path).Err(err).Msg("base not used")
		}
		if ctx.Err() != nil || err == io.EOF {
			break
		}
	}
	return nil
}

// index gives the numbers of all blocks in the order of their hashes.
func (s *spread) index() []int32 {
	idx := make([]int32, s.board.count)
	for i := range idx {
		idx[i] = int32(i)
	}
	slices.SortFunc(idx, func(a, b int32) int { return bytes.Compare(s.listHash(int64(a)), s.listHash(int64(b))) })
	return idx
}

// takeCopies delivers a block of a base to all places where it belongs, and
// says how many those are.
func (s *spread) takeCopies(idx []int32, data []byte) (n int, err error) {
	sum := sha256.Sum256(data)
	at := sort.Search(len(idx), func(i int) bool { return bytes.Compare(s.listHash(int64(idx[i])), sum[:]) >= 0 })
	for ; at < len(idx) && bytes.Equal(s.listHash(int64(idx[at])), sum[:]); at++ {
		i := int64(idx[at])
		if s.board.size(i) != len(data) {
			continue
		}
		n++
		first, err := s.deliver(i, data)
		if err != nil {
			return n, err
		}
		if first {
			s.mu.Lock()
			s.res.Copied += int64(len(data))
			s.mu.Unlock()
		}
	}
	return n, nil
}

// eachBlock reads a regular file of this machine block by block, up to a limit.
func eachBlock(ctx context.Context, path string, limit int64, buf []byte, do func([]byte) error) error {
	f, err := openRegular(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for off := int64(0); off < limit; off += int64(len(buf)) {
		if cause := over(ctx); cause != nil {
			return cause
		}
		n, err := io.ReadFull(f, buf)
		if n == 0 || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		if err := do(buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// openRegular opens a file for reading if it is a regular one itself. It never
// waits, as the opening of a pipe would.
func openRegular(path string) (*os.File, error) {
	was, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !was.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return nil, err
	}
	is, err := f.Stat()
	if err == nil && !os.SameFile(was, is) {
		err = errors.New("it was exchanged")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// listed reports whether a block is the one that the block list names.
func (d *download) listed(i int64, data []byte) bool {
	sum := sha256.Sum256(data)
	return bytes.Equal(sum[:], d.listHash(i))
}

func (d *download) listHash(i int64) []byte { return d.Blocks[i*blockHashLen : (i+1)*blockHashLen] }

// copyWhole takes the file from a base that is said to be it, where no block
// list tells which parts of others are of use.
func (d *download) copyWhole(ctx context.Context) (bool, error) {
	for _, b := range d.Bases {
		if d.Blocks != nil || b.SHA256 == "" || b.SHA256 != d.Hashes["sha256"] {
			continue
		}
		h, err := newHashes(d.Hashes)
		if err != nil {
			return false, err
		}
		buf, off := make([]byte, layout.BlockSize), int64(0)
		err = eachBlock(ctx, b.Path, d.Length+1, buf, func(data []byte) error { h.write(data); return nil })
		if err == nil {
			err = h.check() // before anything of an earlier try is overwritten
		}
		if err == nil {
			if h, err = newHashes(d.Hashes); err != nil {
				return false, err
			}
			err = eachBlock(ctx, b.Path, d.Length, buf, func(data []byte) error {
				h.write(data)
				werr := d.write(data, off)
				off += int64(len(data))
				if werr != nil {
					return &localError{werr}
				}
				return nil
			})
		}
		if local, ok := errors.AsType[*localError](err); ok {
			if isNoSpace(err) {
				d.part.remove()
			}
			return false, local.error
		}
		if err == nil {
			err = d.finish(h)
		}
		if cause := over(ctx); cause != nil {
			return false, cause
		}
		if err == nil {
			d.res.Copied = d.Length
			return true, nil
		}
		zerolog.Ctx(ctx).Debug().Str("base", b.Path).Err(err).Msg("base not used")
		if off > 0 {
			if err := d.part.reset(false); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}
