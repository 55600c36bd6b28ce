package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
)

// Renew signs timestamp and snapshot anew, and the given further roles, so that
// they are valid for another lifetime. Their content stays as it is. Root is
// not renewed so.
func (r *Repository) Renew(ctx context.Context, roles []string, dryRun bool) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		d.stamp = true
		for _, role := range roles {
			switch role {
			case layout.RoleTimestamp, layout.RoleSnapshot:
			case layout.RoleRoot:
				return errors.New("root cannot be renewed like this: a new root version has to be made")
			default:
				if _, err := d.edit(ctx, role); errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("unknown role %s: %w", role, fs.ErrNotExist)
				} else if err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Expiry is when a role's metadata runs out.
type Expiry struct {
	Role     string        `json:"role"`
	Version  int64         `json:"version"`
	Expires  time.Time     `json:"expires"`
	Lifetime time.Duration `json:"-"`
}

// Expiries lists when each role's metadata runs out, the soonest first.
func (r *Repository) Expiries(ctx context.Context) ([]Expiry, error) {
	s, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	root, stamp, snap := s.trusted.Root.Signed, s.trusted.Timestamp.Signed, s.trusted.Snapshot.Signed
	list := []Expiry{
		{layout.RoleRoot, root.Version, root.Expires, roleLifetime(layout.RoleRoot, root.UnrecognizedFields)},
		{layout.RoleTimestamp, stamp.Version, stamp.Expires, roleLifetime(layout.RoleTimestamp, stamp.UnrecognizedFields)},
		{layout.RoleSnapshot, snap.Version, snap.Expires, roleLifetime(layout.RoleSnapshot, snap.UnrecognizedFields)},
	}
	names := []string{layout.RoleTargets}
	for _, del := range s.delegations() {
		names = append(names, del.Name)
	}
	for _, name := range names {
		md, err := s.role(ctx, name)
		if err != nil {
			return nil, err
		}
		list = append(list, Expiry{name, md.Signed.Version, md.Signed.Expires, roleLifetime(name, md.Signed.UnrecognizedFields)})
	}
	slices.SortStableFunc(list, func(a, b Expiry) int { return a.Expires.Compare(b.Expires) })
	return list, nil
}

// Root returns the root metadata in force, which mirrors and agents pin.
func (r *Repository) Root(ctx context.Context) ([]byte, error) {
	s, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	return s.newest, nil
}
