package tuf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// fetchListed fetches a file that the snapshot or the timestamp lists, and
// checks its length and hashes if they are listed too.
func (c *Client) fetchListed(ctx context.Context, v *view, role string, m *metadata.MetaFiles, max int64) ([]byte, error) {
	if m.Length > 0 {
		max = min(max, m.Length)
	}
	name := url.PathEscape(role) + ".json"
	if v.root.md.Signed.ConsistentSnapshot {
		name = layout.MetadataFile(role, m.Version)
	}
	data, err := c.fetch(ctx, name, max)
	if err != nil {
		return nil, mustExist(fmt.Sprintf("fetch %s version %d", role, m.Version), err)
	}
	return data, verifyFile(role, m, data)
}

func (c *Client) fetch(ctx context.Context, name string, max int64) ([]byte, error) {
	if c.fetcher == nil {
		return nil, fmt.Errorf("%w: no fetcher", ErrOffline)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	data, err := c.fetcher.FetchMetadata(ctx, name, max)
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("%s: %w: more than %d bytes", name, ErrTooLarge, max)
	}
	switch {
	case err == nil:
		return data, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case classified(err):
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", ErrOffline, err)
}

// mustExist turns the absence of a file that has to be there into ErrOffline:
// fs.ErrNotExist is kept for targets that nobody signs.
func mustExist(what string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w: the repository does not serve it", what, ErrOffline)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func classified(err error) bool {
	return slices.ContainsFunc([]error{
		ErrNotTrusted, ErrExpired, ErrOffline, ErrClock, ErrLocked, ErrTooLarge,
		fs.ErrNotExist, context.Canceled, context.DeadlineExceeded,
	}, func(target error) bool { return errors.Is(err, target) })
}
