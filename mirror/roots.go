package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	roleRoot = layout.RoleRoot

	maxRootSize = 512 << 10 // bytes, as in package tuf
	maxRoots    = 1024      // that a mirror keeps
)

// rootChain holds the roots that a mirror vouches for: the pinned one, its
// successors, and its predecessors, for clients that begin with an older one.
//
// A successor is what TUF says: signed by the threshold of the root before it
// and by its own. A predecessor is accepted when it is signed by its own
// threshold and the root after it by the predecessor's: so the chain of
// custody that a client will walk is whole, and nobody without a root key of
// that chain can have it extended. More cannot be known from the pinned root.
type rootChain struct {
	first, last int64
	files       map[int64][]byte
}

// CheckRoot reports whether a mirror could begin with data as its pinned root.
func CheckRoot(data []byte) error {
	_, err := newRootChain(data)
	return err
}

// newRootChain begins with the pinned root.
func newRootChain(pinned []byte) (*rootChain, error) {
	c, err := tuf.Open(tuf.Config{Root: pinned})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	root := c.RootMetadata().Signed
	if !root.ConsistentSnapshot {
		return nil, errors.New("the repository has no consistent snapshots (TUF 1.0.34 §6.2), which a mirror needs")
	}
	return &rootChain{root.Version, root.Version, map[int64][]byte{root.Version: pinned}}, nil
}

// succeeds verifies that next follows root, by the TUF client's own walk.
func succeeds(ctx context.Context, root, next []byte) error {
	c, err := tuf.Open(tuf.Config{Root: root, Fetcher: &onlyRoot{data: next}})
	if err != nil {
		return err
	}
	defer c.Close()
	err = c.Refresh(ctx) // which stops for want of a timestamp
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if bytes.Equal(c.Bytes(roleRoot), next) {
		return nil
	}
	return err
}

// onlyRoot is a repository of one root.
type onlyRoot struct{ data []byte }

func (o *onlyRoot) FetchMetadata(_ context.Context, name string, _ int64) ([]byte, error) {
	if role, _, ok := layout.ParseMetadataFile(name); !ok || role != roleRoot || o.data == nil {
		return nil, fs.ErrNotExist
	}
	data := o.data
	o.data = nil
	return data, nil
}

// extend walks from the last root to current, which is trusted.
func (rc *rootChain) extend(ctx context.Context, from tuf.Fetcher, current []byte) error {
	for !bytes.Equal(rc.files[rc.last], current) {
		if err := rc.step(ctx, from); err != nil {
			return err
		}
	}
	return nil
}

// walk goes from the last root to the newest that there is.
func (rc *rootChain) walk(ctx context.Context, from tuf.Fetcher) error {
	for {
		switch err := rc.step(ctx, from); {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		}
	}
}

// step adds the root after the last one.
func (rc *rootChain) step(ctx context.Context, from tuf.Fetcher) error {
	next := rc.last + 1
	data, err := from.FetchMetadata(ctx, layout.MetadataFile(roleRoot, next), maxRootSize)
	if err != nil {
		return fmt.Errorf("fetch root version %d: %w", next, err)
	}
	if len(rc.files) >= maxRoots {
		return fmt.Errorf("more than %d roots: pin a newer one", maxRoots)
	}
	if err := succeeds(ctx, rc.files[rc.last], data); err != nil {
		return fmt.Errorf("root version %d: %w", next, err)
	}
	rc.files[next], rc.last = data, next
	return nil
}

// extendBack fetches the roots before the first one as far as there are any,
// and reports whether there was one.
func (rc *rootChain) extendBack(ctx context.Context, from tuf.Fetcher) (found bool, err error) {
	for rc.first > 1 && len(rc.files) < maxRoots {
		prev := rc.first - 1
		data, err := from.FetchMetadata(ctx, layout.MetadataFile(roleRoot, prev), maxRootSize)
		if errors.Is(err, fs.ErrNotExist) {
			return found, nil
		}
		if err != nil {
			return found, fmt.Errorf("fetch root version %d: %w", prev, err)
		}
		if err := succeeds(ctx, data, rc.files[rc.first]); err != nil {
			return found, fmt.Errorf("root version %d: %w", prev, err)
		}
		rc.files[prev], rc.first, found = data, prev, true
	}
	return found, nil
}
