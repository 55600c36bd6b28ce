package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
)

// EditTargets publishes targets as edit leaves it: what no command does yet.
func (r *Repository) EditTargets(ctx context.Context, edit func(*metadata.TargetsType)) error {
	return r.EditRole(ctx, layout.RoleTargets, edit)
}

// EditRole publishes a role as edit leaves it.
func (r *Repository) EditRole(ctx context.Context, role string, edit func(*metadata.TargetsType)) error {
	_, err := r.publish(ctx, false, func(ctx context.Context, d *draft) error {
		t, err := d.edit(ctx, role)
		if err == nil {
			edit(t)
		}
		return err
	})
	return err
}

// StageAltered puts an altered copy of a change of one role beside it: well
// formed, but not what any command makes. It returns the copy's id.
func (r *Repository) StageAltered(ctx context.Context, id string, alter func(*metadata.TargetsType)) (string, error) {
	base, err := r.load(ctx)
	if err != nil {
		return "", err
	}
	p, err := r.readPending(ctx, base, id)
	if err != nil {
		return "", err
	}
	desc := *p.desc
	part := p.parts[desc.Roles[0].Role]
	alter(&part.md.Signed)
	data, payload, err := encodeUnsigned(part.md)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(payload)
	desc.Roles[0].SHA256, desc.Roles[0].To = hex.EncodeToString(sum[:]), part.md.Signed.Version
	if desc.ID, err = desc.makeID(); err != nil {
		return "", err
	}
	if err := r.createSame(ctx, layout.PendingRole(desc.ID, part.desc.Role), data); err != nil {
		return "", err
	}
	if data, err = json.Marshal(desc); err != nil {
		return "", err
	}
	return desc.ID, r.createSame(ctx, layout.PendingChange(desc.ID), data)
}
