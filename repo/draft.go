package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// draft is a change on top of one published state, in memory until commit.
type draft struct {
	repo *Repository
	base *state // nil: the repository is being made

	root   *metadata.Metadata[metadata.RootType]               // in force, or new
	roles  map[string]*metadata.Metadata[metadata.TargetsType] // edited ones
	signed map[string]*pendingPart                             // edited ones that others have signed already
	docs   map[string][]byte                                   // object name → content, to be created first
	stamp  bool                                                // publish even if no role was edited
	result Change
}

func (r *Repository) draftOn(base *state) *draft {
	return &draft{
		repo:  r,
		base:  base,
		root:  base.trusted.Root,
		roles: make(map[string]*metadata.Metadata[metadata.TargetsType]),
		docs:  make(map[string][]byte),
	}
}

// read returns a role as the draft has it. The caller does not change it.
func (d *draft) read(ctx context.Context, role string) (*metadata.TargetsType, error) {
	if md := d.roles[role]; md != nil {
		return &md.Signed, nil
	}
	if d.base == nil {
		return nil, fmt.Errorf("role %s: %w", role, fs.ErrNotExist)
	}
	md, err := d.base.role(ctx, role)
	if err != nil {
		return nil, err
	}
	return &md.Signed, nil
}

// edit returns a role for changing. It will be signed anew.
func (d *draft) edit(ctx context.Context, role string) (*metadata.TargetsType, error) {
	if md := d.roles[role]; md != nil {
		return &md.Signed, nil
	}
	published, err := d.base.role(ctx, role)
	if err != nil {
		return nil, err
	}
	md := *published
	md.Signed.Targets = maps.Clone(published.Signed.Targets)
	if md.Signed.Targets == nil {
		md.Signed.Targets = make(map[string]*metadata.TargetFiles)
	}
	md.Signed.UnrecognizedFields = maps.Clone(published.Signed.UnrecognizedFields)
	if del := published.Signed.Delegations; del != nil {
		c := *del
		c.Keys = maps.Clone(del.Keys)
		c.Roles = slices.Clone(del.Roles)
		md.Signed.Delegations = &c
	}
	d.roles[role] = &md
	return &md.Signed, nil
}

// add makes a new, empty role that targets delegates to.
func (d *draft) add(ctx context.Context, cfg RoleConfig, name string, patterns []string) error {
	targets, err := d.edit(ctx, layout.RoleTargets)
	if err != nil {
		return err
	}
	if targets.Delegations == nil {
		targets.Delegations = &metadata.Delegations{Keys: make(map[string]*metadata.Key)}
	}
	if slices.ContainsFunc(targets.Delegations.Roles, func(r metadata.DelegatedRole) bool { return r.Name == name }) {
		return fmt.Errorf("role %s %w", name, ErrExists)
	}
	ids, err := declare(cfg, name, targets.Delegations.Keys)
	if err != nil {
		return err
	}
	targets.Delegations.Roles = append(targets.Delegations.Roles, metadata.DelegatedRole{
		Name: name, KeyIDs: ids, Threshold: max(cfg.Threshold, 1), Terminating: true, Paths: patterns,
	})
	d.roles[name] = newTargets(name, cfg.Lifetime)
	return nil
}

func newTargets(role string, lifetime time.Duration) *metadata.Metadata[metadata.TargetsType] {
	md := metadata.Targets()
	md.Signed.UnrecognizedFields = lifetimeFields(role, lifetime)
	return md
}

// putDocument makes data the content of a small target of ours.
func (d *draft) putDocument(ctx context.Context, role, path string, data []byte) error {
	t, err := d.edit(ctx, role)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	d.docs[layout.TargetObject(path, hex.EncodeToString(sum[:]))] = data
	t.Targets[path] = targetFile(path, int64(len(data)), sum)
	return nil
}

// document reads a small target of ours as the draft has it. It returns nil
// and no error if the role does not name it.
func (d *draft) document(ctx context.Context, role, path string, limit int64) ([]byte, error) {
	t, err := d.read(ctx, role)
	if err != nil {
		return nil, err
	}
	tf := t.Targets[path]
	if tf == nil {
		return nil, nil
	}
	data, err := d.readDocument(ctx, path, tf, limit)
	if errors.Is(err, errOther) {
		return nil, fmt.Errorf("%w: %s in the store is not what role %s signed", ErrNotTrusted, path, role)
	}
	return data, err
}

// errOther says that a document is not the one that its hash names.
var errOther = errors.New("other content than is signed")

// readDocument reads a small target of ours by what its entry says.
func (d *draft) readDocument(ctx context.Context, path string, tf *metadata.TargetFiles, limit int64) ([]byte, error) {
	sum := tf.Hashes["sha256"]
	object := layout.TargetObject(path, sum.String())
	if data, ok := d.docs[object]; ok {
		return data, nil
	}
	if tf.Length > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", ErrNotTrusted, path, tf.Length, limit)
	}
	data, err := readObject(ctx, d.repo.store, object)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if got := sha256.Sum256(data); !bytes.Equal(got[:], sum) {
		return nil, fmt.Errorf("read %s: %w", path, errOther)
	}
	return data, nil
}

// changes lists what the draft does to the targets of a role.
func (d *draft) changes(ctx context.Context, role string) ([]TargetChange, error) {
	var before map[string]*metadata.TargetFiles
	if d.base != nil {
		published, err := d.base.role(ctx, role)
		switch {
		case err == nil:
			before = published.Signed.Targets
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	after := d.roles[role].Signed.Targets
	var list []TargetChange
	for path, tf := range after {
		c := TargetChange{Path: path, Action: "add", Length: tf.Length, SHA256: tf.Hashes["sha256"].String()}
		if old := before[path]; old != nil {
			if old == tf || old.Equal(*tf) && sameCustom(old, tf) {
				continue
			}
			c.Action = "change"
		}
		list = append(list, c)
	}
	for path, tf := range before {
		if after[path] == nil {
			list = append(list, TargetChange{Path: path, Action: "remove", Length: tf.Length, SHA256: tf.Hashes["sha256"].String()})
		}
	}
	slices.SortFunc(list, func(a, b TargetChange) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

func sameCustom(a, b *metadata.TargetFiles) bool {
	if a.Custom == nil || b.Custom == nil {
		return a.Custom == b.Custom
	}
	return bytes.Equal(*a.Custom, *b.Custom)
}

// upload creates the draft's documents. One that is there already has the same
// content: its name says so.
func (d *draft) upload(ctx context.Context) error {
	for _, object := range slices.Sorted(maps.Keys(d.docs)) {
		data := d.docs[object]
		_, err := d.repo.store.Create(ctx, object, bytes.NewReader(data), int64(len(data)), options(object))
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return fmt.Errorf("write %s: %w", object, err)
		}
	}
	return nil
}

func options(object string) store.Options {
	return store.Options{ContentType: layout.ContentType(object), CacheControl: layout.CacheControl(object)}
}
