package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// walk looks at what is about to be committed as clients will: one that has
// never seen the repository, one that has seen what is published now, and one
// that starts from the oldest root. What any of them would refuse is not
// committed.
func (d *draft) walk(ctx context.Context, stamp []byte, written map[string][]byte) error {
	after := &preview{store: d.repo.store, files: map[string][]byte{layout.TimestampName: stamp}, read: written}
	clients := map[string]struct {
		root   []byte
		before []byte // timestamp seen before; nil: none
	}{"a new client": {root: d.newestRoot()}}
	if d.base != nil {
		clients["a returning client"] = struct{ root, before []byte }{d.newestRoot(), d.base.stamp}
		clients["a client with the oldest root"] = struct{ root, before []byte }{d.base.oldest, nil}
	}
	for who, c := range clients {
		if err := d.walkAs(ctx, c.root, c.before, after); err != nil {
			return walkError(who, err)
		}
	}
	return nil
}

func (d *draft) newestRoot() []byte {
	if d.base != nil {
		return d.base.newest
	}
	return d.repo.root
}

func (d *draft) walkAs(ctx context.Context, root, before []byte, after *preview) error {
	look := &preview{store: d.repo.store, files: map[string][]byte{}, read: after.read}
	c, err := tuf.Open(tuf.Config{Root: root, Fetcher: look, Now: func() time.Time { return d.repo.now() }})
	if err != nil {
		return err
	}
	defer c.Close()
	if before != nil {
		// What was published may have expired, which is what this change mends.
		look.files[layout.TimestampName] = before
		if err := c.Refresh(ctx); err != nil && !errors.Is(err, tuf.ErrExpired) {
			return err
		}
	}
	look.files = after.files
	if err := c.Refresh(ctx); err != nil {
		return err
	}
	for role := range d.roles {
		md := d.roles[role]
		for path, want := range md.Signed.Targets {
			got, err := c.Target(ctx, path)
			if err != nil {
				return fmt.Errorf("target %s: %w", path, err)
			}
			if got.Role != role || got.SHA256 != want.Hashes["sha256"].String() || got.Length != want.Length {
				return fmt.Errorf("target %s: %w: role %s answers for it instead of %s", path, tuf.ErrNotTrusted, got.Role, role)
			}
			break // one leads through every delegation that the others go through
		}
	}
	return nil
}

func walkError(who string, err error) error {
	switch {
	case errors.Is(err, tuf.ErrExpired):
		return fmt.Errorf("%w: nothing was published, because %s would refuse it: %w", ErrExpired, who, err)
	case errors.Is(err, tuf.ErrNotTrusted), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: nothing was published, because %s would refuse it: %w", ErrNotTrusted, who, err)
	}
	return fmt.Errorf("look at the outcome as %s: %w", who, err)
}

// preview is what a client would fetch: the store, with some files in place of
// what lies there. What never changes is read once for all three clients.
type preview struct {
	store store.Reader
	files map[string][]byte
	read  map[string][]byte
}

// FetchMetadata implements tuf.Fetcher.
func (p *preview) FetchMetadata(ctx context.Context, name string, limit int64) ([]byte, error) {
	data, ok := p.files[name]
	if !ok {
		data, ok = p.read[name]
	}
	if !ok {
		var err error
		data, err = readObject(ctx, p.store, layout.MetadataDir+"/"+name)
		if err != nil {
			return nil, err
		}
		if name != layout.TimestampName {
			p.read[name] = data
		}
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: %w", name, tuf.ErrTooLarge)
	}
	return data, nil
}
