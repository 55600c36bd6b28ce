package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/store"
)

// Published is a patch as its product's role vouches for it.
type Published struct {
	Path   string       `json:"path"`
	Length int64        `json:"length"`
	SHA256 string       `json:"sha256"`
	Custom string       `json:"custom_sha256"` // patch.Digest
	Blocks bool         `json:"blocks"`        // it has a block list
	Deltas []Delta      `json:"deltas,omitempty"`
	Patch  *patch.Patch `json:"patch"`
	Rings  []string     `json:"rings"` // that approve this very content
}

// AddOptions go with AddPatch.
type AddOptions struct {
	DryRun bool
	// NewProduct is asked who is to speak for a product that is not there yet,
	// which is then made in the same publish. Nil: such a product is refused.
	NewProduct func(product string) (RoleConfig, error)
	// DeltaFrom are earlier versions, for the same platform, that deltas are made
	// from, at most MaxDeltas. What became of each is in Published.Deltas. It
	// takes memory: for both files, of at most delta.MaxFile bytes each, and
	// 192 MiB.
	DeltaFrom []string
	OnDelta   func(from string) // called before each is made; nil: nobody
}

// AddPatch publishes a file, read once and, without deltas, in constant memory,
// as p, and returns its target path. size is the file's length in bytes, -1 if
// unknown. A version that is published already is ErrExists, and an unknown
// product, or version in opt.DeltaFrom, fs.ErrNotExist; then nothing was written.
func (r *Repository) AddPatch(ctx context.Context, p *patch.Patch, fileName string, file io.Reader, size int64, opt AddOptions) (*Published, *Change, error) {
	custom, err := p.ToCustom()
	if err != nil {
		return nil, nil, err
	}
	path, err := layout.PatchPath(p.Product, p.Version, p.Platform, fileName)
	if err != nil {
		return nil, nil, err
	}
	bases, err := r.deltaBases(ctx, p, opt.DeltaFrom)
	if err != nil {
		return nil, nil, err
	}
	newRole, err := r.checkNew(ctx, p, path, opt)
	if err != nil {
		return nil, nil, err
	}
	pub := &Published{Path: path, Patch: p, Rings: []string{}}
	if pub.Custom, err = patch.Digest(custom); err != nil {
		return nil, nil, err
	}
	content := newKeeper(-1)
	if len(bases) > 0 {
		content = newKeeper(size)
		file = io.TeeReader(file, content)
	}
	blocks, err := r.upload(ctx, pub, file, size, opt.DryRun)
	if err != nil {
		return nil, nil, err
	}
	if err := r.makeDeltas(ctx, pub, bases, content, opt); err != nil {
		return nil, nil, err
	}
	role := layout.ProductRole(p.Product)
	change, err := r.publish(ctx, opt.DryRun, func(ctx context.Context, d *draft) error {
		if _, err := d.read(ctx, role); errors.Is(err, fs.ErrNotExist) && newRole != nil {
			if err := d.add(ctx, *newRole, role, layout.ProductPatterns(p.Product)); err != nil {
				return err
			}
		}
		t, err := d.edit(ctx, role)
		if err != nil {
			return unknownProduct(p.Product, err)
		}
		if err := takenVersion(t.Targets, p, path); err != nil {
			return err
		}
		t.Targets[path] = targetFile(path, pub.Length, [32]byte(mustHex(pub.SHA256)))
		t.Targets[path].Custom = &custom
		for i := range pub.Deltas {
			if err := pub.Deltas[i].put(ctx, d, role, t); err != nil {
				return err
			}
		}
		if pub.Blocks {
			return d.putDocument(ctx, role, layout.BlocksPath(path), blocks)
		}
		return nil
	})
	return pub, change, err
}

// checkNew refuses before the upload what the publish would refuse after it. It
// returns who is to speak for the product if that is new.
func (r *Repository) checkNew(ctx context.Context, p *patch.Patch, path string, opt AddOptions) (*RoleConfig, error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	d := r.draftOn(base)
	role := layout.ProductRole(p.Product)
	signing := []string{role, layout.RoleSnapshot, layout.RoleTimestamp}
	md, err := base.role(ctx, role)
	switch {
	case errors.Is(err, fs.ErrNotExist) && opt.NewProduct != nil:
		signing[0] = layout.RoleTargets
		if !opt.DryRun { // before keys are made for it
			if err := d.canSign(ctx, signing...); err != nil {
				return nil, fmt.Errorf("product %s is new: %w", p.Product, err)
			}
		}
		cfg, err := opt.NewProduct(p.Product)
		return &cfg, err
	case err != nil:
		return nil, unknownProduct(p.Product, err)
	}
	if err := takenVersion(md.Signed.Targets, p, path); err != nil || opt.DryRun {
		return nil, err
	}
	return nil, d.canSign(ctx, signing...)
}

// canSign finds out before an upload, not after it, that keys are missing or a
// password is wrong. The role comes first: if it will wait for signatures of
// others, nobody needs the rest of the keys now.
func (d *draft) canSign(ctx context.Context, roles ...string) error {
	if d.repo.waiting == WaitAlways {
		return nil
	}
	for _, role := range roles {
		have, threshold, err := d.atHand(ctx, role)
		switch {
		case err != nil:
			return err
		case have >= threshold:
		case have > 0 && d.repo.waiting == WaitIfNeeded && role == roles[0]:
			return nil
		default:
			return fmt.Errorf("%w: role %s needs %d signature(s), and the keys at hand give %d", ErrKeys, role, threshold, have)
		}
	}
	return nil
}

func takenVersion[T any](targets map[string]T, p *patch.Patch, path string) error {
	dir := path[:strings.LastIndex(path, "/")+1]
	for have := range targets {
		if strings.HasPrefix(have, dir) {
			return fmt.Errorf("patch %s %w: a version never changes, so publish a new one", p.ID, ErrExists)
		}
	}
	return nil
}

func unknownProduct(product string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unknown product %s: %w", product, fs.ErrNotExist)
	}
	return err
}

// upload brings the file into the store under the name that its hash gives, and
// fills in pub. It returns the block list.
func (r *Repository) upload(ctx context.Context, pub *Published, file io.Reader, size int64, dryRun bool) ([]byte, error) {
	h := newBlockHasher()
	in := io.TeeReader(file, h)
	var staged store.Staged
	var err error
	if dryRun {
		if _, err = io.Copy(io.Discard, in); err != nil {
			err = fmt.Errorf("read file: %w", err)
		}
	} else if staged, err = r.store.Stage(ctx, in, size, options(layout.TargetsDir+"/")); err != nil {
		err = fmt.Errorf("upload: %w", err)
	} else {
		defer staged.Discard(context.WithoutCancel(ctx))
	}
	sum, blocks := h.Sum()
	if err != nil {
		return nil, err
	}
	pub.Length = h.length
	pub.SHA256 = fmt.Sprintf("%x", sum)
	pub.Blocks = layout.BlockListLen(pub.Length) > 0
	if dryRun {
		return blocks, nil
	}
	object := layout.TargetObject(pub.Path, pub.SHA256)
	info, err := staged.Commit(ctx, object)
	if errors.Is(err, store.ErrConflict) { // its name says that it has the same content
		info, err = r.store.Stat(ctx, object)
	}
	if err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	if info.Size != pub.Length {
		return nil, fmt.Errorf("upload: %s has %d bytes in the store, and the file has %d", object, info.Size, pub.Length)
	}
	return blocks, nil
}

// WithdrawPatch takes back a product's word for all files of a version, so that
// no machine installs it any more. The files stay until gc.
func (r *Repository) WithdrawPatch(ctx context.Context, product, version string, dryRun bool) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		t, err := d.edit(ctx, layout.ProductRole(product))
		if err != nil {
			return unknownProduct(product, err)
		}
		found := false
		for path := range t.Targets {
			target, _ := layout.PatchOf(path)
			if p, v, _, _, ok := layout.SplitPatchPath(target); ok && p == product && v == version {
				delete(t.Targets, path)
				found = true
			}
		}
		if !found {
			return fmt.Errorf("patch %s@%s: %w", product, version, fs.ErrNotExist)
		}
		return nil
	})
}

// Patches lists the published patches: of one product, or of all if product is
// "". They are sorted by product, version and platform.
func (r *Repository) Patches(ctx context.Context, product string) ([]Published, error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	d := r.draftOn(base)
	if product != "" {
		if _, err := base.role(ctx, layout.ProductRole(product)); err != nil {
			return nil, unknownProduct(product, err)
		}
	}
	approved, err := d.approvals(ctx)
	if err != nil {
		return nil, err
	}
	list := []Published{}
	for _, del := range base.delegations() {
		p, ok := layout.ProductOfRole(del.Name)
		if !ok || product != "" && p != product {
			continue
		}
		some, err := d.published(ctx, p)
		if err != nil {
			return nil, err
		}
		list = append(list, some...)
	}
	for i := range list {
		list[i].Rings = append([]string{}, approved[approval{list[i].Path, list[i].SHA256, list[i].Custom}]...)
	}
	slices.SortFunc(list, func(a, b Published) int {
		if c := strings.Compare(a.Patch.Product, b.Patch.Product); c != 0 {
			return c
		}
		if c := a.Patch.Compare(a.Patch.Version, b.Patch.Version); c != 0 {
			return c
		}
		return strings.Compare(a.Path, b.Path)
	})
	return list, nil
}

// published lists a product's patches, without the rings.
func (d *draft) published(ctx context.Context, product string) ([]Published, error) {
	t, err := d.read(ctx, layout.ProductRole(product))
	if err != nil {
		return nil, unknownProduct(product, err)
	}
	var list []Published
	for path, tf := range t.Targets {
		if _, _, _, _, ok := layout.SplitPatchPath(path); !ok {
			continue
		}
		pub := Published{Path: path, Length: tf.Length, SHA256: tf.Hashes["sha256"].String(), Blocks: t.Targets[layout.BlocksPath(path)] != nil}
		if tf.Custom != nil {
			if pub.Patch, err = patch.FromCustom(*tf.Custom); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			if pub.Custom, err = patch.Digest(*tf.Custom); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
		if pub.Patch == nil || !pub.Patch.MatchesPath(path) {
			return nil, fmt.Errorf("%s: %w: it does not describe the patch at its path", path, patch.ErrBad)
		}
		list = append(list, pub)
	}
	slices.SortFunc(list, func(a, b Published) int { return strings.Compare(a.Path, b.Path) })
	for _, path := range slices.Sorted(maps.Keys(t.Targets)) {
		if target, _, ok := layout.DeltaOf(path); ok {
			if i := slices.IndexFunc(list, func(p Published) bool { return p.Path == target }); i >= 0 {
				list[i].Deltas = append(list[i].Deltas, publishedDelta(t, path, &list[i]))
			}
		}
	}
	return list, nil
}

// versionOf lists the patches of one version; fs.ErrNotExist if there are none.
func (d *draft) versionOf(ctx context.Context, product, version string) ([]Published, error) {
	all, err := d.published(ctx, product)
	if err != nil {
		return nil, err
	}
	list := slices.DeleteFunc(all, func(p Published) bool { return p.Patch.Version != version })
	if len(list) == 0 {
		return nil, fmt.Errorf("patch %s@%s: %w", product, version, fs.ErrNotExist)
	}
	return list, nil
}

// PatchVersion lists the files of one version; fs.ErrNotExist if there are none.
func (r *Repository) PatchVersion(ctx context.Context, product, version string) ([]Published, error) {
	list, err := r.Patches(ctx, product)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(p Published) bool { return p.Patch.Version != version })
	if len(list) == 0 {
		return nil, fmt.Errorf("patch %s@%s: %w", product, version, fs.ErrNotExist)
	}
	return list, nil
}

// AddProduct makes a product whose release engineers hold the keys of cfg.
func (r *Repository) AddProduct(ctx context.Context, product string, cfg RoleConfig, dryRun bool) (*Change, error) {
	if err := layout.CheckName(product); err != nil {
		return nil, err
	}
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		return d.add(ctx, cfg, layout.ProductRole(product), layout.ProductPatterns(product))
	})
}

// RoleInfo is a role and who speaks for it.
type RoleInfo struct {
	Name      string   `json:"name"`
	Version   int64    `json:"version"`
	KeyIDs    []string `json:"keyids"`
	Threshold int      `json:"threshold"`
	Targets   int      `json:"targets"` // of delegated roles
}

// RoleInfos lists the published roles, top-level ones first.
func (r *Repository) RoleInfos(ctx context.Context) ([]RoleInfo, error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	d := r.draftOn(base)
	var list []RoleInfo
	for _, name := range []string{layout.RoleRoot, layout.RoleTargets, layout.RoleSnapshot, layout.RoleTimestamp} {
		role := d.root.Signed.Roles[name]
		version := d.version(name)
		if name == layout.RoleRoot {
			version = d.root.Signed.Version
		}
		list = append(list, RoleInfo{Name: name, Version: version, KeyIDs: role.KeyIDs, Threshold: role.Threshold})
	}
	for _, del := range base.delegations() {
		md, err := base.role(ctx, del.Name)
		if err != nil {
			return nil, err
		}
		list = append(list, RoleInfo{Name: del.Name, Version: md.Signed.Version, KeyIDs: del.KeyIDs, Threshold: del.Threshold, Targets: len(md.Signed.Targets)})
	}
	return list, nil
}
