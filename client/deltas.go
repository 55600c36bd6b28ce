package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/delta"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	// maxBases is how many bases a delta is looked for.
	maxBases = 16
	// maxDeltaMemory is what applying a delta may say that it takes, in bytes.
	maxDeltaMemory = 64 << 20
)

// usable is a delta that makes a target out of a base that is here.
type usable struct {
	target *tuf.Target // the delta's
	base   fetch.Base
	length int64 // of the base
}

// viaDelta brings a target to dest by way of a delta and what is here already.
// done is false if there is none that saves bytes, or if anything about it went
// wrong: then the whole file is to be fetched, and the log says why. Only what
// would stop that too is an error. The delta is as little trusted as a mirror:
// what counts is the target's own length and hashes.
func (c *Client) viaDelta(ctx context.Context, t *tuf.Target, dest string, o DownloadOptions) (res fetch.Result, done bool, err error) {
	u, err := c.bestDelta(ctx, t, o.Bases)
	if err != nil || u == nil {
		return res, false, err
	}
	if left := t.Length - fetch.Kept(fetch.Request{Dest: dest, Length: t.Length, Hashes: t.Hashes}); u.target.Length >= left {
		return res, false, nil
	}
	res, err = c.applyDelta(ctx, t, u, dest, o.Progress)
	switch {
	case err == nil:
		return res, true, nil
	case ctx.Err() != nil, errors.Is(err, fetch.ErrBusy):
		return res, false, err
	}
	if !errors.Is(err, tuf.ErrOffline) { // what there is of it is of no use another time
		forgetDelta(dest)
	}
	zerolog.Ctx(ctx).Warn().Str("target", t.Path).Str("delta", u.target.Path).Str("base", u.base.Path).Err(err).
		Msg("delta not used: the whole file is fetched")
	return res, false, nil
}

// bestDelta is the smallest delta of a target that can be used; nil if there is
// none. Only the caller's own end is an error. It asks the mirrors for nothing:
// the role that signed the target is at hand.
func (c *Client) bestDelta(ctx context.Context, t *tuf.Target, bases []fetch.Base) (best *usable, err error) {
	if _, _, _, _, ok := layout.SplitPatchPath(t.Path); !ok || t.SHA256 == "" {
		return nil, nil
	}
	for _, b := range bases[:min(len(bases), maxBases)] {
		u, err := c.deltaFrom(ctx, t, b)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, layout.ErrBadName): // the usual case
		case err != nil:
			zerolog.Ctx(ctx).Warn().Str("target", t.Path).Str("base", b.Path).Err(err).Msg("delta not used")
		case u.target.Length < t.Length && (best == nil || u.target.Length < best.target.Length):
			best = u
		}
	}
	return best, nil
}

// deltaFrom finds the delta of a target from a base. None is fs.ErrNotExist.
func (c *Client) deltaFrom(ctx context.Context, t *tuf.Target, b fetch.Base) (*usable, error) {
	info, err := os.Stat(b.Path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() == 0 || info.Size() > delta.MaxFile {
		return nil, fs.ErrNotExist
	}
	if b.SHA256 == "" {
		if b.SHA256, err = hashFile(ctx, b.Path); err != nil {
			return nil, err
		}
	}
	path, err := layout.DeltaPath(t.Path, b.SHA256)
	if err != nil {
		return nil, err
	}
	dt, err := c.Target(ctx, path)
	if err != nil {
		return nil, err
	}
	if dt.Role != t.Role {
		return nil, fmt.Errorf("%w: signed by %s, the file by %s", tuf.ErrNotTrusted, dt.Role, t.Role)
	}
	i, err := delta.FromCustom(dt.Custom)
	if err != nil {
		return nil, err
	}
	if err := i.Fits(path, t.Path, t.SHA256, t.Length); err != nil {
		return nil, err
	}
	switch {
	case i.BaseSHA256 != b.SHA256: // it only begins like it
		return nil, fs.ErrNotExist
	case i.BaseLength != info.Size():
		return nil, fmt.Errorf("%w: the base has %d bytes and not %d", delta.ErrBad, info.Size(), i.BaseLength)
	case i.Memory > maxDeltaMemory:
		return nil, fmt.Errorf("%w: it takes %d bytes of memory, at most %d are allowed", delta.ErrBad, i.Memory, maxDeltaMemory)
	}
	return &usable{dt, b, info.Size()}, nil
}

func hashFile(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	for ctx.Err() == nil {
		if _, err := io.CopyN(h, f, 4<<20); errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		} else if err != nil {
			return "", err
		}
	}
	return "", ctx.Err()
}

// deltaDest is where a delta lies while it is fetched and applied.
func deltaDest(dest string) string { return fetch.Beside(dest, ".delta") }

// forgetDelta removes what an earlier try may have left of a delta.
func forgetDelta(dest string) {
	_ = os.Remove(deltaDest(dest))
	fetch.Forget(deltaDest(dest))
}

func (c *Client) applyDelta(ctx context.Context, t *tuf.Target, u *usable, dest string, progress func(done, total int64)) (fetch.Result, error) {
	req := fetch.Request{Length: u.target.Length, Hashes: u.target.Hashes, Dest: deltaDest(dest)}
	if progress != nil { // of the file: the delta stands for all of it
		req.Progress = func(done, total int64) { progress(int64(float64(done)/float64(total)*float64(t.Length)), t.Length) }
	}
	var err error
	if req.Blocks, err = c.blocks(ctx, u.target); err != nil {
		return fetch.Result{}, err
	}
	res, err := c.file(ctx, u.target, req)
	res.Reused = false
	if err != nil {
		return res, err
	}
	base, err := os.Open(u.base.Path)
	if err != nil {
		return res, err
	}
	defer base.Close()
	d, err := os.Open(req.Dest)
	if err != nil {
		return res, err
	}
	defer d.Close()
	made, err := c.fetch.Make(ctx, fetch.Request{Length: t.Length, Hashes: t.Hashes, Dest: dest}, func(ctx context.Context, w io.Writer) error {
		var err error
		res.Copied, err = delta.Apply(ctx, w, base, u.length, d, t.Length)
		return err
	})
	res.Elapsed += made.Elapsed
	res.Delta = err == nil
	return res, err
}
