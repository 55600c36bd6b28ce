package repo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
)

// A new repository can wait for signatures as any change does: then root is one
// of the roles that it edits, and there is nothing that it is made on top of.

// makingDraft is a draft of the repository that a change makes.
func (r *Repository) makingDraft(desc *descriptor) *draft {
	making := *r
	making.making = &InitConfig{Roles: make(map[string]RoleConfig)}
	for role, life := range desc.Lifetimes { // checked by the parser
		d, _ := time.ParseDuration(life)
		making.making.Roles[role] = RoleConfig{Lifetime: d}
	}
	return &draft{
		repo:  &making,
		root:  metadata.Root(),
		roles: make(map[string]*metadata.Metadata[metadata.TargetsType]),
		docs:  make(map[string][]byte),
	}
}

// onlineLifetimes are those that a new repository's online roles were given.
func (r *Repository) onlineLifetimes() map[string]string {
	lives := make(map[string]string)
	for _, role := range []string{layout.RoleSnapshot, layout.RoleTimestamp} {
		if life := r.making.Roles[role].Lifetime; life != 0 {
			lives[role] = life.String()
		}
	}
	return lives
}

// publishNew publishes a change that makes a repository.
func (r *Repository) publishNew(ctx context.Context, id string, dryRun bool) (*Change, error) {
	d, err := r.signedDraft(ctx, nil, id)
	if err != nil {
		return nil, err
	}
	if dryRun {
		return &d.result, d.planSigned(ctx)
	}
	if err := d.repo.CanInit(ctx); err != nil {
		return nil, err
	}
	root := d.signed[layout.RoleRoot]
	written := make(map[string][]byte)
	if _, err := d.writeSigned(ctx, root, written); err != nil {
		return nil, err
	}
	d.repo.root = written[layout.MetadataFile(layout.RoleRoot, root.desc.To)]
	err = trust(func() error {
		signed, err := metadata.Root().FromBytes(d.repo.root)
		if err != nil {
			return err
		}
		d.root = signed
		return signed.VerifyDelegate(layout.RoleRoot, signed)
	})
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	d.result.Attempts = 1
	if err := d.commitNew(ctx); err != nil {
		return nil, err
	}
	return &d.result, nil
}

// errRootTaken says that an Init was cut off here.
var errRootTaken = errors.New("the root of an unfinished repository lies here: use an empty place, or finish it with the keys that it names")
