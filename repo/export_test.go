package repo

import (
	"context"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
)

// EditTargets publishes targets as edit leaves it: what no command does yet.
func (r *Repository) EditTargets(ctx context.Context, edit func(*metadata.TargetsType)) error {
	_, err := r.publish(ctx, false, func(ctx context.Context, d *draft) error {
		t, err := d.edit(ctx, layout.RoleTargets)
		if err == nil {
			edit(t)
		}
		return err
	})
	return err
}
