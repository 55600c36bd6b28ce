package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// DownloadOptions go with Download. The zero value takes everything from the
// mirrors and tells nobody.
type DownloadOptions struct {
	// Progress is told how much of the file is there: see fetch.Request.
	Progress func(done, total int64)
	// Bases are files on this machine that the target may share bytes with, such
	// as the version installed before, the likeliest first. What is taken from
	// them is verified like what comes from a mirror. If a delta from one of them
	// is published, it is fetched in place of the file.
	Bases []fetch.Base
}

// Download brings a target to dest: see fetch.File. With a base, and a delta from
// it, little is fetched; whatever is wrong with either, the whole file is then.
func (c *Client) Download(ctx context.Context, targetPath, dest string, o DownloadOptions) (*tuf.Target, fetch.Result, error) {
	t, err := c.Target(ctx, targetPath)
	if err != nil {
		return nil, fetch.Result{}, err
	}
	var res fetch.Result
	var done bool
	isThere := present(dest, t.Length)
	if !isThere {
		if res, done, err = c.viaDelta(ctx, t, dest, o); err != nil {
			return nil, res, err
		}
	}
	if !done {
		whole, err := c.downloadWhole(ctx, t, dest, o, !isThere)
		res = plus(whole, res)
		if err != nil {
			return nil, res, err
		}
	}
	forgetDelta(dest) // and what killed processes have left on another way
	fetch.Forget(dest)
	return t, res, nil
}

// downloadWhole brings a target to dest without a delta.
func (c *Client) downloadWhole(ctx context.Context, t *tuf.Target, dest string, o DownloadOptions, blocks bool) (fetch.Result, error) {
	req := fetch.Request{Length: t.Length, Hashes: t.Hashes, Dest: dest, Bases: o.Bases, Progress: o.Progress}
	if blocks { // a block list does not help to check what is there
		var err error
		if req.Blocks, err = c.blocks(ctx, t); err != nil {
			return fetch.Result{}, err
		}
	}
	return c.file(ctx, t, req)
}

// file fetches a target from the servers in their order, which are chosen anew
// when the machine turns up on another network meanwhile.
func (c *Client) file(ctx context.Context, t *tuf.Target, req fetch.Request) (fetch.Result, error) {
	if !present(req.Dest, t.Length) {
		c.servers.begin()
		c.servers.measure(ctx)
	}
	var all fetch.Result
	for moves := 0; ; moves++ {
		bases, peers := c.servers.bases()
		req.URLs, req.Peers = c.urlsAt(t, bases), peers
		wctx, stop := ctx, func() {}
		if len(bases) > 1 {
			wctx, stop = c.servers.watch(ctx, c.cfg.Fetch.Stall)
		}
		res, err := c.fetch.File(wctx, req)
		moved := errors.Is(context.Cause(wctx), errMoved)
		stop()
		c.servers.downloaded(bases, req.URLs, res.Sources)
		all.Bytes += res.Bytes
		all.Copied += res.Copied
		all.Elapsed += res.Elapsed
		all.Sources = append(all.Sources, res.Sources...)
		if all.Reused = res.Reused; moves == 0 {
			all.Resumed = res.Resumed
		}
		if err == nil {
			c.servers.settle(ctx)
			return all, nil
		}
		if ctx.Err() != nil || moves == maxMoves || !moved && (!errors.Is(err, tuf.ErrOffline) || !c.servers.look()) {
			return all, err
		}
		zerolog.Ctx(ctx).Info().Str("target", t.Path).Msg("this machine is on another network: the download goes on there")
	}
}

// plus is how a file came with what was read in vain before.
func plus(res, before fetch.Result) fetch.Result {
	res.Bytes += before.Bytes
	res.Elapsed += before.Elapsed
	for _, s := range before.Sources {
		s.Gave = false
		res.Sources = append(res.Sources, s)
	}
	return res
}

func present(dest string, length int64) bool {
	info, err := os.Stat(dest)
	return err == nil && info.Size() == length
}

// blocks returns the target's block list, nil if it has none that can be used:
// of the right length, and signed by the role that signed the target.
// A download works without, so only the caller's own end is an error.
func (c *Client) blocks(ctx context.Context, t *tuf.Target) ([]byte, error) {
	want := layout.BlockListLen(t.Length)
	if want == 0 || len(t.Path) > layout.MaxPathLen {
		return nil, nil
	}
	list, err := c.Target(ctx, layout.BlocksPath(t.Path))
	switch {
	case err != nil:
	case list.Role != t.Role:
		err = fmt.Errorf("%w: signed by %s, the file by %s", tuf.ErrNotTrusted, list.Role, t.Role)
	case list.Length != want:
		err = fmt.Errorf("%w: %d bytes instead of %d", tuf.ErrNotTrusted, list.Length, want)
	default:
		var data []byte
		if data, err = c.document(ctx, list); err == nil {
			return data, nil
		}
	}
	if ctx.Err() != nil {
		return nil, err
	}
	zerolog.Ctx(ctx).Debug().Str("target", t.Path).Err(err).Msg("download without a block list")
	return nil, nil
}

// urls are the places of a target on the mirrors. With consistent snapshots its
// hash is part of the name (TUF 1.0.34 §5.7.3); sha256 if there is one.
func (c *Client) urls(t *tuf.Target) []string {
	bases, _ := c.servers.bases()
	return c.urlsAt(t, bases)
}

func (c *Client) urlsAt(t *tuf.Target, bases []string) []string {
	name := t.Path
	if c.tuf.RootMetadata().Signed.ConsistentSnapshot {
		sum := t.SHA256
		if sum == "" {
			sum = t.Hashes["sha512"]
		}
		dir, file := path.Split(name)
		name = dir + sum + "." + file
	}
	name = layout.EscapePath(name)
	var urls []string
	for _, base := range bases {
		urls = append(urls, base+targetsSuffix+"/"+name)
	}
	for _, base := range c.cfg.TargetURLs {
		urls = append(urls, strings.TrimRight(base, "/")+"/"+name)
	}
	return urls
}

// ReadTarget reads a small target, at most max bytes. It is kept in Dir under
// its hash, so that it is fetched once.
func (c *Client) ReadTarget(ctx context.Context, targetPath string, max int64) ([]byte, *tuf.Target, error) {
	t, err := c.Target(ctx, targetPath)
	if err != nil {
		return nil, nil, err
	}
	if t.Length > max {
		return nil, nil, fmt.Errorf("read target %s: %w: %d bytes, at most %d are allowed", targetPath, tuf.ErrTooLarge, t.Length, max)
	}
	data, err := c.document(ctx, t)
	if err != nil {
		return nil, nil, fmt.Errorf("read target %s: %w", targetPath, err)
	}
	return data, t, nil
}

// document returns a target's bytes, from Dir or a mirror, verified.
func (c *Client) document(ctx context.Context, t *tuf.Target) ([]byte, error) {
	if t.Length == 0 {
		return nil, fetch.Verify(nil, 0, t.Hashes)
	}
	name := t.SHA256
	if !layout.IsSHA256(name) {
		name = fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, t.Length, t.Hashes)))
	}
	if data, err := c.docs.get(name, t.Length); err == nil && fetch.Verify(data, t.Length, t.Hashes) == nil {
		return data, nil
	}
	data, err := c.fetch.Document(ctx, c.urls(t), t.Length, t.Hashes)
	if err != nil {
		return nil, err
	}
	if err := c.docs.put(name, data); err != nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("document not kept")
	}
	return data, nil
}
