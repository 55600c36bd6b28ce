package repo

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/rollout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// RoleConfig is who may speak for a role.
type RoleConfig struct {
	Keys      []crypto.PublicKey // ed25519 or ECDSA P-256
	Threshold int                // signatures needed; 0: one
	Lifetime  time.Duration      // 0: DefaultLifetime
}

// InitConfig describes a new repository.
type InitConfig struct {
	Roles    map[string]RoleConfig // by role: all of Roles(Rings, Products)
	Rings    []string              // none: rollout.DefaultRings
	Products []string
}

// Roles lists the roles of a repository with these rings and products, in the
// order of who vouches for whom.
func Roles(rings, products []string) []string {
	roles := []string{layout.RoleRoot, layout.RoleTargets, layout.RoleSnapshot, layout.RoleTimestamp, layout.RoleHalt, layout.RoleMirrors}
	for _, r := range rings {
		roles = append(roles, layout.RingRole(r))
	}
	for _, p := range products {
		roles = append(roles, layout.ProductRole(p))
	}
	return roles
}

// Init makes a new repository in the store, and returns what it published.
// If an earlier Init with the same root keys was cut off, it is finished.
// A store that holds a repository is refused with ErrExists, and one without
// conditional writes with store.ErrUnsupported.
func (r *Repository) Init(ctx context.Context, cfg InitConfig) (*Change, error) {
	if len(cfg.Rings) == 0 {
		cfg.Rings = rollout.DefaultRings
	}
	for _, n := range slices.Concat(cfg.Rings, cfg.Products) {
		if err := layout.CheckName(n); err != nil {
			return nil, err
		}
	}
	if err := r.CanInit(ctx); err != nil {
		return nil, err
	}
	in := *r
	in.making = &cfg
	d := &draft{
		repo:  &in,
		roles: map[string]*metadata.Metadata[metadata.TargetsType]{layout.RoleTargets: newTargets(layout.RoleTargets, cfg.Roles[layout.RoleTargets].Lifetime)},
		docs:  make(map[string][]byte),
	}
	if err := d.fill(ctx, cfg); err != nil {
		return nil, err
	}
	if err := d.newRoot(cfg); err != nil {
		return nil, err
	}
	d.result.Attempts = 1
	wait, err := d.waits(ctx)
	if err != nil {
		return nil, err
	}
	if wait {
		d.result.Pending, err = d.stage(ctx, "", nil)
		return &d.result, err
	}
	if err := d.makeRoot(ctx); err != nil {
		return nil, err
	}
	return &d.result, d.commitNew(ctx)
}

// commitNew is commit in a place where no repository is yet.
func (d *draft) commitNew(ctx context.Context) error {
	err := d.commit(ctx)
	if errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("a repository in %s %w: someone else made it just now", d.repo.store, ErrExists)
	}
	return err
}

// CanInit reports why no repository can be made in the store: it holds one, or
// it is not fit for one.
func (r *Repository) CanInit(ctx context.Context) error {
	if _, err := r.store.Stat(ctx, layout.TimestampObject); err == nil {
		return fmt.Errorf("a repository in %s %w", r.store, ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for a repository: %w", err)
	}
	if err := r.store.Probe(ctx); err != nil {
		return fmt.Errorf("probe %s: %w", r.store, err)
	}
	return nil
}

// lifetimes are the fields of a top-level role that is made for the first time.
func (r *Repository) lifetimes(role string) map[string]any {
	if r.making == nil {
		return nil
	}
	return lifetimeFields(role, r.making.Roles[role].Lifetime)
}

func lifetimeFields(role string, d time.Duration) map[string]any {
	if d == 0 {
		d = DefaultLifetime(role)
	}
	return map[string]any{lifetimeField: d.String()}
}

// fill puts the delegated roles, the rings' empty plans and the empty halt list
// into the draft.
func (d *draft) fill(ctx context.Context, cfg InitConfig) error {
	for _, role := range Roles(cfg.Rings, cfg.Products)[4:] {
		patterns := layout.HaltPatterns()
		if role == layout.RoleMirrors {
			patterns = layout.MirrorsPatterns()
		}
		if ring, ok := layout.RingOfRole(role); ok {
			patterns = layout.RingPatterns(ring)
		}
		if product, ok := layout.ProductOfRole(role); ok {
			patterns = layout.ProductPatterns(product)
		}
		if err := d.add(ctx, cfg.Roles[role], role, patterns); err != nil {
			return err
		}
	}
	for _, ring := range cfg.Rings {
		if err := d.putPlan(ctx, &rollout.Plan{Format: rollout.Format, Ring: ring, Entries: []rollout.Entry{}}); err != nil {
			return err
		}
	}
	return d.putHalts(ctx, &rollout.Halts{Format: rollout.Format, Halts: []rollout.Halt{}})
}

// newRoot makes version 1 of root, still unsigned.
func (d *draft) newRoot(cfg InitConfig) error {
	now := d.repo.moment()
	md := metadata.Root()
	md.Signed.Version = 1
	md.Signed.ConsistentSnapshot = true
	md.Signed.UnrecognizedFields = signedAt(d.repo.lifetimes(layout.RoleRoot), now)
	md.Signed.Expires = now.Add(roleLifetime(layout.RoleRoot, md.Signed.UnrecognizedFields))
	md.Signed.Keys = make(map[string]*metadata.Key)
	md.Signed.Roles = make(map[string]*metadata.Role)
	for _, role := range []string{layout.RoleRoot, layout.RoleTargets, layout.RoleSnapshot, layout.RoleTimestamp} {
		c := cfg.Roles[role]
		ids, err := declare(c, role, md.Signed.Keys)
		if err != nil {
			return err
		}
		md.Signed.Roles[role] = &metadata.Role{KeyIDs: ids, Threshold: max(c.Threshold, 1)}
	}
	d.root = md
	return nil
}

// makeRoot signs and creates version 1 of root. If it is there already, from an
// Init that was cut off, it is taken over if it names the same keys.
func (d *draft) makeRoot(ctx context.Context) error {
	md := d.root
	top := md.Signed.Roles[layout.RoleRoot]
	signers, err := sign(ctx, md, layout.RoleRoot, top.KeyIDs, top.Threshold, d.repo.keys)
	if err != nil {
		return err
	}
	data, err := md.ToBytes(false)
	if err != nil {
		return err
	}
	name := layout.MetadataObject(layout.RoleRoot, 1)
	_, err = d.repo.store.Create(ctx, name, bytes.NewReader(data), int64(len(data)), options(name))
	if errors.Is(err, store.ErrConflict) {
		if data, err = d.adopt(ctx, md); err != nil {
			return err
		}
	} else if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	d.repo.root = data
	err = trust(func() (err error) { d.root, err = metadata.Root().FromBytes(data); return err })
	if err != nil {
		return err
	}
	d.result.Roles = append(d.result.Roles, RoleChange{Role: layout.RoleRoot, To: 1, Expires: d.root.Signed.Expires, Signers: signers})
	return nil
}

func (d *draft) adopt(ctx context.Context, want *metadata.Metadata[metadata.RootType]) ([]byte, error) {
	data, err := readObject(ctx, d.repo.store, layout.MetadataObject(layout.RoleRoot, 1))
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	err = trust(func() error {
		have, err := metadata.Root().FromBytes(data)
		if err != nil {
			return err
		}
		if err := have.VerifyDelegate(layout.RoleRoot, have); err != nil {
			return err
		}
		for role, w := range want.Signed.Roles {
			h := have.Signed.Roles[role]
			if h.Threshold != w.Threshold || !slices.Equal(h.KeyIDs, w.KeyIDs) {
				return fmt.Errorf("its %s role has other keys", role)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s holds the root of an unfinished repository that cannot be taken over (%w): use an empty place", d.repo.store, err)
	}
	return data, nil
}

// declare adds a role's keys to keys, and returns their ids.
func declare(c RoleConfig, role string, keys map[string]*metadata.Key) ([]string, error) {
	var ids []string
	for _, pub := range c.Keys {
		key, err := metadata.KeyFromPublicKey(pub)
		if err != nil {
			return nil, fmt.Errorf("key of role %s: %w", role, err)
		}
		id, err := key.ID()
		if err != nil {
			return nil, fmt.Errorf("key of role %s: %w", role, err)
		}
		if slices.Contains(ids, id) {
			return nil, fmt.Errorf("role %s names key %.8s twice: %w", role, id, ErrKeys)
		}
		keys[id] = key
		ids = append(ids, id)
	}
	if len(ids) < max(c.Threshold, 1) {
		return nil, fmt.Errorf("%w: role %s has %d key(s) and asks for %d signature(s)", ErrKeys, role, len(ids), max(c.Threshold, 1))
	}
	return ids, nil
}
