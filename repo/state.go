package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// maxMetadata bounds one metadata file that a publisher reads, in bytes.
const maxMetadata = 64 << 20

// maxRoots bounds the root chain that a publisher follows.
const maxRoots = 10_000

// state is what is published: verified from the oldest root onward, whether it
// has expired or not, since an expired repository can still be renewed.
type state struct {
	store   store.Reader
	trusted *trustedmetadata.TrustedMetadata
	oldest  []byte // root to start a walk from
	newest  []byte // root in force
	stamp   []byte // timestamp.json
	etag    string // of the timestamp; "" in a store without one
}

// load reads and verifies what is published.
func (r *Repository) load(ctx context.Context) (*state, error) {
	s := &state{store: r.store, oldest: r.root}
	if s.oldest == nil {
		data, err := readObject(ctx, r.store, layout.MetadataObject(layout.RoleRoot, 1))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w in %s: run init first, or check --repo", ErrNoRepository, r.store)
		}
		if err != nil {
			return nil, fmt.Errorf("read root: %w", err)
		}
		s.oldest = data
	}
	err := trust(func() (err error) {
		s.trusted, err = trustedmetadata.New(s.oldest)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("oldest root: %w", err)
	}
	s.trusted.RefTime = time.Time{} // expiry is the clients' concern; see walk
	s.newest = s.oldest
	if err := s.loadRoots(ctx); err != nil {
		return nil, err
	}
	info, err := s.loadTimestamp(ctx)
	if err != nil {
		return nil, err
	}
	s.etag = info.ETag
	if err := s.loadSnapshot(ctx); err != nil {
		return nil, err
	}
	if _, err := s.role(ctx, layout.RoleTargets); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *state) loadRoots(ctx context.Context) error {
	for range maxRoots {
		next := s.trusted.Root.Signed.Version + 1
		data, err := readObject(ctx, s.store, layout.MetadataObject(layout.RoleRoot, next))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read root %d: %w", next, err)
		}
		err = trust(func() error { _, err := s.trusted.UpdateRoot(data); return err })
		if err != nil {
			return fmt.Errorf("root %d: %w", next, err)
		}
		s.newest = data
	}
	return fmt.Errorf("%w: more than %d roots", ErrNotTrusted, maxRoots)
}

func (s *state) loadTimestamp(ctx context.Context) (store.Info, error) {
	rc, info, err := s.store.Open(ctx, layout.TimestampObject, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return info, fmt.Errorf("%w in %s: it has a root but no timestamp, so init did not finish; run init again", ErrNoRepository, s.store)
	}
	if err != nil {
		return info, fmt.Errorf("read timestamp: %w", err)
	}
	if s.stamp, err = readAll(rc); err != nil {
		return info, fmt.Errorf("read timestamp: %w", err)
	}
	err = trust(func() error { _, err := s.trusted.UpdateTimestamp(s.stamp); return err })
	if err != nil {
		return info, fmt.Errorf("timestamp: %w", err)
	}
	return info, nil
}

func (s *state) loadSnapshot(ctx context.Context) error {
	meta := s.trusted.Timestamp.Signed.Meta[layout.RoleSnapshot+".json"]
	if meta == nil {
		return fmt.Errorf("%w: the timestamp names no snapshot", ErrNotTrusted)
	}
	data, err := readObject(ctx, s.store, layout.MetadataObject(layout.RoleSnapshot, meta.Version))
	if err != nil {
		return missingRole(layout.RoleSnapshot, meta.Version, err)
	}
	err = trust(func() error { _, err := s.trusted.UpdateSnapshot(data, false); return err })
	if err != nil {
		return fmt.Errorf("snapshot %d: %w", meta.Version, err)
	}
	return nil
}

// role returns the verified metadata of targets or of a role that targets
// delegates to; fs.ErrNotExist if there is no such role.
func (s *state) role(ctx context.Context, name string) (*metadata.Metadata[metadata.TargetsType], error) {
	if md := s.trusted.Targets[name]; md != nil {
		return md, nil
	}
	delegator := layout.RoleTargets
	if name == layout.RoleTargets {
		delegator = layout.RoleRoot
	} else if delegationOf(s.trusted.Targets[layout.RoleTargets], name) == nil {
		return nil, fmt.Errorf("role %s: %w", name, fs.ErrNotExist)
	}
	meta := s.trusted.Snapshot.Signed.Meta[name+".json"]
	if meta == nil {
		return nil, fmt.Errorf("%w: the snapshot does not list role %s", ErrNotTrusted, name)
	}
	data, err := readObject(ctx, s.store, layout.MetadataObject(name, meta.Version))
	if err != nil {
		return nil, missingRole(name, meta.Version, err)
	}
	err = trust(func() error { _, err := s.trusted.UpdateDelegatedTargets(data, name, delegator); return err })
	if err != nil {
		return nil, fmt.Errorf("%s %d: %w", name, meta.Version, err)
	}
	return s.trusted.Targets[name], nil
}

func missingRole(role string, version int64, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing although it is named by what is published", ErrNotTrusted, layout.MetadataFile(role, version))
	}
	return fmt.Errorf("read %s %d: %w", role, version, err)
}

// delegationOf finds targets' delegation to a role; nil if there is none.
func delegationOf(targets *metadata.Metadata[metadata.TargetsType], name string) *metadata.DelegatedRole {
	if targets == nil || targets.Signed.Delegations == nil {
		return nil
	}
	roles := targets.Signed.Delegations.Roles
	for i := range roles {
		if roles[i].Name == name {
			return &roles[i]
		}
	}
	return nil
}

// trust runs a step of verification. What go-tuf says becomes ErrNotTrusted,
// and so does a panic: it parses before it verifies, and hostile bytes can make
// it trip over what is not there.
func trust(step func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: malformed metadata", ErrNotTrusted)
		}
	}()
	if err := step(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotTrusted, err)
	}
	return nil
}

func readObject(ctx context.Context, s store.Reader, name string) ([]byte, error) {
	rc, _, err := s.Open(ctx, name, 0)
	if err != nil {
		return nil, err
	}
	return readAll(rc)
}

func readAll(rc io.ReadCloser) ([]byte, error) {
	defer rc.Close()
	data, err := io.ReadAll(io.LimitReader(rc, maxMetadata+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxMetadata {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrNotTrusted, maxMetadata)
	}
	return data, nil
}
